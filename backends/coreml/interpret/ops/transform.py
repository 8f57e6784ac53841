"""Operations that only move elements."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from effc.backends.coreml.interpret.ops.registry import Undefined, op
from effc.core.measure import Array


@op("depth_to_space")
def depth_to_space(x: Array, block_size: Array) -> Array:
    """The channels are ordered [block row, block column, channel]."""
    b = int(block_size)
    n, c, h, w = x.shape
    parts = x.reshape(n, b, b, c // (b * b), h, w).transpose(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, c // (b * b), h * b, w * b)


@op("space_to_depth")
def space_to_depth(x: Array, block_size: Array) -> Array:
    b = int(block_size)
    n, c, h, w = x.shape
    parts = x.reshape(n, c, h // b, b, w // b, b).transpose(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, c * b * b, h // b, w // b)


@op("pixel_shuffle")
def pixel_shuffle(x: Array, upscale_factor: Array) -> Array:
    """The channels are ordered [channel, block row, block column]."""
    f = int(upscale_factor)
    n, c, h, w = x.shape
    parts = x.reshape(n, c // (f * f), f, f, h, w).transpose(0, 1, 4, 2, 5, 3)
    return parts.reshape(n, c // (f * f), h * f, w * f)


@op("pixel_unshuffle", since=16)
def pixel_unshuffle(x: Array, downscale_factor: Array) -> Array:
    f = int(downscale_factor)
    n, c, h, w = x.shape
    parts = x.reshape(n, c, h // f, f, w // f, f).transpose(0, 1, 3, 5, 2, 4)
    return parts.reshape(n, c * f * f, h // f, w // f)


@op("space_to_batch")
def space_to_batch(x: Array, block_shape: Array, paddings: Array) -> Array:
    """The new images are ordered [block row, block column, image]."""
    bh, bw = (int(b) for b in block_shape)
    (top, bottom), (left, right) = ((int(a), int(b)) for a, b in paddings)
    x = np.pad(x, [(0, 0), (0, 0), (top, bottom), (left, right)])
    n, c, h, w = x.shape
    parts = x.reshape(n, c, h // bh, bh, w // bw, bw).transpose(3, 5, 0, 1, 2, 4)
    return parts.reshape(n * bh * bw, c, h // bh, w // bw)


@op("batch_to_space")
def batch_to_space(x: Array, block_shape: Array, crops: Array) -> Array:
    bh, bw = (int(b) for b in block_shape)
    (top, bottom), (left, right) = ((int(a), int(b)) for a, b in crops)
    n, c, h, w = x.shape
    parts = x.reshape(bh, bw, n // (bh * bw), c, h, w).transpose(2, 3, 4, 0, 5, 1)
    whole = parts.reshape(n // (bh * bw), c, h * bh, w * bw)
    return whole[:, :, top : h * bh - bottom, left : w * bw - right]


@op("expand_dims")
def expand_dims(x: Array, axes: Array) -> Array:
    return np.expand_dims(x, tuple(int(a) for a in axes))


@op("squeeze")
def squeeze(x: Array, axes: Array | None = None) -> Array:
    """Axes that are not of size 1 stay."""
    if axes is None:
        return np.asarray(np.squeeze(x))
    chosen = {int(a) % x.ndim for a in axes}
    return x.reshape([n for i, n in enumerate(x.shape) if i not in chosen or n != 1])


def _reshaped(x: Array, sizes: list[int]) -> Array:
    if sizes.count(-1) == 1:
        known = math.prod(s for s in sizes if s != -1)
        if known == 0 or x.size % known:
            raise Undefined(f"shape {sizes} for {x.shape}")
        sizes = [x.size // known if s == -1 else s for s in sizes]
    if min(sizes, default=1) < 0 or math.prod(sizes) != x.size:
        raise Undefined(f"shape {sizes} for {x.shape}")
    return x.reshape(sizes)


@op("reshape")
def reshape(x: Array, shape: Array) -> Array:
    """0 takes the size from the same place, if the ranks are equal; -1 what is left."""
    sizes = [int(s) for s in shape]
    if 0 in sizes:
        if len(sizes) != x.ndim:
            raise Undefined(f"0 in shape {sizes} for rank {x.ndim} (before iOS 17)")
        sizes = [n if s == 0 else s for s, n in zip(sizes, x.shape, strict=True)]
    return _reshaped(x, sizes)


@op("reshape", since=17)
def reshape_from_the_right(x: Array, shape: Array) -> Array:
    """0 takes the size counted from the right, or 1 beyond x's rank; -1 what is left."""
    sizes = [int(s) for s in shape]
    shift = len(sizes) - x.ndim
    sizes = [
        s if s != 0 else (x.shape[i - shift] if i >= shift else 1) for i, s in enumerate(sizes)
    ]
    return _reshaped(x, sizes)


@op("reshape_like", since=16)
def reshape_like(
    x: Array,
    ref_tensors: list[Array],
    begins: list[Array],
    ends: list[Array],
    end_masks: list[Array],
) -> Array:
    sizes: list[int] = []
    for ref, begin, end, open_end in zip(ref_tensors, begins, ends, end_masks, strict=True):
        sizes += ref.shape[int(begin) : None if open_end else int(end)]
    return _reshaped(x, sizes)


@op("flatten2d")
def flatten2d(x: Array, axis: Array | int = 1) -> Array:
    at = int(axis) + (x.ndim if int(axis) < 0 else 0)
    return x.reshape(math.prod(x.shape[:at]), math.prod(x.shape[at:]))


@op("transpose")
def transpose(x: Array, perm: Array) -> Array:
    return x.transpose([int(p) for p in perm])


@op("reverse")
def reverse(x: Array, axes: Array | None = None) -> Array:
    return np.flip(x, None if axes is None else tuple(int(a) for a in axes))


@op("reverse_sequence")
def reverse_sequence(
    x: Array, lengths: Array, seq_axis: Array | int = 0, batch_axis: Array | int = 0
) -> Array:
    """The first lengths[i] elements along seq_axis, for the i-th slice of batch_axis."""
    result = x.copy()
    target = np.moveaxis(result, (int(batch_axis), int(seq_axis)), (0, 1))
    source = np.moveaxis(x, (int(batch_axis), int(seq_axis)), (0, 1))
    for i, length in enumerate(int(n) for n in lengths):
        if not 0 <= length <= source.shape[1]:
            raise Undefined(f"length {length} of {source.shape[1]}")
        target[i, :length] = source[i, :length][::-1]
    return result


def _slices(
    shape: tuple[int, ...],
    begin: Array,
    end: Array,
    stride: Any,
    begin_mask: Any,
    end_mask: Any,
    squeeze_mask: Any,
) -> tuple[int | slice, ...]:
    """numpy's meaning; a masked begin or end is open, a squeezed axis is an index."""
    rank = len(shape)
    if len(begin) != rank or len(end) != rank:
        raise Undefined(f"{len(begin)} begins and {len(end)} ends for rank {rank}")

    def flags(mask: Any) -> list[bool]:
        return [False] * rank if mask is None else [bool(m) for m in mask]

    steps = [1] * rank if stride is None else [int(s) for s in stride]
    first_open, last_open, alone = flags(begin_mask), flags(end_mask), flags(squeeze_mask)
    where: list[int | slice] = []
    for i in range(rank):
        if alone[i]:
            where.append(0 if first_open[i] else int(begin[i]))
        elif steps[i] == 0:
            raise Undefined("stride 0")
        else:
            first = None if first_open[i] else int(begin[i])
            where.append(slice(first, None if last_open[i] else int(end[i]), steps[i]))
    return tuple(where)


@op("slice_by_index")
def slice_by_index(
    x: Array,
    begin: Array,
    end: Array,
    stride: Array | None = None,
    begin_mask: Array | None = None,
    end_mask: Array | None = None,
    squeeze_mask: Array | None = None,
) -> Array:
    masks = (begin_mask, end_mask, squeeze_mask)
    return np.asarray(x[_slices(x.shape, begin, end, stride, *masks)])


@op("slice_update", since=18)
def slice_update(
    x: Array,
    update: Array,
    begin: Array,
    end: Array,
    stride: Array | None = None,
    begin_mask: Array | None = None,
    end_mask: Array | None = None,
    squeeze_mask: Array | None = None,
) -> Array:
    masks = (begin_mask, end_mask, squeeze_mask)
    where = _slices(x.shape, begin, end, stride, *masks)
    if x[where].shape != update.shape:
        raise Undefined(f"update {update.shape} for a slice {x[where].shape}")
    result = x.copy()
    result[where] = update
    return result


@op("slice_by_size")
def slice_by_size(x: Array, begin: Array, size: Array) -> Array:
    where = []
    for n, first, count in zip(x.shape, begin, size, strict=True):
        start = int(first) + (n if int(first) < 0 else 0)
        stop = n if int(count) == -1 else start + int(count)
        if not 0 <= start <= stop <= n:
            raise Undefined(f"{int(count)} elements from {int(first)} of {n}")
        where.append(slice(start, stop))
    return x[tuple(where)]


@op("sliding_windows")
def sliding_windows(x: Array, axis: Array, size: Array, stride: Array | int = 1) -> Array:
    """[*a, d, *b] -> [*a, windows, size, *b]"""
    at = int(axis) % x.ndim
    view = np.lib.stride_tricks.sliding_window_view(x, int(size), axis=at)
    steps = view[(slice(None),) * at + (slice(None, None, int(stride)),)]
    return np.moveaxis(steps, -1, at + 1)
