"""From what an observer saw to the range (low, high) that is quantized: the calibrators.

min-max         the least and the greatest number
moving-average  the same, averaged over the samples (momentum 0.1), as TensorFlow's fake quantization
percentile      cut so that at most 0.01 % of the numbers are clipped at each end that has a tail
mse             the range that quantizes with the least mean squared error
entropy         the range that keeps the most information: least KL divergence (Migacz 2017, for TensorRT);
                everything where fewer than 4,096 numbers other than 0 were seen
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from effc.core.errors import ConfigError
from effc.passes.quantize.observe import Histogram, MinMax, Observer

CALIBRATORS = ("min-max", "moving-average", "percentile", "mse", "entropy")
MOMENTUM = 0.1
PERCENTILE = 99.99
# fewer numbers than this are no distribution: most bins hold none or one, and entropy would cut anything
LEAST_COUNT = 4096

Floats = npt.NDArray[np.float64]
Range = tuple[float, float]
_Loss = Callable[[Floats, Floats, float, float, int], float]


def observer(calibrator: str) -> Observer:
    """A fresh observer of what `calibrator` needs."""
    if calibrator not in CALIBRATORS:
        raise ConfigError(
            f"there is no calibrator {calibrator!r}",
            hint=f"the calibrators: {', '.join(CALIBRATORS)}",
        )
    if calibrator == "min-max":
        return MinMax()
    return MinMax(MOMENTUM) if calibrator == "moving-average" else Histogram()


def choose_range(
    calibrator: str, seen: Observer, *, levels: int, symmetric: bool, percentile: float = PERCENTILE
) -> Range:
    """The range that `calibrator` finds for quantization to `levels` integers; it includes 0."""
    if isinstance(seen, MinMax):
        return (min(seen.low, 0.0), max(seen.high, 0.0)) if seen.low <= seen.high else (0.0, 0.0)
    if not isinstance(seen, Histogram):
        raise TypeError(f"no range from {type(seen).__name__}")
    if not seen.counts.any():
        return 0.0, 0.0
    if calibrator == "percentile":
        return _percentile(seen, percentile)
    if calibrator == "mse":
        return _search(seen, levels, symmetric, _squared_error)
    if seen.counts.sum() < LEAST_COUNT:
        return _full(seen)
    return _search(seen, levels, symmetric, _divergence)


def _full(seen: Histogram) -> Range:
    return min(seen.low, 0.0), max(seen.high, 0.0)


def _percentile(seen: Histogram, percent: float) -> Range:
    low, high = _full(seen)
    share = 1 - percent / 100
    counts = seen.counts.astype(np.float64)
    counts[-seen.first] += seen.zeros
    below = np.cumsum(counts) / seen.total
    width = 2.0**seen.exponent
    if low < 0:
        low = max(low, (seen.first + int(np.searchsorted(below, share, "right"))) * width)
    if high > 0:
        above = np.cumsum(counts[::-1]) / seen.total
        last = seen.counts.size - 1 - int(np.searchsorted(above, share, "right"))
        high = min(high, (seen.first + last + 1) * width)
    return min(low, 0.0), max(high, 0.0)


_STEPS = (
    64  # candidates for an end of the range: even shares of it, then finer ones around the best
)


def _search(seen: Histogram, levels: int, symmetric: bool, loss: _Loss) -> Range:
    """The candidate range of least loss; two-sided ranges alternate between their ends."""
    low, high = _full(seen)
    centers, counts = seen.centers, seen.counts.astype(np.float64)
    used = counts > 0
    centers, counts = centers[used], counts[used]
    if symmetric:
        bound = max(-low, high)
        best = bound * _share(lambda s: loss(centers, counts, -bound * s, bound * s, levels))
        return -best, best
    best_low, best_high = low, high
    for _ in range(3 if low < 0 < high else 1):
        before = best_low, best_high
        if high > 0:
            fixed = best_low
            best_high = high * _share(lambda s: loss(centers, counts, fixed, high * s, levels))  # noqa: B023
        if low < 0:
            other = best_high
            best_low = low * _share(lambda s: loss(centers, counts, low * s, other, levels))  # noqa: B023
        if (best_low, best_high) == before:
            break
    return best_low, best_high


def _share(loss: Callable[[float], float]) -> float:
    """The share of the range with the least loss, the largest of equals."""
    coarse = [i / _STEPS for i in range(_STEPS, 0, -1)]
    best = min(coarse, key=loss)
    step = 2 / _STEPS / 16
    return min((s for i in range(16, -1, -1) if 0 < (s := best + (i - 8) * step) <= 1), key=loss)


def _squared_error(centers: Floats, counts: Floats, low: float, high: float, levels: int) -> float:
    """The squared error summed over the histogram when [low, high] has `levels` integers."""
    scale = (high - low) / (levels - 1)
    zero = round(-low / scale)
    q = np.clip(np.rint(centers / scale) + zero, 0, levels - 1)
    return float((counts * ((q - zero) * scale - centers) ** 2).sum())


def _divergence(centers: Floats, counts: Floats, low: float, high: float, levels: int) -> float:
    """KL divergence of the histogram, clipped to [low, high], from its version of `levels` integers.

    The clipped mass counts in the outermost bins of the first and not of the second; each integer's mass is
    spread over the bins it stands for that hold something.
    """
    inside = (centers >= low) & (centers <= high)
    p = counts[inside]
    if p.size == 0:
        return math.inf
    scale = (high - low) / (levels - 1)
    level = np.clip(np.rint(centers[inside] / scale) + round(-low / scale), 0, levels - 1).astype(
        int
    )
    mass = np.bincount(level, weights=p, minlength=levels)
    bins = np.bincount(level, minlength=levels)
    q = (mass / np.maximum(bins, 1))[level]
    p = p.copy()
    p[0] += counts[centers < low].sum()
    p[-1] += counts[centers > high].sum()
    p, q = p / p.sum(), q / q.sum()
    return float((p * np.log(p / q)).sum())
