"""How integer convolutions and products are cut and packed: a step of the reduction takes four channels."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from effc.backends.tvm.isa import Isa
from effc.backends.tvm.kernels.axes import Axis, merge
from effc.backends.tvm.kernels.blocking import Rule
from effc.backends.tvm.kernels.direct import Direct, Source
from effc.backends.tvm.kernels.gemm import Product
from effc.backends.tvm.kernels.int8_dot import QUAD, arrange, scheme, weight_dtype
from effc.backends.tvm.kernels.loops import int32

Array = npt.NDArray[Any]
Expr = Any


class IntegerRule(Rule):
    """Fewer accumulators than of floats: requantization and products of int16 need registers too."""

    def fits(self, isa: Isa, pixels: int, blocks: int) -> bool:
        """Measured: with 24 accumulators of 32 registers LLVM spills where tiles are short.

        Without VNNI there are two vectors of weights a block, and two halves of a pixel, which LLVM
        keeps beside products and a mask.
        """
        accumulators = pixels * blocks
        if scheme(isa) == "sdot":
            return accumulators + blocks + -(-pixels // 4) <= isa.registers - 2
        if scheme(isa) == "smlal":  # LLVM loads the weights of all four channels at once
            return accumulators + QUAD * blocks + 2 * -(-pixels // 4) <= isa.registers - 3
        if scheme(isa) == "madd" and (blocks > 2 or accumulators + 2 * blocks > isa.registers - 6):
            return False
        return accumulators + blocks <= isa.registers - (10 if isa.registers == 32 else 5)

    def step_cycles(self, isa: Isa, pixels: int, blocks: int) -> float:
        """One instruction an accumulator with VNNI; else two products, two sums, and halves of pixels."""
        if scheme(isa) in ("vnni", "sdot"):
            return pixels * blocks / 2
        if scheme(isa) == "smlal":
            return 2.0 * pixels * blocks
        return (4 * pixels * blocks + 2 * pixels) / 3

    def store_cycles(self, pixels: int, blocks: int) -> float:
        """Conversion, multiplication, bound and rounding of each; four, two or one are packed at once."""
        fours, rest = divmod(pixels, 4)
        return blocks * (8.0 * fours + (0.0, 5.0, 7.0, 11.0)[rest])


class RowRule(IntegerRule):
    """Tiles of rows with `sdot`: a vector of each."""

    def fits(self, isa: Isa, pixels: int, blocks: int) -> bool:
        """As of floats there."""
        return pixels * blocks + blocks + pixels <= isa.registers - 3


ROWS = RowRule()
INTEGERS = IntegerRule()
LONG = IntegerRule(body=24)  # a step of four instructions


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
    def rule(self) -> Rule:
        """Tiles of bytes."""
        return INTEGERS if scheme(self.isa) in ("vnni", "sdot") else LONG

    @property
    def output_channels(self) -> int:
        """Output channels with those that fill the last blocks."""
        return self.split * self.blocks * self.lanes

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

    def walk(self, axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
        """Rows that are interleaved stay rows."""
        return axes if self.reads_planes else merge(axes)

    @cached_property
    def source(self) -> Source:
        """Blocked, or rows of four interleaved channels in scratch."""
        if not self.reads_planes:
            return super().source
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

    @property
    def rule(self) -> Rule:
        """AArch64 keeps sixteen channels of each row in a register."""
        return ROWS if scheme(self.isa) == "sdot" else super().rule
