"""Exact integer sums of products through floating-point BLAS.

float64 holds every integer below 2^53 and float32 every one below 2^24: where all partial sums stay
below that, the fast matrix products are exact, in whatever order they add.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_LARGEST_BYTES = 256 << 20  # of the patches of one picture


def exact_dtype(bound: int) -> Any:
    """The narrowest floating-point type in which integers up to `bound` are exact."""
    if bound >= 1 << 53:
        raise ValueError(f"sums up to {bound} are exact in no floating-point type")
    return np.float32 if bound < 1 << 24 else np.float64


def matmul(x: Array, w: Array) -> Array:
    """sum_k x[..., k] w[..., k, n] of integers, int64."""
    if not x.size or not w.size:
        return np.asarray(np.matmul(x.astype(np.int64), w.astype(np.int64)))
    bound = x.shape[-1] * int(np.abs(x).max()) * int(np.abs(w).max())
    dtype = exact_dtype(bound)
    return np.asarray(np.matmul(x.astype(dtype), w.astype(dtype)).astype(np.int64))


def convolve(
    x: Array,
    w: Array,
    *,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    group: int,
) -> Array:
    """ONNX's Conv of integers without bias; outside of `x` is 0. x [N, C, *d], w [OC, C/g, *k] -> int64."""
    rank = x.ndim - 2
    n, channels = x.shape[:2]
    filters, depth, *kernel = w.shape
    x = np.pad(x, [(0, 0), (0, 0), *((pads[i], pads[i + rank]) for i in range(rank))])
    out = [
        (x.shape[2 + i] - (kernel[i] - 1) * dilations[i] - 1) // strides[i] + 1 for i in range(rank)
    ]
    per_filter = np.abs(w.reshape(filters, -1).astype(np.int64)).sum(1)
    bound = int(np.abs(x).max(initial=0)) * int(per_filter.max(initial=0))
    dtype = exact_dtype(bound)
    x, w = x.astype(dtype), w.astype(dtype)

    def taken(picture: Array, tap: tuple[int, ...]) -> Array:
        """What filter element `tap` meets at every position: [C, *out]."""
        at = (
            slice(t * d, t * d + (o - 1) * s + 1, s)
            for t, d, o, s in zip(tap, dilations, out, strides, strict=True)
        )
        return picture[(slice(None), *at)]

    taps = list(product(*map(range, kernel)))
    result = np.empty((n, filters, *out), np.int64)
    for b in range(n):
        if depth == 1 and group == channels:  # depthwise
            acc = np.zeros((channels, filters // channels, *out), dtype)
            for tap in taps:
                at: Any = (slice(None), 0, *tap)
                weight = w[at].reshape(channels, -1, *(1,) * rank)
                acc += taken(x[b], tap)[:, None] * weight
        else:
            acc = _by_patches(x[b], w, taps, out, group, taken)
        result[b] = acc.reshape(filters, *out)
    return result


def _by_patches(
    picture: Array, w: Array, taps: list[tuple[int, ...]], out: list[int], group: int, taken: Any
) -> Array:
    channels, filters, count = picture.shape[0], w.shape[0], math.prod(out)
    weight = w.reshape(group, filters // group, -1, len(taps)).swapaxes(2, 3)
    step = max(1, _LARGEST_BYTES // max(1, channels * count * picture.itemsize))
    acc = np.zeros((group, filters // group, count), picture.dtype)
    for start in range(0, len(taps), step):
        some = taps[start : start + step]
        patches = np.stack([taken(picture, t).reshape(group, -1, count) for t in some], 1)
        part = weight[:, :, start : start + step].reshape(group, filters // group, -1)
        acc += part @ patches.reshape(group, -1, count)
    return acc


def transposed_convolve(
    x: Array,
    w: Array,
    *,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    output_padding: Sequence[int],
    group: int,
) -> Array:
    """ONNX's ConvTranspose of integers without bias. x [N, C, *d], w [C, OC/g, *k] -> int64 [N, OC, *]."""
    rank, (n, channels, *size) = x.ndim - 2, x.shape
    kernel = w.shape[2:]
    full = [
        (size[i] - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1 + output_padding[i]
        for i in range(rank)
    ]
    per = w.shape[1]
    acc = np.zeros((n, group, per, *full), np.int64)
    xs = x.reshape(n, group, channels // group, -1)
    ws = w.reshape(group, channels // group, per, *kernel)
    for tap in product(*map(range, kernel)):
        where: Any = (..., *tap)
        part = matmul(ws[where].swapaxes(-1, -2), xs)  # [n, g, per, positions]
        at = tuple(
            slice(t * d, t * d + (s - 1) * st + 1, st)
            for t, d, s, st in zip(tap, dilations, size, strides, strict=True)
        )
        acc[(slice(None),) * 3 + at] += part.reshape(n, group, per, *size)
    crop = tuple(slice(pads[i], full[i] - pads[i + rank]) for i in range(rank))
    return acc.reshape(n, group * per, *full)[(slice(None), slice(None), *crop)]
