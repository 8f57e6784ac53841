"""Biases with the input's zero point folded in, exact at the borders.

Inputs are bytes without their zero point, so sum (x - zero) w = sum x w - zero sum w, where the second sum is
over the taps inside the input. It is part of the bias: one row of biases for each way in which the
borders cut the taps ("classes"), a single one where nothing is cut or the zero point is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import tirx

from effc.backends.tvm.kernels.axes import Axis, Tile
from effc.backends.tvm.kernels.loops import bound, int32, tap_bounds

Array = npt.NDArray[Any]
Expr = Any
Stmt = Any


@dataclass(frozen=True, slots=True)
class Border:
    """How many taps an output of one axis loses: the first `before` and the last `after` ones."""

    taps: int
    most_before: int
    most_after: int
    both: bool  # whether some output loses taps on both sides

    @property
    def classes(self) -> int:
        """Distinct numbers that `index` gives, at most."""
        if self.both:
            return (self.most_before + 1) * (self.most_after + 1)
        return self.most_before + self.most_after + 1

    def index(self, before: Any, after: Any) -> Any:
        """The class; works on integers and on expressions."""
        if self.both:
            return before * (self.most_after + 1) + after
        return before - after + self.most_after

    def inside(self, number: int) -> range:
        """The taps that are left in a class."""
        if self.both:
            before, after = divmod(number, self.most_after + 1)
        else:
            lost = number - self.most_after
            before, after = max(lost, 0), max(-lost, 0)
        return range(before, max(before, self.taps - after))


def lost_taps(axis: Axis, output: int) -> tuple[int, int]:
    """Taps before and behind those that read inside the input; all others read inside it."""
    base, taps = axis.reads(output, 0), len(axis.taps)
    low = min(max((axis.step - 1 - base) // axis.step, 0), taps)
    high = min((axis.size - base + axis.step - 1) // axis.step, taps)
    return low, taps - max(high, low)


def border_of(axis: Axis) -> Border:
    """The classes of an axis."""
    if axis.always_inside:
        return Border(len(axis.taps), 0, 0, False)
    pairs = {lost_taps(axis, o) for o in range(axis.count)}
    return Border(
        len(axis.taps),
        max(b for b, _ in pairs),
        max(a for _, a in pairs),
        any(b and a for b, a in pairs),
    )


def class_biases(
    borders: Sequence[Border], weight: Array, bias: Array, zero_point: int
) -> npt.NDArray[np.int32]:
    """[classes, OC]: bias - zero_point * (sum of the weights [OC, IC, *kernel] that are inside).

    int32 arithmetic wraps as the accumulators do; the complete sum is exact.
    """
    sums = weight.astype(np.int64).sum(axis=1)
    rows = []
    for numbers in product(*(range(b.classes) for b in borders)):
        inside = sums
        for b, number in zip(borders, numbers, strict=True):
            taps = b.inside(number)
            inside = inside[:, taps.start : taps.stop].sum(axis=1)
        rows.append(bias.astype(np.int64) - zero_point * inside)
    return np.stack(rows).astype(np.int32)  # wraps


def borders_of(axes: Sequence[Axis], zero_point: int) -> tuple[Border, ...]:
    """The classes of each axis, for an input with this zero point."""
    if zero_point == 0:
        return tuple(Border(len(a.taps), 0, 0, False) for a in axes)
    return tuple(border_of(a) for a in axes)


def pad_channels(table: Array, channels: int) -> Array:
    """[rows, OC] -> flat, with zeros up to `channels` in each row."""
    return np.ascontiguousarray(np.pad(table, ((0, 0), (0, channels - table.shape[1])))).ravel()


def tile_rows(
    stmts: list[Stmt],
    axes: Sequence[Axis],
    borders: Sequence[Border],
    cut: Sequence[tuple[Any, Any]],
    tile: Tile,
    position: Expr | None,
    channels: int,
    first: Expr,
) -> list[Expr]:
    """Where the biases of each pixel of a tile begin; definitions go to `stmts`.

    `cut` holds the first tap inside and the number of such taps for each outer axis; `position` is the
    innermost one's where validity is not known now. A row has `channels` biases, of which those from
    `first` on are wanted.
    """
    number: Any = 0
    for border, (lo, extent) in zip(borders, cut, strict=False):
        if border.classes > 1:
            before = tirx.min(lo, int32(border.taps))
            number = number * border.classes + border.index(before, border.taps - before - extent)
    inner, border = axes[-1], borders[-1]
    known: dict[Any, Expr] = {}
    rows = []
    for i in range(tile.width):
        lost: tuple[Any, Any] = (0, 0)
        if border.classes > 1 and position is not None:
            lo, extent = tap_bounds(inner, position * inner.stride + inner.offset)
            before = tirx.min(lo, int32(border.taps))
            lost = (before, border.taps - before - extent)
        elif border.classes > 1:
            lost = lost_taps(inner, tile.begin + i)
        key = i if position is not None else lost
        if key not in known:
            row = number * border.classes + border.index(*lost) if border.classes > 1 else number
            known[key] = bound(stmts, f"row{len(known)}", row * channels + first)
        rows.append(known[key])
    return rows
