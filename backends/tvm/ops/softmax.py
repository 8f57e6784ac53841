"""Softmax, LogSoftmax and Hardmax: the largest, the sum of exponentials, then the row."""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx

from effc.backends.tvm.isa import Isa
from effc.backends.tvm.kernels.epilogue import Epilogue
from effc.backends.tvm.ops import math as m
from effc.backends.tvm.ops.binary import largest
from effc.backends.tvm.ops.contract import (
    Expr,
    OpNode,
    kernel,
)
from effc.backends.tvm.ops.math import const
from effc.backends.tvm.ops.normalize import Rows
from effc.backends.tvm.ops.rows import Point, Stat, View, Walk, axes_of
from effc.backends.tvm.program import Kernel

Stmt = Any


def _softmax_axes(node: OpNode) -> list[int]:
    rank = len(node.input(0).shape)
    if node.newer(13):
        return [node.attr("axis", -1) % rank]
    return list(range(node.attr("axis", 1) % rank, rank))


@kernel("Softmax", "LogSoftmax", "Hardmax")
def softmax(node: OpNode, name: str, isa: Isa, epilogue: Epilogue) -> Kernel:
    """exp(x - max) / sum, x - max - log(sum), or one at the first maximum, along an axis."""
    rows = Rows(node, name)
    dtype = rows.dtype
    walk = Walk(axes_of(rows.x.shape, _softmax_axes(node)), isa.lanes)

    def hardmax(view: View, top: Stat) -> None:
        far = 2**31 - 1

        def place(p: Point) -> Expr:
            i = p.reduced[-1] if p.reduced else tirx.const(0, "int32")
            return tirx.Select(tirx.EQ(rows.at(p), top(p.lane)), i, tirx.const(far, "int32"))

        first = view.reduce("int32", far, tirx.min, place)

        def one(p: Point) -> Stmt:
            i = p.reduced[-1] if p.reduced else tirx.const(0, "int32")
            hit = tirx.EQ(i, first(p.lane))
            return rows.write(p.offset, tirx.Select(hit, const(1, dtype), const(0, dtype)))

        view.each(one)

    def body(view: View) -> None:
        top = view.reduce(dtype, -math.inf, lambda a, b: m.let(b, lambda b: largest(a, b)), rows.at)
        if node.op_type == "Hardmax":
            hardmax(view, top)
            return

        def power(p: Point) -> Expr:
            return m.exp_nonpositive(rows.at(p) - top(p.lane))

        keep = node.op_type == "Softmax" and rows.out.dtype == dtype

        def remember(p: Point, v: Expr) -> Stmt:
            return rows.write(p.offset, v)

        total = view.reduce(dtype, 0, lambda a, b: a + b, power, remember if keep else None)
        if node.op_type == "LogSoftmax":
            shift = view.scalar(dtype, lambda lane: m.log(total(lane)))
            view.each(lambda p: rows.write(p.offset, rows.at(p) - top(p.lane) - shift(p.lane)))
            return
        inverse = view.scalar(dtype, lambda lane: const(1.0, dtype) / total(lane))

        def scaled(p: Point) -> Stmt:
            v = tirx.BufferLoad(rows.outs[0], [p.offset]) if keep else power(p)
            return rows.write(p.offset, v * inverse(p.lane))

        view.each(scaled)

    return rows.kernel(walk, body)
