"""Depthwise convolution: every lane is a channel, so it is vector FMAs on the blocked layout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from tvm import tirx

from effc.backends.tvm import tir
from effc.backends.tvm.isa import Isa
from effc.backends.tvm.kernels.axes import Axis, Tile, tile_axis
from effc.backends.tvm.kernels.choice import Blocking
from effc.backends.tvm.kernels.epilogue import Epilogue
from effc.backends.tvm.kernels.loops import (
    bound,
    decode,
    int32,
    load,
    spatial_strides,
    tap_bounds,
    vector,
)
from effc.backends.tvm.kernels.store import Store, parameter
from effc.backends.tvm.layout import TensorType
from effc.backends.tvm.program import Kernel

Expr = Any
Stmt = Any
VARIANTS = 8
TASKS = 128  # enough for any number of threads


def pack_depthwise(weight: npt.NDArray[Any], isa: Isa) -> npt.NDArray[Any]:
    """[C, 1, *kernel] -> [ceil(C / lanes), *kernel, lanes], zeros past C."""
    channels = weight.shape[0]
    flat = weight.reshape(channels, -1)
    flat = np.pad(flat, ((0, -channels % isa.lanes), (0, 0)))
    blocks = flat.reshape(-1, isa.lanes, flat.shape[1])
    return np.ascontiguousarray(np.swapaxes(blocks, 1, 2)).ravel()


def widest_tile(isa: Isa, axis: Axis) -> int:
    """Pixels whose accumulators and input row stay in registers."""
    best = 1
    for width in range(1, isa.registers):
        if width + len(positions(axis, width)) + 2 <= isa.registers:
            best = width
    if best < 6:  # the input row doesn't fit: FMAs read it from memory
        best = min(12, isa.registers - 4)
    return best


def task_rows(rows: int, planes: int) -> int:
    """Rows of a task, where each of `planes` (images x blocks of channels) has `rows`."""
    return -(-rows // min(rows, max(1, TASKS // planes)))


def positions(axis: Axis, width: int) -> list[int]:
    """Distinct input positions of `width` adjacent outputs, relative to tap 0 of the first."""
    pairs = ((i, j) for i in range(width) for j in range(len(axis.taps)))
    return sorted({i * axis.stride + j * axis.step for i, j in pairs})


@dataclass
class Depthwise:
    """Emits the kernel. Params: output, input, weights, bias (if any), the epilogue's operands.

    Input and output are blocked by the ISA's lanes and have the same channels.
    """

    isa: Isa
    input: TensorType
    output: TensorType
    axes: tuple[Axis, ...]
    bias: bool
    name: str
    epilogue: Epilogue
    blocking: Blocking | None = field(default=None, kw_only=True)  # None: the rule's
    buffers: list[Any] = field(default_factory=list, init=False)

    weighted: ClassVar[bool] = True  # pooling has no weights
    number: str = field(default="float32", init=False)  # what is added up

    def fetch(self, value: Expr) -> Expr:
        """An element of the input as a number that is added up."""
        return value

    def start(self) -> Expr:
        """What the reduction starts with, where there is no bias."""
        return tirx.const(0.0, "float32")

    def combine(self, total: Expr, value: Expr, weight: Expr | None) -> Expr:
        """One step of the reduction."""
        return total + value * weight

    def final(self, total: Expr, places: Sequence[Expr]) -> Expr:
        """The result at the output position `places`."""
        return total

    def kernel(self) -> Kernel:
        """Tasks are image x block of channels x group of rows."""
        self.lanes = lanes = self.isa.lanes if self.output.layout.block else 1
        n, channels = self.output.shape[:2]
        self.blocks = -(-channels // lanes)
        taps = math.prod(len(a.taps) for a in self.axes)
        params = [self.output, self.input]
        names = ["out", "x"]
        if self.weighted:
            params.append(TensorType((self.blocks * taps * lanes,), "float32"))
            names.append("w")
        if self.bias:
            params.append(TensorType((self.blocks * lanes,), "float32"))
            names.append("bias")
        first = len(params)
        params += self.epilogue.operands
        names += [f"e{i}" for i in range(len(self.epilogue.operands))]
        self.buffers = [parameter(a, t) for a, t in zip(names, params, strict=True)]
        self.store = Store(
            self.output,
            self.buffers[0],
            self.epilogue,
            self.buffers[first:],
            lanes,
            1,
            clean=self.weighted,
        )
        inner = self.axes[-1]
        own = self.blocking or Blocking()
        self.tiles = tile_axis(inner, own.tile or widest_tile(self.isa, inner))
        self.dynamic = len(self.tiles) > VARIANTS
        if self.dynamic:
            self.tiles = (Tile(0, 1, inner.count, ((True,),) * len(inner.taps)),)
        width = max(t.width for t in self.tiles)
        self.reuse = len(positions(inner, width)) + width + 2 <= self.isa.registers
        self.acc = tir.local("acc", width * lanes, self.number)
        self.wv = tir.local("wv", lanes, self.number)
        self.iv = tir.local("iv", len(positions(inner, width)) * lanes, self.number)
        rows = math.prod(a.count for a in self.axes[:-1])
        self.rows = rows
        self.piece = min(own.group or task_rows(rows, n * self.blocks), rows)
        pieces = -(-rows // self.piece)
        order = (("n", n), ("block", self.blocks), ("piece", pieces))

        def body(begin: Expr, end: Expr) -> Stmt:
            task = tirx.Var("task", "int32")
            return tirx.For(task, begin, end - begin, tir.SERIAL, self._task(task, order))

        func = tir.prim_func(self.name, self.buffers, body, [self.acc, self.wv, self.iv])
        macs = math.prod(self.output.shape) * taps
        return Kernel(self.name, func, n * self.blocks * pieces, tuple(params), 1, macs)

    def _task(self, task: Expr, order: Any) -> Stmt:
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
        lanes = self.lanes
        outer = self.axes[:-1]
        place = decode(row, [(f"y{i}", a.count) for i, a in enumerate(outer)], stmts)
        area = math.prod(self.input.shape[2:])
        taps = math.prod(len(a.taps) for a in self.axes)
        x0 = bound(stmts, "x0", (at["n"] * self.blocks + at["block"]) * (area * lanes))
        w0 = bound(stmts, "w0", at["block"] * (taps * lanes))
        bounds = []
        for i, axis in enumerate(outer):
            base = bound(stmts, f"base{i}", place[f"y{i}"] * axis.stride + axis.offset)
            lo, extent = tap_bounds(axis, base)
            if not isinstance(lo, int):
                lo, extent = bound(stmts, f"lo{i}", lo), bound(stmts, f"n{i}", extent)
            bounds.append((lo, extent, base))
        spot = [place[f"y{i}"] for i in range(len(outer))]
        for tile in self.tiles:

            def body(k: Expr, tile: Tile = tile) -> Stmt:
                position = k * tile.width + tile.begin
                return self._tile(at, spot, tile, position, x0, w0, bounds)

            if tile.tiles == 1:
                stmts.append(body(int32(0)))
            else:
                stmts.append(tir.loop("tile", tile.tiles, body))
        return tir.seq(*stmts)

    def _tile(
        self, at: Any, spot: list[Expr], tile: Tile, position: Expr, x0: Expr, w0: Expr, bounds: Any
    ) -> Stmt:
        lanes = self.lanes
        inner = self.axes[-1]
        strides = spatial_strides(self.input)
        stmts: list[Stmt] = []
        for i in range(tile.width):

            def init(lane: Expr, i: int = i) -> Stmt:
                value = self.start()
                if self.bias:
                    value = load(self.buffers[3], at["block"] * lanes + lane)
                return tirx.BufferStore(self.acc, value, [lane + i * lanes])

            stmts.append(vector(lanes, init))
        column = position * inner.stride + inner.offset

        def nest(i: int, x: Expr, w: Expr) -> Stmt:
            if i == len(bounds):
                return self._taps(tile, x + column * strides[-1], w, column)
            lo, extent, base = bounds[i]
            axis = self.axes[i]
            below = math.prod(len(a.taps) for a in self.axes[i + 1 :]) * lanes

            def tap(j: Expr) -> Stmt:
                return nest(i + 1, x + (base + j * axis.step) * strides[i], w + j * below)

            if isinstance(lo, int) and extent == 1:
                return tap(int32(0))
            return tir.loop(f"k{i}", extent, tap, begin=lo)

        stmts.append(nest(0, x0, w0))
        channels = self.output.shape[1]
        index = [at["n"], at["block"] * lanes, *spot]
        partial = channels % lanes

        def finish(valid: int) -> Stmt:
            return tir.seq(
                *(
                    self.store.vector(
                        lambda lane, i=i: self.final(
                            load(self.acc, lane + i * lanes), [*spot, position + i]
                        ),
                        [*index, position + i],
                        valid,
                    )
                    for i in range(tile.width)
                )
            )

        if partial and self.blocks > 1:
            last = at["block"] == self.blocks - 1
            stmts.append(tirx.IfThenElse(last, finish(partial), finish(lanes)))
        else:
            stmts.append(finish(partial or lanes))
        return tir.seq(*stmts)

    def _taps(self, tile: Tile, x: Expr, w: Expr, column: Expr) -> Stmt:
        """The FMAs of one row of taps."""
        lanes = self.lanes
        inner = self.axes[-1]
        step = spatial_strides(self.input)[-1]
        if self.dynamic:
            lo, extent = tap_bounds(inner, column)

            def one(j: Expr) -> Stmt:
                def fma(lane: Expr) -> Stmt:
                    value = self.fetch(load(self.buffers[1], x + j * (inner.step * step) + lane))
                    weight = load(self.buffers[2], w + j * lanes + lane) if self.weighted else None
                    total = self.combine(load(self.acc, lane), value, weight)
                    return tirx.BufferStore(self.acc, total, [lane])

                return vector(lanes, fma)

            return tir.loop("kx", extent, one, begin=lo)
        stmts: list[Stmt] = []
        xi, wi = bound(stmts, "xi", x), bound(stmts, "wi", w)
        pairs = [
            (j, i) for j in range(len(inner.taps)) for i in range(tile.width) if tile.valid[j][i]
        ]
        slots: dict[int, int] = {}
        last = -1
        for j, i in pairs:
            where = i * inner.stride + j * inner.step
            if j != last and self.weighted:

                def weight(lane: Expr, j: int = j) -> Stmt:
                    return tirx.BufferStore(
                        self.wv, load(self.buffers[2], wi + (j * lanes) + lane), [lane]
                    )

                stmts.append(vector(lanes, weight))
                last = j
            if self.reuse and where not in slots:
                slots[where] = len(slots)

                def fetch(lane: Expr, where: int = where) -> Stmt:
                    value = self.fetch(load(self.buffers[1], xi + (where * step) + lane))
                    return tirx.BufferStore(self.iv, value, [slots[where] * lanes + lane])

                stmts.append(vector(lanes, fetch))

            def fma(lane: Expr, i: int = i, where: int = where) -> Stmt:
                if self.reuse:
                    value = load(self.iv, slots[where] * lanes + lane)
                else:
                    value = self.fetch(load(self.buffers[1], xi + (where * step) + lane))
                weight = load(self.wv, lane) if self.weighted else None
                total = self.combine(load(self.acc, i * lanes + lane), value, weight)
                return tirx.BufferStore(self.acc, total, [i * lanes + lane])

            stmts.append(vector(lanes, fma))
        return tir.seq(*stmts) if pairs else tirx.Evaluate(int32(0))
