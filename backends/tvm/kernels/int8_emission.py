"""The TIR of an integer convolution or product; what differs from `direct_emission`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tvm import tirx

from effc.backends.tvm import tir
from effc.backends.tvm.kernels.axes import Axis
from effc.backends.tvm.kernels.direct import Phase
from effc.backends.tvm.kernels.direct_emission import Context, Emission
from effc.backends.tvm.kernels.epilogue import Epilogue
from effc.backends.tvm.kernels.int8_bias import borders_of, tile_rows
from effc.backends.tvm.kernels.int8_direct import Integer, IntegerConv
from effc.backends.tvm.kernels.int8_dot import (
    QUAD,
    Part,
    dot,
    flips,
    is_arm,
    quad,
    quads_of_row,
    read,
    scheme,
    shift_of,
    vector_of_bytes,
    weight_dtype,
    write,
)
from effc.backends.tvm.kernels.int8_store import IntegerStore, Item, Requantize, with_residual
from effc.backends.tvm.kernels.loops import int32
from effc.backends.tvm.layout import TensorType
from effc.backends.tvm.program import Kernel

Expr = Any
Stmt = Any
ROW = 16  # channels of a vector of bytes


def integer_kernel(
    direct: Integer, name: str, how: Requantize, zero_point: int, epilogue: Epilogue
) -> Kernel:
    """Params: output, input, weights, bias by class, multipliers, the residual (if any), the
    epilogue's operands."""
    epilogue = with_residual(how, epilogue)
    return IntegerEmission(direct, name, epilogue, how=how, zero_point=zero_point).kernel()


@dataclass
class IntegerEmission(Emission):
    """Replaces the start of a tile, its steps and its end."""

    direct: Integer
    how: Requantize = field(kw_only=True)
    zero_point: int = field(kw_only=True)  # of the input

    @property
    def flip(self) -> bool:
        """Whether bytes of the input are turned into the kind that a step takes."""
        return flips(self.direct.isa, self.direct.source.tensor.dtype)

    @property
    def shift(self) -> int:
        """The zero point of the input as a step takes it."""
        return shift_of(self.direct.isa, self.direct.source.tensor.dtype, self.zero_point)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rows: dict[int, Part] = {}  # of the step that is emitted now
        d = self.direct
        if d.reads_planes:
            assert isinstance(d, IntegerConv)
            self.scratch = d.scratch_bytes
            self.planes = self.x
            self.x = tir.buffer("rows", self.scratch, d.input.dtype)
            self.buffers.insert(0, self.x)

    def constants(self) -> dict[str, TensorType]:
        d = self.direct
        packed = sum(d.weight_elements(p) for p in d.phases)
        classes = sum(self._classes(p) for p in d.phases)
        channels = d.output_channels
        return {
            "w": TensorType((max(1, packed),), weight_dtype(d.isa)),
            "bias": TensorType((classes * channels,), "int32"),
            "m": TensorType((channels,), "float32"),
        }

    def _classes(self, phase: Phase) -> int:
        """Rows of biases of a phase."""
        return math.prod(b.classes for b in borders_of(phase.walked, self.shift))

    def registers(self) -> list[Any]:
        d = self.direct
        size = max(t.width * r.width for p in d.phases for t in p.tiles for r in p.chunks)
        self.acc = tir.local("acc", size * d.lanes, "int32")
        named = {b.name: b for b in self.buffers}
        residual = named["e0"] if self.how.z is not None else None
        self.ends = IntegerStore(d.isa, self.how, self.store, self.acc, named["m"], residual)
        return [self.acc, *self.ends.locals]

    # what a task does first: interleave planes

    def ready(
        self, phase: Phase, value: Mapping[str, Expr], outer: list[tuple[Any, Any, Axis, Expr, int]]
    ) -> list[Stmt]:
        self.cut = [(lo, extent) for lo, extent, *_ in outer]
        d = self.direct
        if not d.reads_planes:
            return []
        area = math.prod(d.input.shape[2:])
        strides = [math.prod(d.input.shape[3 + i :]) for i in range(len(outer))]
        base = value["n"] * (d.input.shape[1] * area)

        def nest(i: int, at: Expr, to: Expr) -> Stmt:
            if i == len(outer):
                return self._interleave(at, to, area)
            lo, extent, axis, first, _ = outer[i]

            def tap(j: Expr) -> Stmt:
                row = (first + j * axis.step) * strides[i]
                return nest(i + 1, at + row, to + j * d.source.spatial[i])

            return tir.loop(f"r{i}", extent, tap, begin=lo)

        stmts = [nest(0, base, int32(0))]
        for i, (lo, extent, axis, _, stride) in enumerate(outer):  # rows lie tap by tap now
            outer[i] = (lo, extent, replace(axis, step=1), int32(0), stride)
        return stmts

    def _interleave(self, at: Expr, to: Expr, area: int) -> Stmt:
        """One row of planes as quads of channels."""
        d = self.direct
        width, lanes, channels = d.input.shape[-1], d.lanes, d.input.shape[1]

        def pixels(at: Expr, to: Expr, number: int) -> Stmt:
            vector = f"x{number}" if number > 1 else ""
            kind, byte = f"int32{vector}", f"uint8{vector}"
            word: Expr = None
            for c in range(channels):
                plane = tirx.reinterpret(byte, read(self.planes, at + c * area, number))
                part = tirx.Cast(kind, plane) << tirx.const(8 * c, kind)
                word = part if word is None else word | part
            packed = tirx.reinterpret(f"{d.input.dtype}x{QUAD * number}", word)
            return write(self.x, packed, to, QUAD * number)

        full, rest = divmod(width, lanes)
        stmts: list[Stmt] = []
        if full:
            stmts.append(
                tir.loop(
                    "px",
                    full,
                    lambda k: pixels(at + k * lanes, to + k * (QUAD * lanes), lanes),
                )
            )
        if rest and full:  # the last vector again, from further left
            stmts.append(pixels(at + (width - lanes), to + QUAD * (width - lanes), lanes))
        elif rest:
            left = rest
            while left:
                number = 1 << (left.bit_length() - 1)
                begin = rest - left
                stmts.append(pixels(at + begin, to + QUAD * begin, number))
                left -= number
        return tir.seq(*stmts)

    # a register tile

    def _reduction(self, ctx: Context) -> list[Stmt]:
        """Rows of channels with `sdot`: sixteen at a time, four elements of a vector.

        With `smlal` and several rows LLVM would widen all sixteen at once, and spill.
        """
        d = self.direct
        sixteens = d.channels // ROW
        beside = d.source.channel == 1 and d.source.block == QUAD == d.lanes
        ways = scheme(d.isa) == "sdot" or (is_arm(d.isa) and ctx.tile.width == 1)
        if not ways or not beside or ctx.phase.taps != 1 or not sixteens:
            return super()._reduction(ctx)
        stmts = [tir.loop("sixteen", sixteens, lambda i: self._block(ctx, i * (ROW // QUAD), ROW))]
        for first in range(sixteens * ROW, d.channels, QUAD):
            left = min(QUAD, d.channels - first)
            stmts.append(self._block(ctx, int32(first // QUAD), left))
        return stmts

    def _sixteen(self, ctx: Context, x: Expr, w: Expr, valid: tuple[bool, ...]) -> Stmt:
        stride = ctx.phase.walked[-1].stride * self.direct.source.spatial[-1]
        xi, wi = tirx.Var("xi", "int32"), tirx.Var("wi", "int32")
        stmts: list[Stmt] = [tirx.Bind(xi, x), tirx.Bind(wi, w)]
        rows = {
            i: vector_of_bytes(self.x, xi + i * stride, flip=self.flip)
            for i, v in enumerate(valid)
            if v
        }
        for c in range(ROW // QUAD):
            self.rows = {i: Part(vector, c) for i, vector in rows.items()}
            at = wi + c * (QUAD * ctx.run.width * self.lanes)
            stmts += self._step(ctx, xi + c * QUAD, stride, at, valid)
        self.rows = {}
        return tir.seq(*stmts)

    def _initial(self, ctx: Context) -> list[Stmt]:
        stmts: list[Stmt] = []
        axes, channels = ctx.phase.walked, self.direct.output_channels
        earlier = self.direct.phases[: self.direct.phases.index(ctx.phase)]
        first = ctx.block * self.lanes + channels * sum(self._classes(p) for p in earlier)
        rows = tile_rows(
            stmts,
            axes,
            borders_of(axes, self.shift),
            self.cut,
            ctx.tile,
            ctx.position if ctx.phase.dynamic else None,
            channels,
            first,
        )
        for i, row in enumerate(rows):
            for j in range(ctx.run.width):
                value = read(self.bias, row + j * self.lanes, self.lanes)
                at = (i * ctx.run.width + j) * self.lanes
                stmts.append(write(self.acc, value, at, self.lanes))
        return stmts

    def _steps(
        self, ctx: Context, x: Expr, w: Expr, channels: int, valid: tuple[bool, ...]
    ) -> Stmt:
        if channels == ROW and is_arm(self.direct.isa):
            return self._sixteen(ctx, x, w, valid)
        whole = channels // QUAD * QUAD
        if whole == channels or self.direct.input.layout.block or self.direct.reads_planes:
            return super()._steps(ctx, x, w, channels, valid)
        stmts = [] if not whole else [super()._steps(ctx, x, w, whole, valid)]
        w = w + whole * ctx.run.width * self.lanes
        stride = ctx.phase.walked[-1].stride * self.direct.source.spatial[-1]
        return tir.seq(*stmts, *self._step(ctx, x + whole, stride, w, valid, channels - whole))

    def _step(
        self,
        ctx: Context,
        x: Expr,
        pixel_stride: int,
        w: Expr,
        valid: tuple[bool, ...],
        count: int = QUAD,
    ) -> list[Stmt]:
        stmts = []
        u, isa = ctx.run.width, self.direct.isa
        words = self._words(x, pixel_stride, valid) if count == QUAD else {}
        for i, inside in enumerate(valid):
            if not inside:
                continue
            word: Any = words.get(i)
            if word is None:
                word = quad(self.x, x + i * pixel_stride, count, flip=self.flip)
            for j in range(u):
                at = (i * u + j) * self.lanes
                total = read(self.acc, at, self.lanes)
                total = dot(isa, total, word, self.w, w + j * (QUAD * self.lanes))
                stmts.append(write(self.acc, total, at, self.lanes))
        return stmts

    def _words(self, x: Expr, pixel_stride: int, valid: tuple[bool, ...]) -> dict[int, Part]:
        """The pixels that are read as parts of vectors."""
        if self.rows:
            return self.rows
        pixels = [i for i, inside in enumerate(valid) if inside]
        if not is_arm(self.direct.isa) or pixel_stride > 2 * QUAD:
            return {}
        offsets = [i * pixel_stride for i in pixels]
        found = quads_of_row(self.x, x, offsets, flip=self.flip) or {}
        return {i: found[i * pixel_stride] for i in pixels if found}

    def _final(self, ctx: Context) -> list[Stmt]:
        d, u, width = self.direct, ctx.run.width, ctx.tile.width
        along_pixels = d.result.layout.block > 0
        apart = ctx.phase.axes[-1].spread > 1  # pixels of a transposed convolution
        along_lanes = not d.result.layout.block and d.lane_axis == len(d.result.shape) - 1
        stmts: list[Stmt] = []
        for group in (range(u - 1), range(u - 1, u)):
            valid = self.lanes if group.stop < u else ctx.run.valid
            items = [[self._item(ctx, i, j) for j in group] for i in range(width)]
            if along_lanes:
                for line in items:
                    stmts += self.ends.line(line, valid, neighbours=valid == self.lanes)
            else:
                for column in zip(*items, strict=True):
                    for part in [[item] for item in column] if apart else [list(column)]:
                        stmts += self.ends.line(part, valid, neighbours=along_pixels)
        return stmts

    def _item(self, ctx: Context, i: int, j: int) -> Item:
        channel = (ctx.block + j) * self.lanes
        index = self.direct.place(ctx.value["n"], channel, self._spatial(ctx, i))
        return Item((i * ctx.run.width + j) * self.lanes, channel, index)
