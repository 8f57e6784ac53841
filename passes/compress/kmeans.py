"""k-means of numbers on a line: the best palette of a weight."""

from __future__ import annotations

import numpy as np

from effc.core.ir import Array

_BINS = 1024
_EXACT = 32  # centers


def palette(values: Array, k: int, importance: Array | None = None) -> Array:
    """The k numbers, ascending, nearest to `values` in the mean square (fewer if fewer are distinct).

    `values` float [n]; `importance`, float [n], weighs the squared errors. For k up to 32 exact (dynamic
    programming) up to 1,024 distinct values; with more, exact on bins of equal count, and then Lloyd's
    iterations. For larger k Lloyd's from as many centers as the cube root of the density asks for.
    Wang and Song, "Ckmeans.1d.dp", 2011; weighted by sensitivity: Choi et al., arXiv 1612.01543.
    """
    x = np.asarray(values, np.float64).ravel()
    w = np.ones_like(x) if importance is None else np.asarray(importance, np.float64).ravel()
    order = np.argsort(x, kind="stable")
    x, w = x[order], np.maximum(w[order], 1e-12)
    distinct, first = np.unique(x, return_index=True)
    if distinct.size <= k:
        return distinct
    if distinct.size > _BINS:
        edges = np.unique(np.linspace(0, x.size, _BINS + 1).astype(int)[:-1])
    else:
        edges = first
    weight = np.add.reduceat(w, edges)
    mean = np.add.reduceat(w * x, edges) / weight
    centers = _exact(mean, weight, k) if k <= _EXACT else _companded(x, w, k)
    for _ in range(50):
        bounds = np.searchsorted(x, (centers[1:] + centers[:-1]) / 2)
        starts = np.concatenate([[0], bounds])
        stops = np.concatenate([bounds, [x.size]])
        full = stops > starts
        moved = centers.copy()
        sums = np.concatenate([[0.0], np.cumsum(w * x)])
        total = np.concatenate([[0.0], np.cumsum(w)])
        a, b = starts[full], stops[full]
        moved[full] = (sums[b] - sums[a]) / (total[b] - total[a])
        if np.allclose(moved, centers, rtol=1e-7, atol=0):
            break
        centers = moved
    return np.unique(centers)


def nearest(values: Array, centers: Array) -> Array:
    """The index of the nearest of the ascending `centers` for each value, of the shape of `values`."""
    return np.searchsorted((centers[1:] + centers[:-1]) / 2, values)


def cheap_palette(values: Array, k: int, importance: Array, price: float) -> tuple[Array, Array]:
    """At most k centers and the bits of each, for the least of error + price * entropy-coded bits.

    Zero is always one of them. Entropy-constrained quantization: Chou, Lookabaugh and Gray, 1989.
    """
    x, w = np.asarray(values, np.float64).ravel(), np.asarray(importance, np.float64).ravel()
    edges = np.linspace(x.min(), x.max() + 1e-12, 2049)
    at = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, 2047)
    count = np.bincount(at, minlength=2048)
    weight = np.bincount(at, w, 2048)
    full = count > 0
    count, weight = count[full], weight[full]
    mean = np.bincount(at, w * x, 2048)[full] / np.maximum(weight, 1e-300)
    centers = np.linspace(x.min(), x.max(), k)
    centers[np.abs(centers).argmin()] = 0.0
    bits = np.full(k, np.log2(k))
    for _ in range(60):
        cost = weight[:, None] * (mean[:, None] - centers) ** 2 + price * count[:, None] * bits
        chosen = cost.argmin(axis=1)
        n = np.bincount(chosen, count, len(centers))
        total = np.bincount(chosen, weight, len(centers))
        moved = np.bincount(chosen, weight * mean, len(centers)) / np.maximum(total, 1e-300)
        used = (n > 0) | (centers == 0)
        moved = np.where(centers == 0, 0.0, moved)[used]
        n = np.maximum(n[used], 0.5)
        done = len(moved) == len(centers) and np.allclose(moved, centers, rtol=1e-5, atol=0)
        centers, bits = moved, -np.log2(n / n.sum())
        if done:
            break
    return centers, bits


def _companded(x: Array, w: Array, k: int) -> Array:
    """k ascending centers, as dense as the points to the power 1/3 (Panter and Dite, 1951)."""
    mass, edges = np.histogram(x, bins=_BINS, weights=w)
    grown = np.concatenate([[0.0], np.cumsum(np.cbrt(mass))])
    centers: Array = np.interp((np.arange(k) + 0.5) / k * grown[-1], grown, edges)
    return centers


def _exact(x: Array, w: Array, k: int) -> Array:
    """Optimal centers of ascending weighted points, by dynamic programming over cut points."""
    n = len(x)
    shift = np.average(x, weights=w)
    x = x - shift
    sw = np.concatenate([[0.0], np.cumsum(w)])
    sx = np.concatenate([[0.0], np.cumsum(w * x)])
    sxx = np.concatenate([[0.0], np.cumsum(w * x * x)])
    i, j = np.arange(n + 1)[:, None], np.arange(n + 1)[None, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        cost = sxx[j] - sxx[i] - (sx[j] - sx[i]) ** 2 / (sw[j] - sw[i])  # of points i..j-1
    cost[i >= j] = np.inf
    best = cost[0].copy()
    cuts = np.zeros((k, n + 1), int)
    for c in range(1, k):
        total = best[:, None] + cost
        cuts[c] = total.argmin(axis=0)
        best = total.min(axis=0)
    ends = [n]
    for c in range(k - 1, 0, -1):
        ends.append(int(cuts[c, ends[-1]]))
    starts = np.array(ends[::-1][:-1] if k > 1 else [], int)
    begins = np.concatenate([[0], starts])
    stops = np.concatenate([starts, [n]])
    centers: Array = (sx[stops] - sx[begins]) / (sw[stops] - sw[begins]) + shift
    return centers
