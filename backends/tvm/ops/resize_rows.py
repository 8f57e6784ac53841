"""Resize of images, a row at a time: blend two rows of the source, then stretch the blend.

Stretching by a whole factor is the same few weights for every source element (a polyphase filter): the
phases are computed on vectors and interleaved. By any other factor, the source columns and weights are
put into a table once a call and gathered from the blended row, which lies in the first-level cache.
In blocks of channels an element is a vector, and gathering one costs no more than reading it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx

from effc.backends.tvm import tir
from effc.backends.tvm.isa import Isa
from effc.backends.tvm.layout import TensorType
from effc.backends.tvm.ops.contract import storage_dtype
from effc.backends.tvm.ops.registers import Registers, lanes_at
from effc.backends.tvm.program import Kernel

Expr = Any
Stmt = Any
Taps = Callable[[Expr], list[tuple[Expr, "Expr | None"]]]  # output coordinate -> sources, weights

LONGEST = 16384  # elements of a row that stands on the stack, and of each table
STRETCH = 4


@dataclass(frozen=True, slots=True)
class Line:
    """How one axis is stretched; `place[k]` is the real source coordinate of k, None if it stays."""

    source: int
    target: int
    taps: Taps
    place: np.ndarray[Any, Any] | None


def resize_rows(
    name: str, isa: Isa, output: TensorType, operand: TensorType, rows: Line, columns: Line
) -> Kernel | None:
    """The kernel that stretches the last two axes of `operand`; None where a row is too long.

    Two taps an axis for linear interpolation (float32 only), one for the nearest element (any type).
    """
    unit = output.layout.block or 1
    if max(columns.source * unit, columns.target) > LONGEST or output.layout != operand.layout:
        return None
    dtype = storage_dtype(output.dtype)
    size = np.dtype(dtype).itemsize
    buffers = [
        tir.buffer(f"p{i}", max(1, t.elements), dtype, alignment=size)
        for i, t in enumerate((output, operand))
    ]
    emit = _Rows(isa, buffers[0], buffers[1], dtype, rows, columns, unit)
    planes = output.elements // (rows.target * columns.target * unit)
    func = tir.prim_func(name, buffers, emit.body)
    return Kernel(name, func, planes * rows.target, (output, operand), 1)


class _Rows:
    def __init__(
        self, isa: Isa, out: Any, source: Any, dtype: str, rows: Line, columns: Line, unit: int
    ) -> None:
        self.isa, self.out, self.source, self.dtype = isa, out, source, dtype
        self.rows, self.columns, self.unit = rows, columns, unit
        self.phases = _phases(columns) if unit == 1 else ()
        self.row = tir.local(
            "row", (columns.source + 2) * unit, dtype
        )  # one element more on either side
        # the table of columns
        count = _taps_of(columns)
        self.at = [tir.local(f"at{k}", columns.target, "int32") for k in range(count)]
        self.weight = tir.local("weight", columns.target, "float32")
        self.weighted = count == 2

    def body(self, begin: Expr, end: Expr) -> Stmt:
        stmts: list[Stmt] = [tirx.AllocBuffer(self.row)]
        if self.columns.place is not None and not self.phases:
            stmts += [tirx.AllocBuffer(b) for b in (*self.at, self.weight)]
            stmts.append(tir.loop("x", self.columns.target, self.tabulated))
        return tir.seq(*stmts, tir.loop("t", end - begin, self.task, begin=begin))

    def tabulated(self, x: Expr) -> Stmt:
        def visit(_: Expr) -> Stmt:
            taps = self.columns.taps(x)
            stores = [tirx.BufferStore(b, i, [x]) for b, (i, _) in zip(self.at, taps, strict=True)]
            if self.weighted:
                stores.append(tirx.BufferStore(self.weight, taps[1][1], [x]))
            return tir.seq(*stores)

        return tir.lanes(1, visit)

    def task(self, t: Expr) -> Stmt:
        """Output row `t` of all."""
        height = self.rows.target
        plane, y = tirx.Var("plane", "int32"), tirx.Var("y", "int32")
        stmts: list[Stmt] = [tirx.Bind(plane, t // height), tirx.Bind(y, t % height)]
        sources = tir.local("sources", 2, "int32")
        weights = tir.local("weights", 2, "float32")
        taps = 1

        def visit(_: Expr) -> Stmt:
            nonlocal taps
            found: Sequence[tuple[Expr, Expr | None]] = [(y, None)]
            if self.rows.place is not None:
                found = self.rows.taps(y)
            taps = len(found)
            stores = []
            for k, (i, w) in enumerate(found):
                begin = (plane * self.rows.source + i) * (self.columns.source * self.unit)
                stores.append(tirx.BufferStore(sources, begin, [k]))
                if w is not None:
                    stores.append(tirx.BufferStore(weights, w, [k]))
            return tir.seq(*stores)

        stmts += [tirx.AllocBuffer(sources), tirx.AllocBuffer(weights), tir.lanes(1, visit)]
        begins = [tirx.BufferLoad(sources, [k]) for k in range(taps)]
        factors = [tirx.BufferLoad(weights, [k]) for k in range(taps)]

        def blended(at: Expr, width: int) -> Expr:
            parts = [tirx.BufferLoad(self.source, [lanes_at(b + at, width)]) for b in begins]
            if taps == 1:
                return parts[0]
            wide = [tirx.Broadcast(f, width) if width > 1 else f for f in factors]
            return parts[0] * wide[0] + parts[1] * wide[1]

        unit = self.unit
        width = self.columns.source * unit
        if self.columns.place is None:
            stmts.append(
                _along(self.isa, width, lambda at, w: self.put(t * width + at, w, blended)(at))
            )
            return tir.seq(*stmts)
        if not self.weighted and taps == 1:  # straight from the source

            def copied(x: Expr) -> Stmt:
                at = begins[0] + tirx.BufferLoad(self.at[0], [x]) * unit
                value = tirx.BufferLoad(self.source, [lanes_at(at, unit)])
                return tirx.BufferStore(self.out, value, [self.place(t, x)])

            stmts.append(tir.loop("x", self.columns.target, copied))
            return tir.seq(*stmts)
        stmts.append(
            _along(
                self.isa,
                width,
                lambda at, w: tirx.BufferStore(self.row, blended(at, w), [lanes_at(at + unit, w)]),
            )
        )
        if self.phases:
            for edge, inner in ((0, 1), (width + 1, width)):
                stmts.append(tirx.BufferStore(self.row, tirx.BufferLoad(self.row, [inner]), [edge]))
        stmts.append(self.stretched(t) if self.phases else self.gathered(t))
        return tir.seq(*stmts)

    def place(self, t: Expr, x: Expr) -> Expr:
        """The output's indices of column `x` of row `t`."""
        return lanes_at((t * self.columns.target + x) * self.unit, self.unit)

    def put(self, to: Expr, width: int, value: Callable[[Expr, int], Expr]) -> Callable[..., Stmt]:
        return lambda at: tirx.BufferStore(self.out, value(at, width), [lanes_at(to, width)])

    def gathered(self, t: Expr) -> Stmt:
        def element(x: Expr) -> Stmt:
            unit = self.unit
            parts = []
            for table in self.at:
                at = (tirx.BufferLoad(table, [x]) + 1) * unit
                parts.append(tirx.BufferLoad(self.row, [lanes_at(at, unit)]))
            w = tirx.BufferLoad(self.weight, [x])
            pair = [tirx.const(1.0, "float32") - w, w]
            if unit > 1:
                pair = [tirx.Broadcast(v, unit) for v in pair]
            value = parts[0] * pair[0] + parts[1] * pair[1]
            return tirx.BufferStore(self.out, value, [self.place(t, x)])

        return tir.loop("x", self.columns.target, element)

    def stretched(self, t: Expr) -> Stmt:
        """Every phase of a vector of source elements, interleaved."""
        times = len(self.phases)

        def vector(at: Expr, width: int) -> Stmt:
            r = Registers(self.out, self.row, self.dtype)
            near = {d: r.load(at + (1 + d), width) for d in (-1, 0, 1)}
            results = []
            for first, w in self.phases:
                value = near[first]
                if w:
                    high = _splat(w, width)
                    value = value * _splat(1.0 - w, width) + near[first + 1] * high
                results.append(r.named(value, width))
            for k in range(times):
                picks = [(g % times, g // times) for g in range(k * width, (k + 1) * width)]
                to = t * self.columns.target + at * times + k * width
                r.store(r.pick(results, picks), to, width)
            return r.statement()

        return _along(self.isa, self.columns.source, vector)


def _taps_of(line: Line) -> int:
    """How many source elements make one of the output."""
    found: list[int] = []

    def visit(lane: Expr) -> Stmt:
        found.append(len(line.taps(lane)))
        return tirx.Evaluate(0)

    if line.place is not None:
        tir.lanes(1, visit)
    return found[0] if found else 0


def _splat(value: float, width: int) -> Expr:
    number = tirx.const(value, "float32")
    return tirx.Broadcast(number, width) if width > 1 else number


def _along(isa: Isa, extent: int, body: Callable[[Expr, int], Stmt]) -> Stmt:
    """Vectors that cover [0, extent); the last one overlaps the one before it."""
    width = min(isa.lanes, 1 << (extent.bit_length() - 1))
    whole = extent // width
    stmts = [tir.loop("v", whole, lambda v: body(v * width, width))]
    if extent % width:
        stmts.append(body(tirx.const(extent - width, "int32"), width))
    return tir.seq(*stmts)


def _phases(line: Line) -> tuple[tuple[int, float], ...]:
    """(first tap's distance, second tap's weight) of every phase; () where weights change."""
    if line.place is None or line.target % line.source or _taps_of(line) != 2:
        return ()
    times = line.target // line.source
    if not 2 <= times <= STRETCH or line.source == 1:
        return ()
    distance = line.place.reshape(line.source, times) - np.arange(line.source)[:, None]
    if (
        np.abs(distance - distance[0]).max() > 1e-6
        or not -1 <= distance.min() <= distance.max() < 1
    ):
        return ()
    first = np.floor(distance[0])
    return tuple((int(f), float(d - f)) for f, d in zip(first, distance[0], strict=True))
