"""The TIR of a direct convolution or matrix product, as `direct.Direct` planned it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tvm import tirx

from effc.backends.tvm import tir
from effc.backends.tvm.kernels.axes import Axis, Tile
from effc.backends.tvm.kernels.blocking import Run
from effc.backends.tvm.kernels.direct import Direct, Phase
from effc.backends.tvm.kernels.epilogue import Epilogue
from effc.backends.tvm.kernels.loops import bound, decode, int32, tap_bounds, unflatten
from effc.backends.tvm.kernels.store import Store, parameter
from effc.backends.tvm.layout import TensorType
from effc.backends.tvm.program import Kernel

Expr = Any
Stmt = Any


def direct_kernel(direct: Direct, name: str, epilogue: Epilogue) -> Kernel:
    """Params: output, input, weights, bias (if any), the epilogue's operands."""
    return Emission(direct, name, epilogue).kernel()


@dataclass(frozen=True)
class Context:
    """Where a register tile stands."""

    phase: Phase
    run: Run
    tile: Tile
    value: Mapping[str, Expr]
    block: Expr
    w0: Expr
    x0: Expr
    outer: Sequence[tuple[Any, Any, Axis, Expr, int]]
    position: Expr


@dataclass
class Emission:
    """Emits one kernel; integer kernels replace single steps of it."""

    direct: Direct
    name: str
    epilogue: Epilogue
    params: list[TensorType] = field(default_factory=list)
    buffers: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        d = self.direct
        given = {"out": d.result, "x": d.source.tensor, **self.constants()}
        names, self.params = list(given), list(given.values())
        first = len(self.params)
        self.params += self.epilogue.operands
        names += [f"e{i}" for i in range(len(self.epilogue.operands))]
        self.buffers = [parameter(n, t) for n, t in zip(names, self.params, strict=True)]
        self.out, self.x, self.w = self.buffers[:3]
        self.bias = dict(zip(names, self.buffers, strict=True)).get("bias")
        operands = self.buffers[first:]
        self.store = Store(d.result, self.out, self.epilogue, operands, d.lanes, d.lane_axis)
        self.lanes = d.lanes
        self.scratch = 0
        if d.second:
            self.second = self.w
            self.w = self.panel()
            self.buffers.insert(0, self.w)
        self.locals = self.registers()

    def panel(self) -> Any:
        """The scratch into which a task packs columns of the second operand."""
        d = self.direct
        widest = max(r.width for p in d.phases for r in p.chunks)
        self.scratch = widest * d.lanes * d.channels * 4
        return tir.buffer("panel", self.scratch // 4, "float32")

    def fill_panel(self, n: Expr, block: Expr, run: Run) -> Stmt:
        """Pack the blocks of a chunk."""
        return self.direct.pack_panel(n, block, run, self.w, self.second)

    def constants(self) -> dict[str, TensorType]:
        """The packed weights (or the second operand) and what else `pack` makes."""
        d = self.direct
        packed = sum(d.weight_elements(p) for p in d.phases)
        found = {"w": d.second or TensorType((max(1, packed),), "float32")}
        if d.bias:
            found["bias"] = TensorType((d.split * d.blocks * d.lanes,), "float32")
        return found

    def registers(self) -> list[Any]:
        """The accumulators and the weights of a step."""
        phases = self.direct.phases
        size = max(t.width * r.width for p in phases for t in p.tiles for r in p.chunks)
        width = max(r.width for p in phases for r in p.chunks)
        self.acc = tir.local("acc", size * self.lanes, "float32")
        self.wv = tir.local("wv", width * self.lanes, "float32")
        return [self.acc, self.wv]

    def kernel(self) -> Kernel:
        d = self.direct
        n = d.output.shape[0]
        counts = [n * d.split * p.parts * p.rows * p.segments for p in d.phases]

        def body(begin: Expr, end: Expr) -> Stmt:
            stmts, first, weights = [], 0, 0
            for phase, count in zip(d.phases, counts, strict=True):
                lo = tirx.max(begin - first, 0) if first else begin
                hi = tirx.min(end - first, count) if len(counts) > 1 else end
                task = tirx.Var("task", "int32")
                stmts.append(
                    tirx.For(task, lo, hi - lo, tir.SERIAL, self._task(phase, task, weights))
                )
                first += count
                weights += d.weight_elements(phase)
            return tir.seq(*stmts)

        func = tir.prim_func(self.name, self.buffers, body, self.locals)
        oc = d.output.shape[1]
        taps = sum(math.prod(a.count * len(a.taps) for a in p.axes) for p in d.phases)
        macs = n * oc * (d.input.shape[1] // d.groups) * taps
        params = tuple(self.params)
        return Kernel(self.name, func, sum(counts), params, 1, macs, self.scratch)

    def _task(self, phase: Phase, task: Expr, weights: int) -> Stmt:
        """Decode the task; one branch per width of chunk."""
        d = self.direct
        where = [("group", d.split), ("chunk", phase.parts)]
        what = [("n", d.output.shape[0])]
        walk = [(f"y{i}", a.count) for i, a in enumerate(phase.walked[:-1])]
        walk.append(("segment", phase.segments))
        order = [*what, *where, *walk] if phase.stationary else [*what, *walk, *where]
        binds: list[Stmt] = []
        value = {**decode(task, order, binds), "zero": bound(binds, "zero", (task >> 31) & 1023)}
        branches = []
        for run in phase.chunks:
            branches.append((run, self._chunk(phase, run, value, weights)))
        stmt = branches[-1][1]
        for run, inner in reversed(branches[:-1]):
            stmt = tirx.IfThenElse(value["chunk"] < run.first + run.count, inner, stmt)
        return tir.seq(*binds, stmt)

    def _chunk(self, phase: Phase, run: Run, value: Mapping[str, Expr], weights: int) -> Stmt:
        """All tiles of a task with `run.width` output blocks."""
        d = self.direct
        binds: list[Stmt] = []
        block = value["chunk"] - run.first
        block = block * run.width + run.begin + value["group"] * d.blocks
        block = bound(binds, "block", block)
        steps = d.depth * phase.taps * self.lanes
        w0 = int32(0) if d.second else bound(binds, "w0", block * steps + weights)
        if d.second:
            binds.append(self.fill_panel(value["n"], block, run))
        if d.native:
            start = value["group"] * d.channels
        else:
            start = d.window_start(block, clamp=lambda a, b: tirx.min(a, int32(b)))
        if d.input.layout.block:
            start = start // self.lanes * d.source.block
        else:
            start = start * d.source.channel
        x0 = bound(binds, "x0", d.source.image(value["n"]) + start)
        outer: list[tuple[Expr, Expr, Axis, Expr, int]] = []
        for i, axis in enumerate(phase.walked[:-1]):
            o = value[f"y{i}"]
            base = bound(binds, f"base{i}", o * axis.stride + axis.offset)
            lo, extent = tap_bounds(axis, base)
            if not isinstance(lo, int):
                lo = bound(binds, f"lo{i}", lo)
                extent = bound(binds, f"n{i}", extent)
            outer.append((lo, extent, axis, base, d.source.spatial[i]))
        binds += self.ready(phase, value, outer)
        number = sum(t.tiles for t in phase.tiles)
        whole = phase.group_tiles >= number
        first = value["segment"] * phase.group_tiles
        stmts: list[Stmt] = []
        seen = 0
        for tile in phase.tiles:
            if whole:
                lo, extent = int32(0), int32(tile.tiles)
            else:
                lo = tirx.max(first - seen, 0)
                hi = tirx.min(first + phase.group_tiles - seen, tile.tiles)
                extent = hi - lo

            def body(k: Expr, tile: Tile = tile) -> Stmt:
                position = k * tile.width + tile.begin
                ctx = Context(phase, run, tile, value, block, w0, x0, outer, position)
                return self._tile(ctx)

            if whole and tile.tiles == 1:
                stmts.append(body(int32(0)))
            else:
                stmts.append(tir.loop("tile", extent, body, begin=lo))
            seen += tile.tiles
        return tir.seq(*binds, *stmts)

    def ready(
        self, phase: Phase, value: Mapping[str, Expr], outer: list[tuple[Any, Any, Axis, Expr, int]]
    ) -> list[Stmt]:
        """What a task does before its tiles; it may change where the outer taps are read."""
        return []

    def _tile(self, ctx: Context) -> Stmt:
        """Initialize, reduce, apply the epilogue and store one register tile."""
        stmts = [*self._initial(ctx), *self._reduction(ctx), *self._final(ctx)]
        return tir.seq(*stmts)

    def _vector(self, body: Callable[[Expr], Stmt]) -> Stmt:
        return tir.loop("l", self.lanes, body, tir.VECTORIZED)

    def _initial(self, ctx: Context) -> list[Stmt]:
        stmts = []
        for i in range(ctx.tile.width):
            for j in range(ctx.run.width):
                at = (i * ctx.run.width + j) * self.lanes

                def body(lane: Expr, at: int = at, j: int = j) -> Stmt:
                    value = tirx.const(0.0, "float32")
                    if self.bias is not None:
                        value = tirx.BufferLoad(self.bias, [(ctx.block + j) * self.lanes + lane])
                    return tirx.BufferStore(self.acc, value, [lane + at])

                stmts.append(self._vector(body))
        return stmts

    def _reduction(self, ctx: Context) -> list[Stmt]:
        d = self.direct
        if ctx.phase.taps == 0:
            return []
        full, rest = divmod(d.channels, self.lanes)
        stmts = []
        if full > 1:
            stmts.append(tir.loop("icb", full, lambda b: self._block(ctx, b, self.lanes)))
        elif full:
            stmts.append(self._block(ctx, int32(0), self.lanes))
        if rest:
            stmts.append(self._block(ctx, int32(full), rest))
        return stmts

    def _block(self, ctx: Context, icb: Expr, channels: int) -> Stmt:
        """Reduce over the taps and `channels` channels of input block `icb`."""
        source = self.direct.source
        width = ctx.run.width * self.lanes
        w = ctx.w0 + icb * (self.lanes * ctx.phase.taps * width)
        x = ctx.x0 + icb * source.block
        per_tap = -(-channels // self.direct.quantum) * self.direct.quantum * width
        inner = ctx.phase.walked[-1]
        taps_inner = len(inner.taps)
        s_x = source.spatial[-1]
        position = ctx.position * inner.stride + inner.offset

        def innermost(x: Expr, w: Expr) -> Stmt:
            x = x + position * s_x
            if ctx.phase.dynamic:
                lo, extent = tap_bounds(inner, position)
                every = tuple([True] * ctx.tile.width)

                def one(j: Expr) -> Stmt:
                    at = x + j * (inner.step * s_x)
                    return self._steps(ctx, at, w + j * per_tap, channels, every)

                return tir.loop("kx", extent, one, begin=lo)
            stmts = []
            j = 0
            while j < taps_inner:
                valid = ctx.tile.valid[j]
                k = j
                while k + 1 < taps_inner and ctx.tile.valid[k + 1] == valid:
                    k += 1
                if any(valid):

                    def tap(t: Expr, valid: tuple[bool, ...] = valid) -> Stmt:
                        at = x + t * (inner.step * s_x)
                        return self._steps(ctx, at, w + t * per_tap, channels, valid)

                    if k > j:
                        stmts.append(tir.loop("kx", k - j + 1, tap, begin=int32(j)))
                    else:
                        stmts.append(tap(int32(j)))
                j = k + 1
            return tir.seq(*stmts) if stmts else tirx.Evaluate(int32(0))

        def nest(i: int, x: Expr, w: Expr) -> Stmt:
            if i == len(ctx.outer):
                return innermost(x, w)
            lo, extent, axis, base, stride = ctx.outer[i]
            below = taps_inner * math.prod(len(a[2].taps) for a in ctx.outer[i + 1 :]) * per_tap

            def tap(j: Expr) -> Stmt:
                return nest(i + 1, x + (base + j * axis.step) * stride, w + j * below)

            if isinstance(lo, int) and extent == 1:
                return tap(int32(0))
            return tir.loop(f"k{i}", extent, tap, begin=lo)

        return nest(0, x, w)

    def _steps(
        self, ctx: Context, x: Expr, w: Expr, channels: int, valid: tuple[bool, ...]
    ) -> Stmt:
        """The FMAs of one tap: `channels` input channels from element `x`, weights from `w`."""
        d = self.direct
        inner = ctx.phase.walked[-1]
        q = d.quantum
        steps, s_c = -(-channels // q), d.source.channel * q
        s_p = inner.stride * d.source.spatial[-1]
        size = sum(valid) * ctx.run.width
        inside = all(all(v) for v in ctx.tile.valid)
        most = steps if inside or steps < 4 else steps // 2
        longest = ctx.phase.unroll or max(1, d.rule.body // max(size, 1))
        unroll = max(u for u in range(1, min(most, longest) + 1) if steps % u == 0)
        xv, wv = tirx.Var("xi", "int32"), tirx.Var("wi", "int32")

        def group(k: Expr) -> Stmt:
            stmts: list[Stmt] = [
                tirx.Bind(xv, x + k * (unroll * s_c)),
                tirx.Bind(wv, w + k * (unroll * ctx.run.width * self.lanes * q)),
            ]
            for c in range(unroll):
                stmts += self._step(
                    ctx, xv + c * s_c, s_p, wv + c * ctx.run.width * self.lanes * q, valid
                )
            return tir.seq(*stmts)

        if unroll == steps and (inside or q == 1):
            return group(int32(0))
        extent: Expr = int32(steps // unroll)
        if not inside:
            # Taps that stand one behind the other stay loops: unrolled, LLVM would keep the inputs
            # that they share in registers, and spill. It cannot tell that no task is negative.
            extent = extent + ctx.value["zero"]
        return tir.loop("ic", extent, group)

    def _step(
        self, ctx: Context, x: Expr, pixel_stride: int, w: Expr, valid: tuple[bool, ...]
    ) -> list[Stmt]:
        stmts = []
        u = ctx.run.width
        for j in range(u):

            def take(lane: Expr, j: int = j) -> Stmt:
                value = tirx.BufferLoad(self.w, [w + j * self.lanes + lane])
                return tirx.BufferStore(self.wv, value, [lane + j * self.lanes])

            stmts.append(self._vector(take))
        for i, inside in enumerate(valid):
            if not inside:
                continue
            for j in range(u):

                def fma(lane: Expr, i: int = i, j: int = j) -> Stmt:
                    at = (i * u + j) * self.lanes + lane
                    scalar = tirx.BufferLoad(self.x, [x + i * pixel_stride])
                    product = scalar * tirx.BufferLoad(self.wv, [j * self.lanes + lane])
                    total = tirx.BufferLoad(self.acc, [at]) + product
                    return tirx.BufferStore(self.acc, total, [at])

                stmts.append(self._vector(fma))
        return stmts

    def _final(self, ctx: Context) -> list[Stmt]:
        stmts = []
        for i in range(ctx.tile.width):
            for j in range(ctx.run.width):
                at = (i * ctx.run.width + j) * self.lanes
                last = j == ctx.run.width - 1
                valid = ctx.run.valid if last else self.lanes
                channel = (ctx.block + j) * self.lanes
                index = self.direct.place(ctx.value["n"], channel, self._spatial(ctx, i))

                def value(lane: Expr, at: int = at) -> Expr:
                    return tirx.BufferLoad(self.acc, [lane + at])

                stmts.append(self.store.vector(value, index, valid))
        return stmts

    def _spatial(self, ctx: Context, pixel: int) -> list[Expr]:
        """Logical output coordinates of a pixel of the tile."""
        phase = ctx.phase
        position = ctx.position + pixel
        if len(phase.walked) < len(phase.axes):
            return unflatten(position, self.direct.output.shape[2:])
        outer = [ctx.value[f"y{i}"] for i in range(len(phase.axes) - 1)]
        return [o * a.spread + a.first for o, a in zip([*outer, position], phase.axes, strict=True)]
