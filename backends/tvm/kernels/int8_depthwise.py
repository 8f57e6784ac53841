"""Integer depthwise convolution: every lane is a channel; four neighbouring pixels are one step.

Four pixels of a block are loaded as one vector and turned so that each lane holds four bytes of its
channel; a dot product with the weights that meet them is then up to four taps. The same turned vector
serves several outputs, with the weights shifted ("patterns"). Without VNNI, where a row is shorter than
four pixels, or where taps do not lie side by side, each tap is a multiply-add of float32: sums below
2^24 are exact there too. (Products of int16 cost twice the instructions; on AArch64, with `smlal`, half.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt
from tvm import tirx

from effc.backends.tvm import tir
from effc.backends.tvm.isa import Isa
from effc.backends.tvm.kernels.axes import Tile
from effc.backends.tvm.kernels.conv import ConvSpec
from effc.backends.tvm.kernels.depthwise import positions, task_rows
from effc.backends.tvm.kernels.epilogue import Epilogue
from effc.backends.tvm.kernels.int8_bias import borders_of, tile_rows
from effc.backends.tvm.kernels.int8_dot import (
    QUAD,
    dp,
    flips,
    is_arm,
    read,
    shift_of,
    smlal,
    weight_dtype,
    write,
)
from effc.backends.tvm.kernels.int8_quads import cover, depthwise_plan
from effc.backends.tvm.kernels.int8_store import IntegerStore, Item, Requantize, with_residual
from effc.backends.tvm.kernels.loops import bound, decode, int32, spatial_strides, tap_bounds
from effc.backends.tvm.kernels.store import Store, parameter
from effc.backends.tvm.layout import TensorType
from effc.backends.tvm.program import Kernel

Expr = Any
Stmt = Any
Array = npt.NDArray[Any]


@dataclass
class IntegerDepthwise:
    """Emits the kernel. Params: output, input, weights, biases, multipliers, the residual (if any), the
    epilogue's operands. Tasks are image x block of channels x group of rows."""

    isa: Isa
    spec: ConvSpec
    how: Requantize
    zero_point: int
    name: str
    epilogue: Epilogue
    buffers: list[Any] = field(default_factory=list, init=False)

    @property
    def flip(self) -> bool:
        """Whether bytes of the input are turned into the kind that a step takes."""
        return flips(self.isa, self.spec.input.dtype)

    def kernel(self) -> Kernel:
        """The kernel."""
        spec, isa, lanes = self.spec, self.isa, self.isa.lanes
        self.lanes = lanes
        self.plan = plan = depthwise_plan(spec, isa)
        self.borders = borders_of(plan.axes, shift_of(isa, spec.input.dtype, self.zero_point))
        classes = math.prod(b.classes for b in self.borders)
        n, channels = spec.output.shape[:2]
        self.blocks = blocks = -(-channels // lanes)
        taps = math.prod(len(a.taps) for a in plan.axes)
        self.row_weights = lanes * (
            len(plan.axes[-1].taps) if plan.patterns is None else QUAD * len(plan.patterns)
        )
        kind = weight_dtype(isa) if plan.patterns is not None else plan.tap_dtype
        epilogue = with_residual(self.how, self.epilogue)
        given = {
            "out": spec.output,
            "x": spec.input,
            "w": TensorType((max(1, blocks * plan.rows_of_taps * self.row_weights),), kind),
            "bias": TensorType((classes * blocks * lanes,), "int32"),
            "m": TensorType((blocks * lanes,), "float32"),
            **{f"e{i}": t for i, t in enumerate(epilogue.operands)},
        }
        named = {a: parameter(a, t) for a, t in given.items()}
        self.buffers = list(named.values())
        self.x, self.w, self.bias = (named[a] for a in ("x", "w", "bias"))
        width = max(t.width for t in plan.tiles)
        self.acc = tir.local("acc", width * lanes, "int32")
        self.turned = tir.local("turned", QUAD * lanes, "uint8")
        found = len(positions(plan.axes[-1], width))
        self.reuse = plan.patterns is None and found + width + 2 <= isa.registers
        self.wide = tir.local("wide", (found if self.reuse else 1) * lanes, plan.tap_dtype)
        self.sum_dtype = "int32" if is_arm(isa) else plan.tap_dtype
        self.sums = tir.local("sums", width * lanes, self.sum_dtype)
        store = Store(spec.output, named["out"], epilogue, self.buffers[5:], lanes, 1)
        residual = named.get("e0") if self.how.z is not None else None
        self.ends = IntegerStore(isa, self.how, store, self.acc, named["m"], residual)
        self.rows = rows = math.prod(a.count for a in plan.axes[:-1])
        own = spec.blocking.group if spec.blocking else None
        self.piece = min(own or task_rows(rows, n * blocks), rows)
        pieces = -(-rows // self.piece)
        order = (("n", n), ("block", blocks), ("piece", pieces))

        def body(begin: Expr, end: Expr) -> Stmt:
            task = tirx.Var("task", "int32")
            return tirx.For(task, begin, end - begin, tir.SERIAL, self._task(task, order))

        registers = [self.acc, self.sums, self.turned, self.wide, *self.ends.locals]
        func = tir.prim_func(self.name, self.buffers, body, registers)
        macs = math.prod(spec.output.shape) * taps
        return Kernel(self.name, func, n * blocks * pieces, tuple(given.values()), 1, macs)

    def _task(self, task: Expr, order: Sequence[tuple[str, int]]) -> Stmt:
        stmts: list[Stmt] = []
        at = decode(task, order, stmts)
        lo = at["piece"] * self.piece
        extent: Any = self.piece
        if self.rows % self.piece:
            extent = tirx.min(self.rows - lo, self.piece)
        stmts.append(tir.loop("row", extent, lambda r: self._row(at, lo + r)))
        return tir.seq(*stmts)

    def _row(self, at: Any, row: Expr) -> Stmt:
        """One row of outputs of one block of channels."""
        stmts: list[Stmt] = []
        outer = self.plan.axes[:-1]
        place = decode(row, [(f"y{i}", a.count) for i, a in enumerate(outer)], stmts)
        area = math.prod(self.spec.input.shape[2:])
        plane = (at["n"] * self.blocks + at["block"]) * (area * self.lanes)
        x0 = bound(stmts, "x0", plane)
        w0 = bound(stmts, "w0", at["block"] * (self.plan.rows_of_taps * self.row_weights))
        cut = []
        for i, axis in enumerate(outer):
            base = bound(stmts, f"base{i}", place[f"y{i}"] * axis.stride + axis.offset)
            lo, extent = tap_bounds(axis, base)
            if not isinstance(lo, int):
                lo, extent = bound(stmts, f"lo{i}", lo), bound(stmts, f"n{i}", extent)
            cut.append((lo, extent, base))
        spot = [place[f"y{i}"] for i in range(len(outer))]
        for tile in self.plan.tiles:

            def body(k: Expr, tile: Tile = tile) -> Stmt:
                position = k * tile.width + tile.begin
                return self._tile(at, spot, tile, position, x0, w0, cut)

            if tile.tiles == 1:
                stmts.append(body(int32(0)))
            else:
                stmts.append(tir.loop("tile", tile.tiles, body))
        return tir.seq(*stmts)

    def _tile(
        self,
        at: Any,
        spot: list[Expr],
        tile: Tile,
        position: Expr,
        x0: Expr,
        w0: Expr,
        cut: Sequence[tuple[Any, Any, Expr]],
    ) -> Stmt:
        lanes, axes = self.lanes, self.plan.axes
        inner = axes[-1]
        strides = spatial_strides(self.spec.input)
        stmts: list[Stmt] = []
        rows = tile_rows(
            stmts,
            axes,
            self.borders,
            [(lo, extent) for lo, extent, _ in cut],
            tile,
            position if self.plan.dynamic else None,
            self.blocks * lanes,
            at["block"] * lanes,
        )
        quads, kind = self.plan.patterns is not None, f"{self.sum_dtype}x{lanes}"
        for i, row in enumerate(rows):
            if quads:
                stmts.append(write(self.acc, read(self.bias, row, lanes), i * lanes, lanes))
            else:
                stmts.append(write(self.sums, tirx.const(0, kind), i * lanes, lanes))
        column = position * inner.stride + inner.offset

        def nest(i: int, x: Expr, w: Expr) -> Stmt:
            if i == len(cut):
                return self._taps(tile, x + column * strides[-1], w, column)
            lo, extent, base = cut[i]
            below = math.prod(len(a.taps) for a in axes[i + 1 : -1]) * self.row_weights

            def tap(j: Expr) -> Stmt:
                return nest(i + 1, x + (base + j * axes[i].step) * strides[i], w + j * below)

            if isinstance(lo, int) and extent == 1:
                return tap(int32(0))
            return tir.loop(f"k{i}", extent, tap, begin=lo)

        stmts.append(nest(0, x0, w0))
        for i, row in enumerate(() if quads else rows):
            total = tirx.Cast(f"int32x{lanes}", read(self.sums, i * lanes, lanes))
            stmts.append(write(self.acc, total + read(self.bias, row, lanes), i * lanes, lanes))
        index = [at["n"], at["block"] * lanes, *spot]
        items = [
            Item(i * lanes, at["block"] * lanes, [*index, position + i]) for i in range(tile.width)
        ]
        partial = self.spec.output.shape[1] % lanes

        def finish(valid: int) -> Stmt:
            return tir.seq(*self.ends.line(items, valid, neighbours=True))

        if partial and self.blocks > 1:
            last = at["block"] == self.blocks - 1
            stmts.append(tirx.IfThenElse(last, finish(partial), finish(lanes)))
        else:
            stmts.append(finish(partial or lanes))
        return tir.seq(*stmts)

    def _taps(self, tile: Tile, x: Expr, w: Expr, column: Expr) -> Stmt:
        """The steps of one row of taps."""
        stmts: list[Stmt] = []
        if self.plan.dynamic:
            inner = self.plan.axes[-1]
            lo, extent = tap_bounds(inner, column)
            pixel = inner.step * self.lanes

            def one(j: Expr) -> Stmt:
                value = self._widened(x + j * pixel)
                return self._single(value, 0, w + j * self.lanes)

            return tir.loop("kx", extent, one, begin=lo)
        xi, wi = bound(stmts, "xi", x), bound(stmts, "wi", w)
        stmts += (
            self._tap_by_tap(tile, xi, wi)
            if self.plan.patterns is None
            else self._quads(tile, xi, wi)
        )
        return tir.seq(*stmts)

    def _quads(self, tile: Tile, x: Expr, w: Expr) -> list[Stmt]:
        lanes, isa = self.lanes, self.isa
        assert self.plan.patterns is not None
        size = QUAD * lanes
        order = [pixel * lanes + lane for lane in range(lanes) for pixel in range(QUAD)]
        stmts = []
        for quads in cover(self.plan.axes[-1], tile) or ():
            four = tirx.reinterpret(f"uint8x{size}", read(self.x, x + quads.start * lanes, size))
            turned = tirx.Shuffle([four], [tirx.const(i, "int32") for i in order])
            if self.flip:
                turned = turned ^ tirx.const(128, f"uint8x{size}")
            stmts.append(write(self.turned, turned, 0, size))
            for i, pattern in quads.uses:
                at = w + self.plan.patterns.index(pattern) * size
                total, value = read(self.acc, i * lanes, lanes), read(self.turned, 0, size)
                value = tirx.reinterpret(f"int8x{size}", value)
                total = dp(isa, total, value, read(self.w, at, size))
                stmts.append(write(self.acc, total, i * lanes, lanes))
        return stmts

    def _tap_by_tap(self, tile: Tile, x: Expr, w: Expr) -> list[Stmt]:
        inner, lanes = self.plan.axes[-1], self.lanes
        slots: dict[int, int] = {}
        stmts = []
        for j in range(len(inner.taps)):
            for i in range(tile.width):
                if not tile.valid[j][i]:
                    continue
                where = i * inner.stride + j * inner.step
                value = self._widened(x + where * lanes)
                if self.reuse:
                    if where not in slots:
                        slots[where] = len(slots)
                        stmts.append(write(self.wide, value, slots[where] * lanes, lanes))
                    value = read(self.wide, slots[where] * lanes, lanes)
                stmts.append(self._single(value, i, w + j * lanes))
        return stmts

    def _widened(self, at: Expr) -> Expr:
        value = tirx.reinterpret(f"uint8x{self.lanes}", read(self.x, at, self.lanes))
        if self.flip:
            value = value ^ tirx.const(128, f"uint8x{self.lanes}")
        if is_arm(self.isa):
            signed = tirx.reinterpret(f"int8x{self.lanes}", value)
            return tirx.Cast(f"{self.plan.tap_dtype}x{self.lanes}", signed)
        wide = tirx.Cast(f"int32x{self.lanes}", value)
        return tirx.Cast(f"{self.plan.tap_dtype}x{self.lanes}", wide)

    def _single(self, value: Expr, pixel: int, w: Expr) -> Stmt:
        lanes = self.lanes
        total = read(self.sums, pixel * lanes, lanes)
        if is_arm(self.isa):
            total = smlal(total, value, read(self.w, w, lanes))
        else:
            total = total + value * read(self.w, w, lanes)
        return write(self.sums, total, pixel * lanes, lanes)
