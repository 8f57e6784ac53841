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
from effc.backends.tvm.kernels.int8_direct import (
    Border,
    Integer,
    IntegerConv,
    border_of,
    class_index,
)
from effc.backends.tvm.kernels.int8_dot import QUAD, dot, quad, read, weight_dtype, write
from effc.backends.tvm.kernels.int8_store import (
    Requantize,
    clamped,
    read_residual,
    real,
    rounded,
    store_neighbours,
)
from effc.backends.tvm.kernels.loops import bound, int32, tap_bounds
from effc.backends.tvm.kernels.store import parameter
from effc.backends.tvm.layout import TensorType
from effc.backends.tvm.program import Kernel

Expr = Any
Stmt = Any


def integer_kernel(
    direct: Integer, name: str, how: Requantize, zero_point: int, epilogue: Epilogue
) -> Kernel:
    """Params: output, input, weights, bias by class, multipliers, the residual (if any), the
    epilogue's operands."""
    if how.z is not None:
        epilogue = _after_residual(how.z, epilogue)
    return IntegerEmission(direct, name, epilogue, how=how, zero_point=zero_point).kernel()


def _after_residual(z: TensorType, epilogue: Epilogue) -> Epilogue:
    """The epilogue with the residual as its first operand, which the kernel itself reads."""
    apply = epilogue.apply
    if epilogue.identity:
        return replace(epilogue, operands=(z,))

    def rest(value: Expr, index: tuple[Expr, ...], loads: Any) -> Expr:
        return apply(value, index, loads[1:])

    return Epilogue((z, *epilogue.operands), rest, epilogue.dtype)


@dataclass
class IntegerEmission(Emission):
    """Replaces the start of a tile, its steps and its end."""

    direct: Integer
    how: Requantize = field(kw_only=True)
    zero_point: int = field(kw_only=True)  # of the input

    @property
    def signed(self) -> bool:
        """Whether the input is int8."""
        return self.direct.source.tensor.dtype == "int8"

    def __post_init__(self) -> None:
        self.borders = {
            id(axis): self._border(axis) for p in self.direct.phases for axis in p.walked
        }
        super().__post_init__()
        d = self.direct
        if d.reads_planes:
            assert isinstance(d, IntegerConv)
            self.scratch = d.scratch_bytes
            self.planes = self.x
            self.x = tir.buffer("rows", self.scratch, d.input.dtype)
            self.buffers.insert(0, self.x)

    def _border(self, axis: Axis) -> Border:
        unshifted = self.zero_point + 128 * self.signed == 0
        return Border(len(axis.taps), 0, 0, False) if unshifted else border_of(axis)

    def constants(self) -> dict[str, TensorType]:
        d = self.direct
        packed = sum(d.weight_elements(p) for p in d.phases)
        classes = math.prod(b.classes for b in self.borders.values())
        channels = d.split * d.blocks * d.lanes
        return {
            "w": TensorType((max(1, packed),), weight_dtype(d.isa)),
            "bias": TensorType((classes * channels,), "int32"),
            "m": TensorType((channels,), "float32"),
        }

    def registers(self) -> list[Any]:
        d = self.direct
        size = max(t.width * r.width for p in d.phases for t in p.tiles for r in p.chunks)
        self.acc = tir.local("acc", size * d.lanes, "int32")
        self.result = tir.local("result", d.lanes, "float32" if self.how.is_float else "int32")
        self.residual = tir.local("residual", d.lanes, "int32")
        names = [p.name for p in self.buffers]
        self.m = self.buffers[names.index("m")]
        self.z = self.buffers[names.index("e0")] if self.how.z is not None else None
        return [self.acc, self.result, self.residual]

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
            kind, byte = f"int32x{number}", f"uint8x{number}"
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
                stmts.append(
                    pixels(at + begin, to + QUAD * begin, max(number, 2) if rest > 1 else 1)
                )
                left -= number
        return tir.seq(*stmts)

    # a register tile

    def _initial(self, ctx: Context) -> list[Stmt]:
        stmts: list[Stmt] = []
        channels = self.direct.split * self.direct.blocks * self.lanes
        *outer, inner = ctx.phase.walked
        before: list[tuple[Border, Any, Any]] = []
        for axis, (lo, extent) in zip(outer, self.cut, strict=True):
            border = self.borders[id(axis)]
            if border.classes == 1:
                continue
            first = tirx.min(lo, int32(border.taps))
            before.append((border, first, int32(border.taps) - first - extent))
        border = self.borders[id(inner)]
        rows: dict[Any, Expr] = {}
        for i in range(ctx.tile.width):
            lost: tuple[Any, Any]
            if border.classes == 1:
                lost = (0, 0)
            elif ctx.phase.dynamic:
                lo, extent = tap_bounds(inner, ctx.position * inner.stride + inner.offset)
                first = tirx.min(lo, int32(border.taps))
                lost = (first, int32(border.taps) - first - extent)
            else:
                # the position of a tile whose pixels lose taps alike is as good as any
                lost = self._lost(ctx, inner, i)
            key = lost if isinstance(lost[0], int) else i
            if key not in rows:
                parts = [*before] if border.classes == 1 else [*before, (border, *lost)]
                row = class_index(parts) * channels
                rows[key] = bound(stmts, f"row{len(rows)}", row + ctx.block * self.lanes)
            for j in range(ctx.run.width):
                value = read(self.bias, rows[key] + j * self.lanes, self.lanes)
                at = (i * ctx.run.width + j) * self.lanes
                stmts.append(write(self.acc, value, at, self.lanes))
        return stmts

    def _lost(self, ctx: Context, inner: Axis, pixel: int) -> tuple[int, int]:
        valid = [row[pixel] for row in ctx.tile.valid]
        first = valid.index(True) if any(valid) else None
        if first is None:
            from effc.backends.tvm.kernels.int8_direct import lost_taps

            return lost_taps(inner, ctx.tile.begin + pixel)
        return first, len(valid) - first - sum(valid)

    def _steps(
        self, ctx: Context, x: Expr, w: Expr, channels: int, valid: tuple[bool, ...]
    ) -> Stmt:
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
        for i, inside in enumerate(valid):
            if not inside:
                continue
            word = quad(self.x, x + i * pixel_stride, count, signed=self.signed)
            for j in range(u):
                at = (i * u + j) * self.lanes
                total = read(self.acc, at, self.lanes)
                total = dot(isa, total, word, self.w, w + j * (QUAD * self.lanes))
                stmts.append(write(self.acc, total, at, self.lanes))
        return stmts

    def _final(self, ctx: Context) -> list[Stmt]:
        d, u = self.direct, ctx.run.width
        out = d.result
        plain = self.epilogue.identity or (
            len(self.epilogue.operands) == 1 and self.how.z is not None and self.epilogue.identity
        )
        stmts: list[Stmt] = []
        spread = ctx.phase.axes[-1].spread
        along_pixels = out.layout.block == self.lanes and spread == 1
        along_lanes = not out.layout.block and d.lane_axis == len(out.shape) - 1
        fast: list[tuple[int, int, int]] = []  # pixel, block, valid
        for j in range(u):
            valid = ctx.run.valid if j == u - 1 else self.lanes
            for i in range(ctx.tile.width):
                if plain and (along_pixels or (along_lanes and valid == self.lanes)):
                    fast.append((i, j, valid))
                else:
                    stmts += self._slow(ctx, i, j, valid)
        if along_lanes:
            fast.sort()
        groups: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
        for i, j, valid in fast:
            groups.setdefault((j, valid) if along_pixels else (i, valid), []).append((i, j, valid))
        for group in groups.values():
            vectors = [self._vector_of(ctx, i, j) for i, j, _ in group]
            stmts += store_neighbours(d.isa, self.how, self.out, vectors, group[0][2])
        return stmts

    def _index(self, ctx: Context, i: int, j: int) -> list[Expr]:
        channel = (ctx.block + j) * self.lanes
        return self.direct.place(ctx.value["n"], channel, self._spatial(ctx, i))

    def _vector_of(self, ctx: Context, i: int, j: int) -> tuple[Expr, Expr]:
        """The rounded (or real) result of a pixel and block, and where it goes."""
        d = self.direct
        out = d.result
        flat = self.store.analyzer.simplify(
            out.layout.flat_index(out.shape, self._index(ctx, i, j))
        )
        z = read_residual(d.isa, self.z, flat) if self.z is not None else None
        return self._value(ctx, i, j, z), flat

    def _value(self, ctx: Context, i: int, j: int, z: Expr | None) -> Expr:
        isa = self.direct.isa
        acc = read(self.acc, (i * ctx.run.width + j) * self.lanes, self.lanes)
        m = read(self.m, (ctx.block + j) * self.lanes, self.lanes)
        value = real(isa, self.how, acc, m, z)
        return value if self.how.is_float else rounded(isa, self.how, value)

    def _slow(self, ctx: Context, i: int, j: int, valid: int) -> list[Stmt]:
        """Through the epilogue, or into a tensor whose lanes lie apart."""
        how, isa = self.how, self.direct.isa
        index = self._index(ctx, i, j)
        stmts: list[Stmt] = []
        z = None
        if how.z is not None:
            axis = self.direct.lane_axis

            def fetch(lane: Expr) -> Stmt:
                at = tuple(v + lane if a == axis else v for a, v in enumerate(index))
                flat = how.z.layout.flat_index(how.z.shape, at)
                value = tirx.Cast("int32", tirx.BufferLoad(self.z, [flat]))
                return tirx.BufferStore(self.residual, value, [lane])

            stmts.append(write(self.residual, tirx.const(0, f"int32x{self.lanes}"), 0, self.lanes))
            stmts.append(tir.lanes(valid, fetch))
            z = read(self.residual, 0, self.lanes)
        value = self._value(ctx, i, j, z)
        if not how.is_float:
            value = clamped(isa, how, value)
        stmts.append(write(self.result, value, 0, self.lanes))

        def take(lane: Expr) -> Expr:
            found = tirx.BufferLoad(self.result, [lane])
            return found if how.is_float else tirx.Cast(how.dtype, found)

        # the epilogue may have another type; a lane past the channels is no zero here
        self.store.clean = False
        stmts.append(self.store.vector(take, index, valid))
        return stmts
