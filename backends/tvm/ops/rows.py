"""Loops of kernels that see many elements: reductions and normalizations along some axes.

A tensor is seen as nested axes, each *kept* or *reduced*; neighbours of one kind are one axis. Every
combination of the kept axes is a task. The lanes of a vector lie along the innermost axis: along a
reduced one they are partial results that are combined at the end, along a kept one they are results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tvm import tirx

from effc.backends.tvm import tir
from effc.backends.tvm.ops.injective import unflatten

Expr = Any
Stmt = Any
Stat = Callable[[Expr], Expr]  # lane -> the result that this lane sees

UNROLL = 4  # independent accumulators: an addition takes 4 cycles


@dataclass(frozen=True, slots=True)
class Axis:
    reduced: bool
    extent: int
    stride: int


@dataclass(frozen=True, slots=True)
class Point:
    """Where a loop stands: flat offset in the tensor, coordinate on each reduced axis, vector lane."""

    offset: Expr
    reduced: tuple[Expr, ...]
    lane: Expr


def axes_of(shape: Sequence[int], reduced: Sequence[int], split: Sequence[int] = ()) -> list[Axis]:
    """The nested axes of a row-major `shape`; axes in `split` start an axis of their own."""
    found: list[Axis] = []
    stride = math.prod(shape)
    fresh = False
    for k, extent in enumerate(shape):
        stride //= max(extent, 1)
        fresh = fresh or k in split
        if extent == 1:
            continue
        if found and found[-1].reduced == (k in reduced) and not fresh:
            found[-1] = Axis(found[-1].reduced, found[-1].extent * extent, stride)
        else:
            found.append(Axis(k in reduced, extent, stride))
        fresh = False
    return found or [Axis(False, 1, 1)]


def pieces(extent: int, width: int) -> list[tuple[int, int, int]]:
    """(start, count, width): vectors that cover `extent` once, the rest in halving widths."""
    found = [(0, extent // width, width)] if extent >= width else []
    start = extent - extent % width
    while width > 1:
        width //= 2
        if extent - start >= width:
            found.append((start, 1, width))
            start += width
    return found


class Walk:
    """The loop nest of one tensor."""

    def __init__(self, axes: Sequence[Axis], lanes: int) -> None:
        self.axes = list(axes)
        self.lane_reduced = axes[-1].reduced
        self.kept = [a for a in axes if not a.reduced]
        self.reduced = [a for a in axes if a.reduced]
        self.lanes = lanes
        outer = self.kept if self.lane_reduced else self.kept[:-1]
        self.outer = [a.extent for a in outer]
        self.inner = axes[-1].extent
        self.tiles = pieces(self.inner, lanes)
        whole = self.inner // lanes
        self.per_row = 1 if self.lane_reduced else whole + (1 if self.inner % lanes else 0)
        self.tasks = math.prod(self.outer) * self.per_row
        self.count = math.prod(a.extent for a in self.reduced)

    def run(self, begin: Expr, end: Expr, body: Callable[[View], None]) -> Stmt:
        """Statements of tasks [begin, end); `body` describes the work of one."""
        return tir.loop("t", end - begin, lambda t: self._task(t, body), begin=begin)

    def _task(self, t: Expr, body: Callable[[View], None]) -> Stmt:
        row = t // self.per_row if self.per_row > 1 else t
        names, binds = [], []
        for extent, value in zip(self.outer, unflatten(row, self.outer), strict=True):
            v = tirx.Var("k", "int32")
            names.append(v if extent > 1 else 0)
            if extent > 1:
                binds.append(tirx.Bind(v, value))
        if self.lane_reduced:
            return tir.seq(*binds, self._view(names, None, self.lanes, body))
        main = [p for p in self.tiles if p[2] == self.lanes]
        rest = [p for p in self.tiles if p[2] != self.lanes]
        tails = [self._view(names, start, width, body) for start, _, width in rest]
        if not main:
            return tir.seq(*binds, *tails)
        tile = t % self.per_row
        vector = self._view(names, tile * self.lanes, self.lanes, body)
        if tails:
            return tir.seq(
                *binds, tirx.IfThenElse(tile < self.per_row - 1, vector, tir.seq(*tails))
            )
        return tir.seq(*binds, vector)

    def _view(
        self, names: Sequence[Expr], first: Expr | None, width: int, body: Callable[[View], None]
    ) -> Stmt:
        view = View(self, tuple(names), first, width)
        body(view)
        return tir.seq(*view.statements)


@dataclass(slots=True)
class View:
    """One task, or one vector of tasks: `width` lanes of the innermost kept axis from `first` on."""

    walk: Walk
    names: tuple[Expr, ...]
    first: Expr | None
    width: int
    statements: list[Stmt] = field(default_factory=list)

    def kept(self, lane: Expr) -> tuple[Expr, ...]:
        """Coordinates on the kept axes."""
        return self.names if self.first is None else (*self.names, self.first + lane)

    def kept_flat(self, lane: Expr) -> Expr:
        """Row-major position among the kept axes: the flat index of a reduction's output."""
        flat: Expr = 0
        for axis, i in zip(self.walk.kept, self.kept(lane), strict=True):
            flat = flat * axis.extent + i
        return flat

    def _base(self, lane: Expr) -> Expr:
        total: Expr = tirx.const(0, "int32")
        for axis, i in zip(self.walk.kept, self.kept(lane), strict=True):
            total = total + i * axis.stride
        return total

    def each(self, body: Callable[[Point], Stmt]) -> None:
        """Do `body` at every element."""
        self.statements.append(self._nest(lambda point, _slot, _width: body(point), 1))

    def finish(self, body: Callable[[Expr], Stmt]) -> None:
        """Do `body(lane)` once a result."""
        self.statements.append(tir.lanes(self.width if self.first is not None else 1, body))

    def reduce(
        self,
        dtype: str,
        start: Any,
        combine: Callable[[Expr, Expr], Expr],
        value: Callable[[Point], Expr],
        also: Callable[[Point, Expr], Stmt] | None = None,
    ) -> Stat:
        """Combine `value` over every element; `also(point, v)` may store it on the way."""
        inner = self.walk.reduced[-1].extent if self.walk.reduced else 1
        steps = inner // self.width if self.walk.lane_reduced else inner
        slots = UNROLL if steps >= 2 * UNROLL else 1
        width = self.width
        partial = tir.local("partial", slots * width, dtype)

        def zero(lane: Expr) -> Stmt:
            return tir.seq(
                *(
                    tirx.BufferStore(partial, tirx.const(start, dtype), [s * width + lane])
                    for s in range(slots)
                )
            )

        def step(point: Point, slot: int, _: int) -> Stmt:
            at = slot * width + point.lane
            v = value(point)
            if also is None:
                return tirx.BufferStore(partial, combine(tirx.BufferLoad(partial, [at]), v), [at])
            named: list[Expr] = []
            tir.let(v, lambda v: (named.append(v), v)[1])
            done = combine(tirx.BufferLoad(partial, [at]), named[0])
            return tir.seq(tirx.BufferStore(partial, done, [at]), also(point, named[0]))

        self.statements += [
            tirx.AllocBuffer(partial),
            tir.lanes(width, zero),
            self._nest(step, slots),
        ]

        def merge(into: int, other: int, extent: int) -> Stmt:
            def body(lane: Expr) -> Stmt:
                a, b = (tirx.BufferLoad(partial, [k + lane]) for k in (into, other))
                return tirx.BufferStore(partial, combine(a, b), [into + lane])

            return tir.lanes(extent, body)

        for s in range(1, slots):
            self.statements.append(merge(0, s * width, width))
        if not self.walk.lane_reduced:
            return lambda lane: tirx.BufferLoad(partial, [lane])
        half = width
        while half > 1:
            half //= 2
            self.statements.append(merge(0, half, half))
        return lambda lane: tirx.BufferLoad(partial, [0])

    def scalar(self, dtype: str, value: Callable[[Expr], Expr]) -> Stat:
        """A value computed once a result, from statistics."""
        width = self.width if self.first is not None else 1
        register = tir.local("stat", width, dtype)
        self.statements += [
            tirx.AllocBuffer(register),
            tir.lanes(width, lambda lane: tirx.BufferStore(register, value(lane), [lane])),
        ]
        if width == 1:
            return lambda lane: tirx.BufferLoad(register, [0])
        return lambda lane: tirx.BufferLoad(register, [lane])

    def _nest(self, body: Callable[[Point, int, int], Stmt], slots: int) -> Stmt:
        walk = self.walk
        names: list[Expr] = []

        def level(k: int) -> Stmt:
            if k == len(walk.reduced) - 1 or not walk.reduced:
                return self._innermost(tuple(names), body, slots)

            def inside(v: Expr) -> Stmt:
                names.append(v)
                stmt = level(k + 1)
                names.pop()
                return stmt

            return tir.loop("r", walk.reduced[k].extent, inside)

        return level(0)

    def _point(self, outer: tuple[Expr, ...], inner: Expr, lane: Expr) -> Point:
        reduced = (*outer, inner) if self.walk.reduced else ()
        offset = self._base(0 if self.first is None else lane)
        for axis, i in zip(self.walk.reduced, reduced, strict=True):
            offset = offset + i * axis.stride
        return Point(offset, reduced, lane)

    def _innermost(
        self, outer: tuple[Expr, ...], body: Callable[[Point, int, int], Stmt], slots: int
    ) -> Stmt:
        walk = self.walk
        if not walk.reduced:
            return tir.lanes(self.width, lambda lane: body(self._point((), 0, lane), 0, self.width))

        def vector(start: Expr, width: int, slot: int) -> Stmt:
            if walk.lane_reduced:
                return tir.lanes(
                    width, lambda lane: body(self._point(outer, start + lane, lane), slot, width)
                )
            return tir.lanes(width, lambda lane: body(self._point(outer, start, lane), slot, width))

        stmts = []
        if walk.lane_reduced:
            parts = pieces(walk.reduced[-1].extent, self.width)
        else:
            parts = [(0, walk.reduced[-1].extent, self.width)]
        for start, count, width in parts:
            step = width if walk.lane_reduced else 1
            whole = count // slots if slots > 1 else 0
            if whole:
                stmts.append(self._unrolled(start, whole, step, width, slots, vector))
            left = count - whole * slots
            begin = start + whole * slots * step
            if left == 1:
                stmts.append(vector(tirx.const(begin, "int32"), width, 0))
            elif left:
                stmts.append(self._serial(begin, left, step, width, vector))
        return tir.seq(*stmts)

    @staticmethod
    def _unrolled(
        start: int, count: int, step: int, width: int, slots: int, vector: Callable[..., Stmt]
    ) -> Stmt:
        def body(j: Expr) -> Stmt:
            base = start + j * (slots * step)
            return tir.seq(*(vector(base + s * step, width, s) for s in range(slots)))

        return tir.loop("j", count, body)

    @staticmethod
    def _serial(begin: int, count: int, step: int, width: int, vector: Callable[..., Stmt]) -> Stmt:
        return tir.loop("j", count, lambda j: vector(begin + j * step, width, 0))
