"""Pad, in all its modes and for all types."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from effc.backends.coreml.convert.call import Call, Refusal, Var, kind_of
from effc.backends.coreml.convert.table import op


@op("Pad")
def pad(c: Call) -> Var:
    amounts = c.ints(1, "pads")
    axes = [c.axis(a) for a in c.ints(3, "axes")] if c.has(3) else list(range(c.rank()))
    half = len(amounts) // 2
    pads = [(0, 0)] * c.rank()
    for a, before, after in zip(axes, amounts[:half], amounts[half:], strict=True):
        pads[a] = (before, after)
    mode = c.text("mode", "constant")
    value = 0.0
    if mode == "constant" and c.has(2):
        value = float(c.need(2, "constant value").reshape(()))
    return padded(c, c.x(), pads, mode, value)


def padded(c: Call, x: Var, pads: Sequence[tuple[int, int]], mode: str, value: float) -> Var:
    """`x` with these elements before and after each axis; a negative number cuts."""
    if kind_of(x) == "bool":
        return c.as_int(x, lambda v: padded(c, v, pads, mode, value))
    shape = [int(d) for d in x.shape]
    if any(d + b + a <= 0 for d, (b, a) in zip(shape, pads, strict=True)):
        raise Refusal("it makes an empty tensor, which Core ML does not have")
    if mode != "constant":
        return _by_index(c, x, pads, mode)
    if any(b < 0 or a < 0 for b, a in pads):
        begin = [max(-b, 0) for b, _ in pads]
        end = [d - max(-a, 0) for d, (_, a) in zip(shape, pads, strict=True)]
        if any(b >= e for b, e in zip(begin, end, strict=True)):
            raise Refusal("it cuts more than there is on one side")
        x = c.mb.slice_by_index(x=x, begin=begin, end=end, stride=[1] * len(shape))
        pads = [(max(b, 0), max(a, 0)) for b, a in pads]
    if not any(b or a for b, a in pads):
        return c.mb.identity(x=x)
    if kind_of(x) != "int32":
        flat = np.array([v for pair in pads for v in pair], np.int32)
        return c.mb.pad(x=x, pad=flat, mode="constant", constant_val=c.like(value, x))
    for axis, (before, after) in enumerate(pads):
        parts = []
        for extent, inner in ((before, None), (-1, x), (after, None)):
            if inner is not None:
                parts.append(inner)
            elif extent:
                block = [int(d) for d in x.shape]
                block[axis] = extent
                parts.append(c.constant(np.full(block, int(value), np.int32)))
        x = c.mb.concat(values=parts, axis=axis) if len(parts) > 1 else x
    return x


def _by_index(c: Call, x: Var, pads: Sequence[tuple[int, int]], mode: str) -> Var:
    """Reflected, repeated and wrapped elements: native where Core ML is, otherwise gathered by axis."""
    shape = [int(d) for d in x.shape]
    lead = pads[:-2]
    simple = all(b >= 0 and a >= 0 for b, a in pads) and not any(b or a for b, a in lead)
    small = all(max(b, a) < d for d, (b, a) in zip(shape, pads, strict=True))
    if (
        simple
        and small
        and mode in ("reflect", "edge")
        and kind_of(x) != "int32"
        and len(shape) >= 2
    ):
        flat = np.array([v for pair in pads[-2:] for v in pair], np.int32)
        return c.mb.pad(x=x, pad=flat, mode="reflect" if mode == "reflect" else "replicate")
    for axis, (before, after) in enumerate(pads):
        if before or after:
            index = source_index(shape[axis], before, after, mode)
            x = c.mb.gather(x=x, indices=index.astype(np.int32), axis=axis)
    return x


def source_index(extent: int, before: int, after: int, mode: str) -> np.ndarray:
    """For each position of the padded axis, the position that it repeats."""
    at = np.arange(-before, extent + after)
    if mode == "edge":
        return np.clip(at, 0, extent - 1)
    if mode == "wrap":
        return at % extent
    if mode == "reflect":
        if extent == 1:
            return np.zeros_like(at)
        period = 2 * (extent - 1)
        at = np.abs(at) % period
        return np.where(at >= extent, period - at, at)
    raise Refusal(f"its mode {mode!r} is unknown")
