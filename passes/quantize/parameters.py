"""From ranges and weights to QuantParams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from effc.core.quant import QuantParams, integer_range, make_params
from effc.core.schemes import TensorRule
from effc.passes.quantize.placement import Join
from effc.passes.quantize.ranges import Range

Array = npt.NDArray[Any]

# below it a product of two scales is no normal float32 any more
LEAST_SCALE = 1e-18
# of the 2^31 that an int32 sum holds, a quarter is for the bias
LARGEST_BIAS = float(1 << 29)


def activation_params(rule: TensorRule, found: Range) -> QuantParams:
    """Parameters whose reals span `found` (widened to include 0); a scale of 1 where it is only 0."""
    least, greatest = integer_range(rule.dtype)
    low, high = min(found[0], 0.0), max(found[1], 0.0)
    if rule.symmetric:
        # -128 stays unused: every number then has its negative
        bound = max(-low, high)
        ratio = bound / greatest if least < 0 else bound / ((greatest - least) / 2)
        return make_params(rule.dtype, _usable(ratio), 0 if least < 0 else (greatest + 1) // 2)
    scale = np.float32(_usable((high - low) / (greatest - least)))
    zero = int(np.clip(round(least - low / float(scale)), least, greatest))
    return make_params(rule.dtype, scale, zero)


def level_params(rule: TensorRule, levels: Array) -> QuantParams:
    """Parameters for a tensor that holds only `levels`: the grid nearest to them, exact if there is one."""
    if rule.symmetric:
        return activation_params(rule, (float(levels.min()), float(levels.max())))
    least, greatest = integer_range(rule.dtype)
    span = max(float(levels.max()), 0.0) - min(float(levels.min()), 0.0)
    best, lowest = activation_params(rule, (float(levels.min()), float(levels.max()))), np.inf
    for share in 1 + np.arange(41) / 1000:
        scale = np.float32(_usable(span * share / (greatest - least)))
        middle = least - float(levels.min()) / float(scale)
        for zero in {int(np.floor(middle)), int(np.ceil(middle))}:
            tried = make_params(rule.dtype, scale, int(np.clip(zero, least, greatest)))
            error = float(((tried.dequantize(tried.quantize(levels)) - levels) ** 2).sum())
            if error < lowest * (1 - 1e-6):
                best, lowest = tried, error
    return best


# a part that fills less of the whole's range would lose more than a bit by taking its scale
JOIN_SHARE = 0.5


def join(joins: Sequence[Join], ranges: Sequence[Range]) -> tuple[list[Range], list[Join]]:
    """The ranges of the groups after Concats have joined them, and the joins that would cost too much.

    Those keep their own scale, and get that of the Concat in front of it: a requantization.
    """
    parent = list(range(len(ranges)))
    found = [(min(r[0], 0.0), max(r[1], 0.0)) for r in ranges]

    def root(group: int) -> int:
        while parent[group] != group:
            group = parent[group]
        return group

    for one in joins:
        part, whole = root(one.part), root(one.whole)
        own, other = found[part], found[whole]
        if part != whole and (one.free or own[1] - own[0] >= JOIN_SHARE * (other[1] - other[0])):
            parent[part] = whole
            found[whole] = min(own[0], other[0]), max(own[1], other[1])
    apart = [one for one in joins if root(one.part) != root(one.whole)]
    return [found[root(g)] for g in range(len(ranges))], apart


def _usable(scale: float) -> float:
    return 1.0 if scale == 0 else max(scale, LEAST_SCALE)


def weight_params(
    weight: Array,
    axis: int,
    *,
    bits: int = 8,
    per_channel: bool = True,
    clip: bool = False,
    least: Array | None = None,
) -> QuantParams:
    """Symmetric parameters of a float weight, stored as INT8 (8 bits) or INT4 (4 and 2 bits).

    `clip` searches for every channel the range of least squared error instead of its largest magnitude;
    `least` are scales that may not be gone below, [C] or one.
    """
    top = (1 << (bits - 1)) - 1
    # [C, the rest]
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).astype(np.float32)
    if not per_channel:
        rows = rows.reshape(1, -1)
    scale = np.abs(rows).max(1, initial=0.0) / top
    if clip:
        scale = _clipped(rows, scale, top)
    floor = np.zeros_like(scale) if least is None else np.broadcast_to(least, scale.shape)
    scale = np.maximum(scale, floor)
    scale = np.where(scale == 0, 1.0, np.maximum(scale, LEAST_SCALE)).astype(np.float32)
    dtype = ir.DataType.INT8 if bits == 8 else ir.DataType.INT4
    return make_params(dtype, scale if per_channel else scale.reshape(()), 0, axis=axis)


def _clipped(rows: Array, scale: Array, top: int) -> Array:
    """The shares of `scale` with the least squared error, each row on its own."""
    best, least = scale.copy(), np.full(scale.shape, np.inf)
    lowest = 0.3 if top < 100 else 0.6
    for share in np.linspace(1.0, lowest, 41):
        tried = np.where(scale == 0, 1, scale * share)[:, None]
        error = ((np.clip(np.rint(rows / tried), -top, top) * tried - rows) ** 2).sum(1)
        better = error < least
        best[better], least[better] = (scale * share)[better], error[better]
    return best


def quantize_weight(weight: Array, params: QuantParams, bits: int) -> Array:
    """The integers of a weight, of +-(2^(bits-1) - 1) at most."""
    top = (1 << (bits - 1)) - 1
    integers = params.quantize(weight)
    return np.clip(integers.astype(np.int8), -top, top).astype(integers.dtype)


def bias_params(activation: QuantParams, weight: QuantParams) -> QuantParams:
    """int32 with scale sx * sw and zero point 0: [C] where the weight is quantized by channel."""
    return make_params(ir.DataType.INT32, activation.scale * weight.scale, 0, axis=0)


def least_weight_scale(bias: Array, activation: QuantParams) -> Array:
    """The least weight scales, [C], with which the bias fits into its int32."""
    return np.abs(bias.reshape(-1)) / (float(activation.scale) * LARGEST_BIAS)
