"""How integer convolutions and products are cut and packed: steps of four channels, folded zero points.

Inputs are bytes without their zero point, so sum (x - zero) w = sum x w - zero sum w, where the second sum is
over the taps inside the input. It is part of the bias: one row of biases for each way in which the
borders cut the taps ("classes"), a single one where nothing is cut or the zero point is 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import tirx

from effc.backends.tvm.kernels.axes import Axis
from effc.backends.tvm.kernels.direct import Direct, Source
from effc.backends.tvm.kernels.gemm import Product
from effc.backends.tvm.kernels.int8_dot import QUAD, arrange, weight_dtype
from effc.backends.tvm.kernels.loops import int32

Array = npt.NDArray[Any]
Expr = Any


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


class Integer(Direct):
    """What integers change in the plan of a direct convolution or product."""

    @property
    def quantum(self) -> int:
        """Four channels are one step."""
        return QUAD

    @property
    def width_bytes(self) -> int:
        """Four weights of a lane."""
        return QUAD * np.dtype(weight_dtype(self.isa)).itemsize

    @property
    def store_cycles(self) -> float:
        """Conversion, multiplication, bound, rounding, packing."""
        return 3.0

    @cached_property
    def reads_planes(self) -> bool:
        """Whether the input has planes of channels, which tasks interleave before they read them."""
        return False

    def _pack_chunk(self, chunk: Array) -> list[Array]:
        padded = np.pad(chunk, ((0, 0), (0, 0), (0, self.depth - self.channels), (0, 0)))
        moved = np.transpose(padded, (3, 2, 0, 1))  # tap, channel, block, lane
        taps, _, blocks, lanes = moved.shape
        packed = []
        for i in range(0, self.depth, self.lanes):
            part = moved[:, i : i + self.lanes]
            quads = part.reshape(taps, part.shape[1] // QUAD, QUAD, blocks, lanes)
            packed.append(arrange(np.moveaxis(quads, 2, -1), self.isa))
        return packed


class IntegerConv(Integer):
    """A convolution of [N, C, *spatial] in blocks of channels, or of at most four planes."""

    @cached_property
    def reads_planes(self) -> bool:
        """A plain input."""
        return not self.input.layout.block

    @cached_property
    def source(self) -> Source:
        """Blocked, or rows of four interleaved channels in scratch."""
        if not self.reads_planes:
            return Direct.source.func(self)
        axes = self.phase_axes[0]
        rows = [len(a.taps) for a in axes[:-1]]
        width = self.input.shape[-1] * QUAD
        spatial = [math.prod(rows[i + 1 :]) * width for i in range(len(rows))]
        return Source(self.input, 1, QUAD, (*spatial, QUAD), lambda n: int32(0))

    @property
    def scratch_bytes(self) -> int:
        """What one task interleaves."""
        axes = self.phase_axes[0]
        return math.prod(len(a.taps) for a in axes[:-1]) * self.input.shape[-1] * QUAD


class IntegerProduct(Integer, Product):
    """Rows of bytes times weights."""


def class_index(parts: Sequence[tuple[Border, Any, Any]]) -> Any:
    """The row of the bias table; `parts` are the axes' borders and lost taps, outermost first."""
    number: Any = 0
    for border, before, after in parts:
        number = number * border.classes + border.index(before, after)
    return tirx.const(number, "int32") if isinstance(number, int) else number
