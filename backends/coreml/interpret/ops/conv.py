"""Convolution and transposed convolution, of one to three spatial dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from effc.backends.coreml.interpret.ops.activation import per_channel
from effc.backends.coreml.interpret.ops.registry import Undefined, op
from effc.backends.coreml.interpret.ops.window import ints, padded, paddings, taps
from effc.core.measure import Array

COLUMNS_BYTES = 64 << 20  # of the unfolded input that is held at once


def _depthwise(
    x: Array, weight: Array, strides: Sequence[int], dilations: Sequence[int], out: Sequence[int]
) -> Array:
    result = np.zeros((*x.shape[:2], *out), x.dtype)
    product = np.empty_like(result)
    for position, view in taps(x, weight.shape[2:], strides, dilations, out):
        at: tuple[Any, ...] = (slice(None), 0, *position)
        np.multiply(view, per_channel(weight[at], x.ndim), out=product)
        result += product
    return result


def _matrix(
    x: Array,
    weight: Array,
    groups: int,
    strides: Sequence[int],
    dilations: Sequence[int],
    out: Sequence[int],
) -> Array:
    """One matrix product per group over the unfolded input, some rows of the output at a time."""
    batch, channels = x.shape[:2]
    kernel = weight.shape[2:]
    volume = math.prod(kernel)
    rows = weight.reshape(groups, weight.shape[0] // groups, -1)
    result = np.empty((batch, weight.shape[0], *out), x.dtype)
    row_bytes = batch * channels * volume * math.prod(out[1:]) * x.itemsize
    step = max(1, COLUMNS_BYTES // max(1, row_bytes))
    for first in range(0, out[0], step):
        part = (min(step, out[0] - first), *out[1:])
        columns = np.empty((batch, channels, volume, *part), x.dtype)
        shifted = x[:, :, first * strides[0] :]
        for index, (_, view) in enumerate(taps(shifted, kernel, strides, dilations, part)):
            columns[:, :, index] = view
        product = rows @ columns.reshape(batch, groups, channels // groups * volume, -1)
        result[:, :, first : first + part[0]] = product.reshape(batch, weight.shape[0], *part)
    return result


@op("conv")
def conv(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    strides: Array | None = None,
    pad_type: str = "valid",
    pad: Array | None = None,
    dilations: Array | None = None,
    groups: Array | int = 1,
) -> Array:
    """x [n, c_in, *d], weight [c_out, c_in / groups, *k], bias [c_out]."""
    rank, count = x.ndim - 2, int(groups)
    if weight.shape[0] % count or weight.shape[1] * count != x.shape[1]:
        raise Undefined(f"weight {weight.shape} does not fit {x.shape} in {count} groups")
    steps, spread = ints(strides, [1] * rank), ints(dilations, [1] * rank)
    reach = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], spread, strict=True)]
    x = padded(x, paddings(pad_type, pad, x.shape[2:], reach, steps))
    out = [(size - r) // s + 1 for size, r, s in zip(x.shape[2:], reach, steps, strict=True)]
    if min(out) < 1:
        raise Undefined(f"the kernel {weight.shape[2:]} is larger than the padded input")
    if count == x.shape[1] == weight.shape[0]:
        result = _depthwise(x, weight, steps, spread, out)
    else:
        result = _matrix(x, weight, count, steps, spread, out)
    return result if bias is None else result + per_channel(bias, x.ndim)


@op("conv_transpose")
def conv_transpose(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    pad: Array | None = None,
    output_shape: Array | None = None,
    pad_type: str = "valid",
    strides: Array | None = None,
    dilations: Array | None = None,
    groups: Array | int = 1,
) -> Array:
    """x [n, c_in, *d], weight [c_in, c_out / groups, *k], bias [c_out].

    The gradient of `conv` with respect to its input. `same` gives d * stride, cutting the odd element
    from the end.
    """
    rank, count = x.ndim - 2, int(groups)
    if weight.shape[0] != x.shape[1] or weight.shape[0] % count:
        raise Undefined(f"weight {weight.shape} does not fit {x.shape} in {count} groups")
    steps, spread = ints(strides, [1] * rank), ints(dilations, [1] * rank)
    kernel = weight.shape[2:]
    full = [
        (size - 1) * s + (k - 1) * d + 1
        for size, s, k, d in zip(x.shape[2:], steps, kernel, spread, strict=True)
    ]
    batch, channels = x.shape[:2]
    width = weight.shape[1] * count
    grouped = x.reshape(batch, count, channels // count, -1)
    rows = weight.reshape(count, channels // count, -1).transpose(0, 2, 1)
    parts = (rows @ grouped).reshape(batch, width, *kernel, *x.shape[2:])
    canvas = np.zeros((batch, width, *full), x.dtype)
    for position, view in taps(canvas, kernel, steps, spread, x.shape[2:]):
        at: tuple[Any, ...] = (slice(None), slice(None), *position)
        view += parts[at]
    wanted = None if output_shape is None else ints(output_shape, [])
    sizes = wanted[-rank:] if wanted else None
    if pad_type == "custom":
        flat = ints(pad, [0] * 2 * rank)
        cuts = [
            (flat[2 * i], full[i] - flat[2 * i] - sizes[i] if sizes else flat[2 * i + 1])
            for i in range(rank)
        ]
    elif pad_type == "valid":
        cuts = [(0, full[i] - sizes[i] if sizes else 0) for i in range(rank)]
    elif pad_type == "same":
        totals = [full[i] - (sizes[i] if sizes else x.shape[2 + i] * steps[i]) for i in range(rank)]
        cuts = [(max(0, t) // 2, t - max(0, t) // 2) for t in totals]
    else:
        raise Undefined(f"pad_type {pad_type!r}")
    result = padded(canvas, [(-before, -after) for before, after in cuts])
    return result if bias is None else result + per_channel(bias, x.ndim)
