"""Kernels of strided data movement (strided.py): whole vectors, shuffled between registers.

Where the innermost axis stays, runs are copied; where it changes with another one, square tiles are
transposed in registers; axes of two to four elements (pixels, blocks of DepthToSpace, upsampling) are
interleaved, taken apart or repeated. The last vector of an axis overlaps the one before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tvm import tirx

from effc.backends.tvm import tir
from effc.backends.tvm.isa import Isa
from effc.backends.tvm.layout import TensorType
from effc.backends.tvm.ops.contract import storage_dtype
from effc.backends.tvm.ops.permute import NARROW, permuted
from effc.backends.tvm.ops.registers import Registers
from effc.backends.tvm.ops.strided import Digit, Piece
from effc.backends.tvm.program import Kernel

Expr = Any
Stmt = Any

TASKS = 128
STEPS = 4  # vectors or tiles that a task moves at least
COPIES = 16  # places that one loaded vector is stored to
_TYPES = {1: "uint8", 2: "uint16", 4: "float32", 8: "float64"}  # moved as these, whatever they are


@dataclass(frozen=True, slots=True)
class _Axis:
    """A loop: step k stands at coordinate min(k * step, last) of an axis with these strides."""

    count: int
    step: int
    last: int
    out: int
    source: int


@dataclass(frozen=True, slots=True)
class _Plan:
    """Loops, the outermost first, around a body `(registers, out, source)`."""

    axes: tuple[_Axis, ...]
    body: Callable[[Registers, Expr, Expr], None]
    piece: Piece


def move(
    name: str, isa: Isa, output: TensorType, operand: TensorType, pieces: Sequence[Piece]
) -> Kernel | None:
    """The kernel that copies `pieces` of `operand` into `output`; None where scalars do as well."""
    size = np.dtype(storage_dtype(output.dtype)).itemsize
    plans = []
    for piece in pieces:
        plan = _Planner(isa, size, piece, operand.elements).plan()
        if plan is None:
            return None
        plans.append(plan)
    dtype = _TYPES[size]
    buffers = [
        tir.buffer(f"p{i}", max(1, t.elements), dtype, alignment=size)
        for i, t in enumerate((output, operand))
    ]
    counts = [_tasks(p) for p in plans]
    total = sum(counts)

    def body(begin: Expr, end: Expr) -> Stmt:
        loops, first = [], 0
        for plan, count in zip(plans, counts, strict=True):
            low, high = begin - first, end - first
            if len(plans) > 1:
                low, high = tirx.max(low, 0), tirx.min(high, count)
            start = tirx.Var("start", "int32")
            work = _work(plan, buffers, dtype)
            loops += [
                tirx.Bind(start, low),
                tir.loop("t", tirx.max(high - start, 0), work, begin=start),
            ]
            first += count
        return tir.seq(*loops)

    return Kernel(name, tir.prim_func(name, buffers, body), total, (output, operand), 1)


def _depth(plan: _Plan) -> int:
    """How many of the outer loops are tasks, all but the innermost at most."""
    count = 1
    for depth, axis in enumerate(plan.axes[:-1]):
        if count >= TASKS:
            return depth
        count *= axis.count
    return max(len(plan.axes) - 1, 0)


def _chunk(plan: _Plan) -> int:
    """Steps of the innermost loop in a task, where the loops outside are too few."""
    if not plan.axes:
        return 1
    depth, count = _depth(plan), plan.axes[-1].count
    outer = math.prod(a.count for a in plan.axes[:depth])
    if depth < len(plan.axes) - 1 or outer >= TASKS:
        return count
    return min(count, max(STEPS, -(-count * outer // TASKS)))


def _tasks(plan: _Plan) -> int:
    chunks = -(-plan.axes[-1].count // _chunk(plan)) if plan.axes else 1
    return math.prod(a.count for a in plan.axes[: _depth(plan)]) * chunks


def _work(plan: _Plan, buffers: Sequence[Any], dtype: str) -> Callable[[Expr], Stmt]:
    depth, chunk = _depth(plan), _chunk(plan)
    chunks = -(-plan.axes[-1].count // chunk) if plan.axes else 1

    def task(t: Expr) -> Stmt:
        first = (t % chunks) * chunk if chunks > 1 else tirx.const(0, "int32")
        t = t // chunks if chunks > 1 else t
        out, source = tirx.const(plan.piece.out, "int32"), tirx.const(plan.piece.source, "int32")
        stmts: list[Stmt] = []
        for k, axis in enumerate(plan.axes[:depth]):
            below = math.prod(a.count for a in plan.axes[k + 1 : depth])
            v = tirx.Var(f"i{k}", "int32")
            at = t // below if below > 1 else t
            stmts.append(tirx.Bind(v, at % axis.count if k else at))
            out, source = _moved(axis, v, out, source)
        return tir.seq(*stmts, inner(depth, out, source, first))

    def inner(k: int, out: Expr, source: Expr, first: Expr) -> Stmt:
        if k == len(plan.axes):
            bases = [tirx.Var("out", "int32"), tirx.Var("source", "int32")]
            registers = Registers(buffers[0], buffers[1], dtype)
            plan.body(registers, bases[0], bases[1])
            return tir.seq(
                tirx.Bind(bases[0], out), tirx.Bind(bases[1], source), registers.statement()
            )
        axis, steps = plan.axes[k], plan.axes[k].count
        if k < len(plan.axes) - 1 or chunks == 1:
            return tir.loop(
                f"i{k}", steps, lambda v: inner(k + 1, *_moved(axis, v, out, source), first)
            )
        left = tirx.min(tirx.const(chunk, "int32"), steps - first)
        return tir.loop(
            f"i{k}", left, lambda v: inner(k + 1, *_moved(axis, first + v, out, source), first)
        )

    return task


def _moved(axis: _Axis, k: Expr, out: Expr, source: Expr) -> tuple[Expr, Expr]:
    if axis.count == 1:
        return out, source
    place = k * axis.step if axis.step > 1 else k
    if (axis.count - 1) * axis.step > axis.last:
        place = tirx.min(place, axis.last)
    return out + place * axis.out, source + place * axis.source


def _floor2(n: int) -> int:
    return 1 << (n.bit_length() - 1)


class _Planner:
    """Chooses how a piece is moved."""

    def __init__(self, isa: Isa, size: int, piece: Piece, elements: int) -> None:
        self.isa, self.size, self.piece, self.elements = isa, size, piece, elements
        self.lanes = isa.lanes * 4 // size
        # arbitrary shuffles of narrow elements are one instruction only with these extensions
        single = {1: "avx512vbmi", 2: "avx512bw"}.get(size)
        self.shuffled = self.lanes
        if single is not None and not isa.has(single):
            self.shuffled = 16 // size
        self.outer = self._copied(piece.digits[:-1])

    def _copied(self, digits: Sequence[Digit]) -> list[Digit]:
        """`digits` but for some whose source stays: those become `copies` of every store."""
        outer, self.copies = list(digits), [0]
        for d in [d for d in outer if d.source == 0]:
            if len(self.copies) * d.extent <= COPIES:
                self.copies = [c + k * d.out for c in self.copies for k in range(d.extent)]
                outer.remove(d)
        return outer

    def plan(self) -> _Plan | None:
        if not self.piece.digits:
            return self._run(Digit(1, 1, 1))
        inner = self.piece.digits[-1]
        if inner.out != 1:
            return None
        if self.piece.pad:
            return self._rows() or self._tile(inner)
        permuted = self._permute() if self.size == 1 and self.shuffled == self.lanes else None
        if permuted is not None:
            return permuted
        if inner.source == 1:
            return self._run(inner)
        if inner.source == 0:
            return self._repeat(inner) or self._splat(inner)
        if inner.source == -1:
            return self._reverse(inner)
        return self._rows() or self._interleave(inner) or self._apart(inner) or self._tile(inner)

    def _axes(self, outer: Sequence[Digit], *vectors: tuple[Digit, int]) -> tuple[_Axis, ...]:
        """Loops over digits one by one, then over others in steps."""
        axes = [_Axis(d.extent, 1, d.extent - 1, d.out, d.source) for d in outer]
        for d, step in vectors:
            axes.append(_Axis(-(-d.extent // step), step, max(d.extent - step, 0), d.out, d.source))
        return tuple(axes)

    def _made(self, axes: tuple[_Axis, ...], body: Callable[..., None]) -> _Plan:
        return _Plan(axes, body, self.piece)

    def _store(self, r: Registers, value: Expr, at: Expr, width: int) -> None:
        for c in self.copies:
            r.store(value, at + c if c else at, width)

    def _run(self, inner: Digit) -> _Plan:
        width = min(self.lanes, _floor2(inner.extent))
        return self._made(
            self._axes(self.outer, (inner, width)),
            lambda r, out, source: self._store(r, r.load(source, width), out, width),
        )

    def _permute(self) -> _Plan | None:
        """A whole vector of bytes at once, picked from a few vectors of the operand."""
        found = permuted(self.piece, self.lanes, self.elements)
        if found is None:
            return None
        self.outer = self._copied(found.outer)

        def body(r: Registers, out: Expr, source: Expr) -> None:
            vectors = [r.load(source + s if s else source, found.width) for s in found.starts]
            self._store(r, r.pick(vectors, found.picks), out, found.width)

        return self._made(self._axes(self.outer, (found.by, found.step)), body)

    def _splat(self, inner: Digit) -> _Plan | None:
        width = min(self.lanes, _floor2(inner.extent))
        if width < 4:
            return None

        def body(r: Registers, out: Expr, source: Expr) -> None:
            self._store(r, r.pick([r.load(source, 1)], [(0, 0)] * width), out, width)

        return self._made(self._axes(self.outer, (inner, width)), body)

    def _reverse(self, inner: Digit) -> _Plan | None:
        width = min(self.shuffled, _floor2(inner.extent))
        if width < 4:
            return None

        def body(r: Registers, out: Expr, source: Expr) -> None:
            v = r.load(source - (width - 1), width)
            self._store(r, r.pick([v], [(0, width - 1 - k) for k in range(width)]), out, width)

        return self._made(self._axes(self.outer, (inner, width)), body)

    def _repeat(self, inner: Digit) -> _Plan | None:
        """Each element `inner.extent` times."""
        by = self.outer[-1] if self.outer else None
        if by is None or by.source != 1 or by.out != inner.extent or inner.extent > 2 * NARROW:
            return None
        width, times = min(self.shuffled, _floor2(by.extent)), inner.extent

        def body(r: Registers, out: Expr, source: Expr) -> None:
            v = r.load(source, width)
            for k in range(times):
                picks = [(0, (k * width + i) // times) for i in range(width)]
                self._store(r, r.pick([v], picks), out + k * width, width)

        return self._made(self._axes(self.outer[:-1], (by, width)), body)

    def _interleave(self, inner: Digit) -> _Plan | None:
        """A few rows of the operand, whose elements alternate in the output."""
        by = self.outer[-1] if self.outer else None
        n = inner.extent
        if by is None or by.source != 1 or by.out != n or n > NARROW or by.extent < 4:
            return None
        width = min(self.shuffled, _floor2(by.extent))

        def body(r: Registers, out: Expr, source: Expr) -> None:
            rows = [r.load(source + k * inner.source, width) for k in range(n)]
            for k in range(n):
                at = range(k * width, (k + 1) * width)
                self._store(r, r.pick(rows, [(g % n, g // n) for g in at]), out + k * width, width)

        return self._made(self._axes(self.outer[:-1], (by, width)), body)

    def _apart(self, inner: Digit) -> _Plan | None:
        """Every n-th element of the operand; all n choices at once where all are wanted."""
        n = inner.source
        if not 2 <= n <= NARROW or inner.extent < 4:
            return None
        width = min(self.shuffled, _floor2(inner.extent))
        channel = next((d for d in self.outer if d.source == 1 and d.extent == n), None)
        offsets = [0] if channel is None else [k * channel.out for k in range(n)]
        outer = [d for d in self.outer if d is not channel]
        reach = (width - 1) * n + len(offsets)  # elements from the first to the last that is read
        starts = [min(k * width, reach - width) for k in range(n)]

        def body(r: Registers, out: Expr, source: Expr) -> None:
            vectors = [r.load(source + s, width) for s in starts]

            def place(at: int) -> tuple[int, int]:
                k = min(at // width, n - 1)
                return k, at - starts[k]

            for c, offset in enumerate(offsets):
                picks = [place(i * n + c) for i in range(width)]
                self._store(r, r.pick(vectors, picks), out + offset, width)

        return self._made(self._axes(outer, (inner, width)), body)

    def _rows(self) -> _Plan | None:
        """Blocks of 16 bytes whose elements come from 16 rows that several digits name: tiles too."""
        if self.size > 1:
            return None
        digits, places, span = [*self.outer, self.piece.digits[-1]], [0], 1
        while digits and digits[-1].out == span and span * digits[-1].extent <= 16:
            d = digits.pop()
            places = [p + k * d.source for k in range(d.extent) for p in places]
            span *= d.extent
        by = max((d for d in digits if d.source == 1), key=lambda d: d.extent, default=None)
        if (
            span + self.piece.pad != 16
            or len(digits) == len(self.outer)
            or by is None
            or by.extent < 16
        ):
            return None

        def body(r: Registers, out: Expr, source: Expr) -> None:
            loaded = [r.load(source + p if p else source, 16) for p in places]
            loaded += [r.zero(16)] * self.piece.pad
            for k, column in enumerate(r.transposed(loaded, 16)):
                self._store(r, column, out + k * by.out, 16)

        return self._made(self._axes([d for d in digits if d is not by], (by, 16)), body)

    def _tile(self, inner: Digit) -> _Plan | None:
        """Square tiles, transposed in registers."""
        whole = inner.extent + self.piece.pad
        best = [d for d in self.outer if d.source == 1 and d.extent > 1]
        by = max(best, key=lambda d: d.extent, default=None)
        if by is None:
            return None
        limit = min(16, self.lanes)
        side = min(limit, _floor2(by.extent), _floor2(whole))
        if side < 4 and not (side == 2 and self.size == 8):
            return None
        if self.piece.pad and side < whole:
            return None
        rows = min(side, inner.extent)
        outer = [d for d in self.outer if d is not by]

        def body(r: Registers, out: Expr, source: Expr) -> None:
            loaded = [r.load(source + k * inner.source, side) for k in range(rows)]
            loaded += [r.zero(side)] * (side - rows)
            for k, column in enumerate(r.transposed(loaded, 16 // self.size)):
                self._store(r, column, out + k * by.out, side)

        column = replace(inner, extent=whole)
        return self._made(self._axes(outer, (by, side), (column, side)), body)
