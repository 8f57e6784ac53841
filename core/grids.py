"""What stands behind the values of a weight: integers times scales, or palettes of groups of channels.

Quantization that has been folded into floats is found again from the floats alone, bit for bit, so that
whoever stores constants needs no notes from whoever made them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from effc.core.coding import Array
from effc.core.storage import Grouped

_LEVELS = 255  # the largest integer: int8 is within 128, uint8 minus a zero point within 255
_BLOCKS = (256, 128, 64, 32, 16)  # in the order of memory; along an axis every length is tried
_LONGEST, _SHORTEST = 256, 8
_PROBED = 8  # elements of a group that are tried first
_SMALLEST = 64  # elements: less is not worth the search
_CHANNELS = (1, 2, 4, 8, 16, 32, 64)
_FEW = 256  # entries of a palette


def find_groups(array: Array) -> Grouped | None:
    """The integers and scales of a float32 array, or its groups of channels with few values each.

    The arrays of the result have the shape of `array`. None where neither makes it smaller.
    """
    if array.dtype != np.float32 or array.size < _SMALLEST or not np.isfinite(array).all():
        return None
    negative_zero = (array == 0) & np.signbit(array)
    if negative_zero.any():
        return None
    return _find_grid(array) or _find_palettes(array)


def _find_grid(array: Array) -> Grouped | None:
    for axis, block in _groupings(array.shape):
        rows = _rows(array, axis, block)
        if 8 * len(rows) > array.size or np.isnan(_scales(rows[:: -(-len(rows) // 8)])).any():
            continue
        scales = _scales(rows)
        if np.isnan(scales).any():
            continue
        ids = _rows(np.arange(array.size).reshape(array.shape), axis, block)
        groups, levels = np.empty(array.size, np.int32), np.empty(array.size, np.int32)
        groups[ids] = np.arange(len(rows), dtype=np.int32)[:, None]
        levels[ids] = np.rint(rows / scales[:, None])
        return Grouped(groups.reshape(array.shape), levels.reshape(array.shape), scales)
    return None


def _groupings(shape: tuple[int, ...]) -> Iterator[tuple[int | None, int]]:
    """Axis and block of the groups that quantizers make; block 0 is all of one index of the axis.

    Without an axis, blocks lie in the order of memory.
    """
    yield None, int(np.prod(shape))
    for axis in dict.fromkeys((0, len(shape) - 1, min(1, len(shape) - 1))):
        if shape[axis] > 1 and len(shape) > 1:
            yield axis, 0
    if len(shape) < 2:
        return
    for axis, extent in enumerate(shape):
        for block in range(min(extent, _LONGEST), _SHORTEST - 1, -1):
            if extent % block == 0:
                yield axis, block
    behind = int(np.prod(shape[1:]))
    for block in _BLOCKS:
        if len(shape) > 2 and behind > block and behind % block == 0:
            yield None, block


def _rows(array: Array, axis: int | None, block: int) -> Array:
    """[groups, elements of a group]."""
    if axis is None:
        return array.reshape(-1, block)
    if block == 0:
        return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
    return np.moveaxis(array, axis, -1).reshape(-1, block)


def _scales(rows: Array) -> Array:
    """For each row the largest float32 s with row = float32(k) * s for integers k; NaN if there is none."""
    magnitudes = np.abs(rows)
    top = magnitudes.max(axis=1)
    probed = min(_PROBED, rows.shape[1])
    # the largest, the smallest that are not zero, and some between
    filled = np.sort(np.where(magnitudes == 0, top[:, None], magnitudes), axis=1)
    probes = filled[:, np.linspace(0, rows.shape[1] - 1, probed).astype(int)]
    scales = np.where(top == 0, np.float32(1), np.float32(np.nan)).astype(np.float32)
    for k in range(1, _LEVELS + 1):
        left = np.flatnonzero(np.isnan(scales))
        if not left.size:
            break
        s = top[left] / np.float32(k)
        if not (s > np.finfo(np.float32).tiny).all():
            return scales
        ratio = probes[left] / s[:, None]
        near = (np.abs(ratio - np.rint(ratio)) <= 1e-4).all(axis=1)
        left, s = left[near], s[near]
        down, up = np.nextafter(s, np.float32(0)), np.nextafter(s, np.float32(np.inf))
        for candidate in (s, down, up, np.nextafter(down, np.float32(0))):
            if left.size:
                row = rows[left]
                again = np.rint(row / candidate[:, None]) * candidate[:, None]
                fits = (again == row).all(axis=1) & np.isnan(scales[left])
                scales[left[fits]] = candidate[fits]
    return scales


def _find_palettes(array: Array) -> Grouped | None:
    """Groups of adjacent channels (of the first axis, or the last of a matrix) with few values each."""
    bits = array.view(np.uint32)
    if np.unique(bits).size <= _FEW // 8:
        return None  # one palette does
    best: tuple[float, Array] | None = None
    for axis in {0, 1} if array.ndim == 2 else {0}:
        channels = np.moveaxis(bits, axis, 0).reshape(array.shape[axis], -1)
        for g in _CHANNELS:
            if array.shape[axis] <= g or np.unique(channels[:g]).size > _FEW:
                break
            sizes = [np.unique(channels[i : i + g]).size for i in range(0, len(channels), g)]
            if max(sizes) > _FEW:
                break
            cost = 32.0 * sum(sizes) + array.size * np.log2(max(2, max(sizes)))
            if cost < 16 * array.size and (best is None or cost < best[0]):
                index = np.indices(array.shape, sparse=True)[axis] // g
                best = cost, np.broadcast_to(index, array.shape).astype(np.int32)
    return Grouped(best[1]) if best else None
