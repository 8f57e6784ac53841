"""Pooling over one to three spatial dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from effc.backends.coreml.interpret.ops.registry import Undefined, op
from effc.backends.coreml.interpret.ops.window import ints, padded, paddings, taps
from effc.core.measure import Array

Windows = tuple[list[int], list[int], list[tuple[int, int]], list[int], list[tuple[int, int]]]


def _windows(
    sizes: Sequence[int], kernel_sizes: Any, strides: Any, pad_type: str, pad: Any, ceil_mode: bool
) -> Windows:
    """Kernel, strides, paddings, output sizes, and paddings that let the last windows fit."""
    kernel, steps = ints(kernel_sizes, []), ints(strides, [1] * len(sizes))
    pads = paddings(pad_type, pad, sizes, kernel, steps)
    out, reach = [], []
    for size, k, s, (before, after) in zip(sizes, kernel, steps, pads, strict=True):
        room = size + before + after - k
        count = (-(-room // s) if ceil_mode else room // s) + 1
        if ceil_mode and before + after > 0 and (count - 1) * s >= size + before:
            count -= 1
        if count < 1:
            raise Undefined(f"the kernel {kernel} is larger than the padded input")
        if before >= k or (count - 1) * s >= size + before:
            raise Undefined("a window without any element of the input")
        out.append(count)
        reach.append((before, max(after, (count - 1) * s + k - size - before)))
    return kernel, steps, pads, out, reach


def _sum(x: Array, kernel: list[int], steps: list[int], out: list[int]) -> Array:
    total = np.zeros((*x.shape[:2], *out), np.float64)
    for _, view in taps(x, kernel, steps, [1] * len(kernel), out):
        total += view
    return total


@op("avg_pool")
def avg_pool(
    x: Array,
    kernel_sizes: Array,
    strides: Array | None = None,
    pad_type: str = "valid",
    pad: Array | None = None,
    exclude_padding_from_average: Array | bool = False,
    ceil_mode: Array | bool = False,
) -> Array:
    """Where `ceil_mode` lets a window pass the padded end, what is beyond never counts (PyTorch's rule)."""
    kernel, steps, pads, out, reach = _windows(
        x.shape[2:], kernel_sizes, strides, pad_type, pad, bool(ceil_mode)
    )
    counted = np.ones((1, 1, *x.shape[2:]))
    if not exclude_padding_from_average:
        counted = padded(counted, pads, 1.0)
        rest = [(0, r[1] - p[1]) for p, r in zip(pads, reach, strict=True)]
    else:
        rest = reach
    count = _sum(padded(counted, rest), kernel, steps, out)
    return (_sum(padded(x, reach), kernel, steps, out) / np.maximum(count, 1)).astype(x.dtype)


@op("max_pool")
def max_pool(
    x: Array,
    kernel_sizes: Array,
    strides: Array | None = None,
    pad_type: str = "valid",
    pad: Array | None = None,
    ceil_mode: Array | bool = False,
) -> Array:
    """Padding never wins."""
    kernel, steps, _, out, reach = _windows(
        x.shape[2:], kernel_sizes, strides, pad_type, pad, bool(ceil_mode)
    )
    result = np.full((*x.shape[:2], *out), -np.inf, x.dtype)
    for _, view in taps(padded(x, reach, -np.inf), kernel, steps, [1] * len(kernel), out):
        np.maximum(result, view, out=result)
    return result


@op("l2_pool")
def l2_pool(
    x: Array,
    kernel_sizes: Array,
    strides: Array | None = None,
    pad_type: str = "valid",
    pad: Array | None = None,
    ceil_mode: Array | bool = False,
) -> Array:
    """The square root of the sum of squares in each window."""
    kernel, steps, _, out, reach = _windows(
        x.shape[2:], kernel_sizes, strides, pad_type, pad, bool(ceil_mode)
    )
    return np.sqrt(_sum(np.square(padded(x, reach)), kernel, steps, out)).astype(x.dtype)
