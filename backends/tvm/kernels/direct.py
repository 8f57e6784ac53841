"""The direct convolution: a tile of output pixels x blocks of output channels in registers.

Reduction loops (block of input channels, taps, channel) stand around the tile; an input value is
broadcast against vectors of weights. Nothing is padded: taps outside the input are skipped, by loop
bounds on the outer axes and by separate code for the edge tiles of the innermost one.
Georganas et al., "Anatomy of high-performance deep learning convolutions on SIMD architectures", 2018.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from effc.backends.tvm.isa import Isa
from effc.backends.tvm.kernels.axes import Axis, Tile, merge, tile_axis
from effc.backends.tvm.kernels.blocking import FLOATS, Rule, Run, choose, chunk_runs, costs
from effc.backends.tvm.kernels.choice import Blocking
from effc.backends.tvm.kernels.loops import spatial_strides
from effc.backends.tvm.layout import TensorType

Expr = Any
Stmt = Any
VARIANTS = 8  # kinds of edge tiles that get code of their own


@dataclass(frozen=True)
class Phase:
    """One convolution: its axes, and how they are cut."""

    axes: tuple[Axis, ...]  # as given, one per spatial axis
    walked: tuple[Axis, ...]  # pointwise axes merged
    tiles: tuple[Tile, ...]  # of the innermost walked axis
    chunks: tuple[Run, ...]  # of the output blocks of one group
    group_tiles: int  # tiles in a task
    stationary: bool  # whether tasks with the same weights are neighbours
    dynamic: bool  # tiles of one pixel with dynamic bounds on every axis
    unroll: int | None = None  # input channels in the innermost body; None: what it holds

    @property
    def taps(self) -> int:
        return math.prod(len(a.taps) for a in self.axes)

    @property
    def rows(self) -> int:
        return math.prod(a.count for a in self.walked[:-1])

    @property
    def segments(self) -> int:
        return -(-sum(t.tiles for t in self.tiles) // self.group_tiles)

    @property
    def parts(self) -> int:
        return sum(r.count for r in self.chunks)


@dataclass(frozen=True)
class Source:
    """Where input values lie: element offsets, `image(n)` of an image and strides of the rest."""

    tensor: TensorType
    channel: int  # between channels of a block
    block: int  # between blocks of `lanes` channels
    spatial: tuple[int, ...]
    image: Callable[[Expr], Expr]


@dataclass(frozen=True)
class Direct:
    """A convolution over logical tensors [N, C, *spatial]; `phases` are its (phases of) axes.

    The input is blocked by the ISA's lanes or plain; so is the output.
    """

    isa: Isa
    input: TensorType
    output: TensorType
    phase_axes: tuple[tuple[Axis, ...], ...]
    groups: int
    bias: bool
    blocking: Blocking | None = field(default=None, kw_only=True)  # None: the rule's

    def __post_init__(self) -> None:
        for tensor in (self.input, self.output):
            if tensor.layout.block not in (0, self.isa.lanes):
                raise ValueError(
                    f"blocks of {tensor.layout.block} channels on vectors of {self.isa.lanes} lanes"
                )

    # Where the tensors lie; a matrix product differs from a convolution only here.

    @cached_property
    def source(self) -> Source:
        """The input's addresses."""
        physical = self.input.layout.physical_shape(self.input.shape)
        area, image = math.prod(self.input.shape[2:]), math.prod(physical[1:])
        channel = 1 if self.input.layout.block else area
        strides = tuple(spatial_strides(self.input))
        return Source(self.input, channel, area * self.lanes, strides, lambda n: n * image)

    @property
    def result(self) -> TensorType:
        """The output as it is stored."""
        return self.output

    @property
    def lane_axis(self) -> int:
        """The axis of the result along which lanes lie."""
        return 1

    def place(self, n: Expr, channel: Expr, spatial: Sequence[Expr]) -> list[Expr]:
        """The index of a result."""
        return [n, channel, *spatial]

    @property
    def second(self) -> TensorType | None:
        """The second operand, where it is no constant: panels of it are packed as weights are."""
        return None

    def pack_panel(self, n: Expr, block: Expr, run: Run, panel: Any, second: Any) -> Stmt:
        """Pack the blocks of a chunk out of `second`."""
        raise TypeError("a convolution has constant weights")

    # What a step of the reduction is: one channel of one tap, unless the instruction takes several.

    @property
    def quantum(self) -> int:
        """Input channels of a step."""
        return 1

    @property
    def width_bytes(self) -> int:
        """Bytes of weights that a lane takes in a step."""
        return 4

    @property
    def rule(self) -> Rule:
        """Which register tiles fit."""
        return FLOATS

    def walk(self, axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
        """The axes along which tiles and rows of tiles lie."""
        return merge(axes)

    def steps(self, axes: tuple[Axis, ...]) -> int:
        """Steps of a register tile."""
        return -(-self.channels // self.quantum) * math.prod(len(a.taps) for a in axes)

    @property
    def depth(self) -> int:
        """Channels in the packed weights: whole steps."""
        return -(-self.channels // self.quantum) * self.quantum

    # Channels: native groups, or for each output block the window of input channels that it touches.

    @property
    def lanes(self) -> int:
        return self.isa.lanes

    @cached_property
    def native(self) -> bool:
        """Whether no block of channels crosses a group."""
        c, oc = self.input.shape[1] // self.groups, self.output.shape[1] // self.groups
        aligned = not self.input.layout.block or c % self.lanes == 0
        return self.groups == 1 or (aligned and oc % self.lanes == 0)

    @property
    def split(self) -> int:
        """Groups that are separate loops."""
        return self.groups if self.native else 1

    @property
    def blocks(self) -> int:
        """Output blocks of a separate group."""
        return -(-(self.output.shape[1] // self.split) // self.lanes)

    @property
    def grain(self) -> int:
        """Input channels between two places where a window may start."""
        return self.lanes if self.input.layout.block else 1

    def window_start(self, block: Any, *, clamp: Callable[[Any, int], Any]) -> Any:
        """First input channel of the window of an output block; for ints and expressions."""
        c, oc = self.input.shape[1] // self.groups, self.output.shape[1] // self.groups
        start = (block * self.lanes) // oc * c // self.grain * self.grain
        channels = -(-self.input.shape[1] // self.grain) * self.grain
        whole = -(-self.channels // self.grain) * self.grain
        return clamp(start, channels - whole)

    @cached_property
    def channels(self) -> int:
        """Input channels that an output block reduces over."""
        channels, outputs = self.input.shape[1], self.output.shape[1]
        c, oc = channels // self.groups, outputs // self.groups
        if self.native:
            return c
        widest = 0
        for block in range(-(-outputs // self.lanes)):
            last = min(outputs, (block + 1) * self.lanes) - 1
            start = (block * self.lanes) // oc * c // self.grain * self.grain
            widest = max(widest, (last // oc + 1) * c - start)
        return min(-(-widest // self.grain) * self.grain, channels)

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        """The blocking of each phase."""
        return tuple(self._plan(axes) for axes in self.phase_axes)

    def tile_costs(self, axes: tuple[Axis, ...]) -> list[tuple[float, int, int]]:
        """Cycles, widest tile and number of chunks of every register tile that fits."""
        *outer, inner = self.walk(axes)
        steps = self.steps(axes)
        weights = self.split * self.blocks * self.lanes * steps * self.width_bytes
        pixels = self.input.bytes // self.input.shape[0]
        large = min(weights, pixels) > self.isa.l2 // 2
        found = costs(
            self.isa,
            {inner.count: math.prod(a.count for a in outer)},
            self.blocks,
            steps,
            most=None if self.native else 1,
            reread=pixels if large else 0,
            rule=self.rule,
        )
        return list(found)

    def _plan(self, axes: tuple[Axis, ...]) -> Phase:
        walked = self.walk(axes)
        inner, outer = walked[-1], walked[:-1]
        rows = math.prod(a.count for a in outer)
        steps = self.steps(axes)
        most = None if self.native else 1
        weights = self.split * self.blocks * self.lanes * steps * self.width_bytes
        pixels = self.input.bytes // self.input.shape[0]
        least = min(self.tile_costs(axes), key=lambda c: c[0], default=(0.0, 1, self.blocks))
        width, parts = least[1:]
        own = self.blocking or Blocking()
        width, parts = own.tile or width, own.chunks or parts
        tiles = tile_axis(inner, width)
        dynamic = len(tiles) > VARIANTS
        if dynamic:
            width, parts = choose(self.isa, {1: 1}, self.blocks, steps, most=most, rule=self.rule)
            tiles = (Tile(0, 1, inner.count, ((True,),) * len(inner.taps)),)
        last = (self.output.shape[1] - 1) % self.lanes + 1
        chunks = chunk_runs(self.blocks, parts, self.lanes, last)
        number = sum(t.tiles for t in tiles)
        chunk_bytes = chunks[0].width * self.lanes * steps * self.width_bytes
        stationary = not (
            weights <= self.isa.l1 // 2
            or (weights <= self.isa.l2 // 2 and pixels > self.isa.l2 // 2)
        )
        tasks = rows * self.split * parts * self.output.shape[0]
        group = number if tasks >= 64 else max(1, tasks * number // 128)
        if self.second:  # every task packs its panel
            group = number if tasks >= 8 else max(1, -(-number * tasks // 8))
        if not stationary and chunk_bytes <= self.isa.l1 // 2:
            group = max(group, min(number, 4))
        group = min(own.group or group, number)
        stationary = stationary if own.stationary is None else own.stationary
        return Phase(axes, walked, tiles, chunks, group, stationary, dynamic, own.unroll)

    # Weights

    def weight_elements(self, phase: Phase) -> int:
        """Elements of the packed weights of a phase."""
        return self.split * self.blocks * self.lanes * self.depth * phase.taps

    def pack(self, weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Weights [OC, IC / groups, *kernel] -> the kernel's flat constant.

        Order: phase, group, chunk of output blocks, block of input channels, taps, input channel,
        output block of the chunk, lane. Lanes past the output channels are zeros.
        """
        outputs = self.output.shape[1]
        c, oc = self.input.shape[1] // self.groups, outputs // self.groups
        dense = np.zeros(
            (self.split * self.blocks * self.lanes, self.channels, *weight.shape[2:]), weight.dtype
        )
        if self.native:
            dense[:outputs] = weight
        else:
            for o in range(outputs):
                start = self.window_start(o // self.lanes, clamp=min)
                at = o // oc * c - start
                dense[o, at : at + c] = weight[o]
        packed: list[npt.NDArray[Any]] = []
        for phase in self.phases:
            taken = dense
            for i, axis in enumerate(phase.axes):
                taken = np.take(taken, axis.taps, axis=2 + i)
            taken = taken.reshape(self.split, self.blocks, self.lanes, self.channels, phase.taps)
            for group in taken:
                for run in phase.chunks:
                    for k in range(run.count):
                        first = run.begin + k * run.width
                        packed.extend(self._pack_chunk(group[first : first + run.width]))
        return np.concatenate(packed) if packed else np.zeros(1, weight.dtype)

    def _pack_chunk(self, chunk: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """[block, lane, channel, tap] -> flat, one array per block of input channels."""
        moved = np.transpose(chunk, (2, 3, 0, 1))  # channel, tap, block, lane
        return [
            np.ascontiguousarray(np.swapaxes(moved[i : i + self.lanes], 0, 1)).ravel()
            for i in range(0, self.channels, self.lanes)
        ]
