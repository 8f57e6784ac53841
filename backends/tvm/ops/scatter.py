"""Kernels whose elements depend on one another or land where the data says: scans, scatters."""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx

from effc.backends.tvm import tir
from effc.backends.tvm.isa import Isa
from effc.backends.tvm.kernels.epilogue import Epilogue
from effc.backends.tvm.layout import TensorType
from effc.backends.tvm.ops import math as m
from effc.backends.tvm.ops.binary import largest, smallest
from effc.backends.tvm.ops.contract import (
    Expr,
    OpNode,
    kernel,
    loaded,
    stored,
)
from effc.backends.tvm.ops.injective import nothing, parameter, unflatten
from effc.backends.tvm.ops.math import cast, const
from effc.backends.tvm.ops.rows import Point, View, Walk, axes_of
from effc.backends.tvm.program import Kernel

Stmt = Any
I32 = "int32"


@kernel("CumSum", "CumProd", static=(1,))
def cumulative(node: OpNode, name: str, isa: Isa, epilogue: Epilogue) -> Kernel:
    """Running sums or products along an axis; lanes along the innermost other axis."""
    x, out = node.input(0), node.outputs[0]
    axis = int(node.required(1, "axis").reshape(())) % len(x.shape)
    extent, inner = x.shape[axis], math.prod(x.shape[axis + 1 :])
    outer = math.prod(x.shape[:axis])
    if x.elements == 0:
        return nothing(name, (out, x), 1)
    reverse, exclusive = node.attr("reverse", 0), node.attr("exclusive", 0)
    dtype = "float32" if x.dtype in ("float16", "bfloat16") else x.dtype
    one = node.op_type == "CumProd"
    width = min(isa.lanes, 1 << (inner.bit_length() - 1))
    tiles = -(-inner // width)
    buffers = [parameter("p0", out), parameter("p1", x)]
    running = tir.local("running", width, dtype)

    def task(t: Expr) -> Stmt:
        first = tirx.min((t % tiles) * width, inner - width)
        base = (t // tiles) * (extent * inner) + first

        def step(k: Expr) -> Stmt:
            at = base + ((extent - 1 - k) if reverse else k) * inner

            def body(lane: Expr) -> Stmt:
                v = cast(loaded(tirx.BufferLoad(buffers[1], [at + lane]), x.dtype), dtype)
                before = tirx.BufferLoad(running, [lane])
                after = before * v if one else before + v
                kept = before if exclusive else after
                kept = kept if out.dtype == "bfloat16" else cast(kept, out.dtype)
                store = tirx.BufferStore(buffers[0], stored(kept, out.dtype), [at + lane])
                update = tirx.BufferStore(running, after, [lane])
                return tir.seq(store, update)

            return tir.lanes(width, body)

        start = tirx.const(1 if one else 0, dtype)
        zero = tir.lanes(width, lambda lane: tirx.BufferStore(running, start, [lane]))
        return tir.seq(zero, tir.loop("k", extent, step))

    func = tir.prim_func(name, buffers, lambda b, e: tir.loop("t", e - b, task, begin=b), [running])
    return Kernel(name, func, outer * tiles, (out, x))


def _copy(out: Any, source: Any, elements: int, width: int) -> Stmt:
    """out[:] = source[:]."""

    def vector(base: Expr, n: int) -> Stmt:
        return tir.lanes(
            n, lambda k: tirx.BufferStore(out, tirx.BufferLoad(source, [base + k]), [base + k])
        )

    whole = elements // width
    stmts = [tir.loop("j", whole, lambda j: vector(j * width, width))] if whole else []
    if elements % width:
        stmts.append(tir.loop("j", elements % width, lambda j: vector(j + whole * width, 1)))
    return tir.seq(*stmts)


def _at(shape: tuple[int, ...], index: tuple[Expr, ...]) -> Expr:
    return TensorType(shape, "float32").layout.flat_index(shape, index)


def _update(buffer: Any, tensor: TensorType, at: Expr, value: Expr, how: str) -> Stmt:
    """buffer[at] = value, or combined with what is there."""
    if how != "none":
        old = loaded(tirx.BufferLoad(buffer, [at]), tensor.dtype)
        value = m.let(
            value,
            lambda v: {
                "add": lambda: old + v,
                "mul": lambda: old * v,
                "max": lambda: largest(old, v),
                "min": lambda: smallest(old, v),
            }[how](),
        )
    return tirx.BufferStore(buffer, stored(value, tensor.dtype), [at])


@kernel("ScatterElements", "Scatter", "ScatterND")
def scatter(node: OpNode, name: str, isa: Isa, epilogue: Epilogue) -> Kernel:
    """A copy of the data, then the updates in their order (one task: updates may collide)."""
    x, where, updates, out = node.input(0), node.input(1), node.input(2), node.outputs[0]
    how = node.attr("reduction", "none")
    params = (out, x, where, updates)
    buffers = [parameter(f"p{i}", t) for i, t in enumerate(params)]
    shape = x.shape

    def position(i: Expr, extent: int) -> Expr:
        i = cast(i, I32)
        return m.let(
            i, lambda i: tirx.min(tirx.max(tirx.Select(i < 0, i + extent, i), 0), extent - 1)
        )

    def target(u: tuple[Expr, ...]) -> tuple[Expr, ...]:
        if node.op_type != "ScatterND":
            axis = node.attr("axis", 0) % len(shape)
            i = tirx.BufferLoad(buffers[2], [_at(where.shape, u)])
            return (*u[:axis], position(i, shape[axis]), *u[axis + 1 :])
        outer = len(where.shape) - 1
        head = [
            position(tirx.BufferLoad(buffers[2], [_at(where.shape, (*u[:outer], k))]), shape[k])
            for k in range(where.shape[-1])
        ]
        return (*head, *u[outer:])

    def one(e: Expr) -> Stmt:
        def body(_: Expr) -> Stmt:
            u = unflatten(e, updates.shape) if updates.shape else ()
            value = loaded(tirx.BufferLoad(buffers[3], [e]), updates.dtype)
            return _update(buffers[0], out, _at(shape, target(u)), value, how)

        return tir.lanes(1, body)

    if x.elements == 0:
        return nothing(name, params, 1)

    def run(begin: Expr, end: Expr) -> Stmt:
        copy = _copy(buffers[0], buffers[1], x.elements, isa.lanes)
        changes = tir.loop("e", updates.elements, one) if updates.elements else None
        return tir.loop(
            "t", end - begin, lambda t: tir.seq(*filter(None, (copy, changes))), begin=begin
        )

    return Kernel(name, tir.prim_func(name, buffers, run), 1, params)


@kernel("DynamicQuantizeLinear")
def dynamic_quantize(node: OpNode, name: str, isa: Isa, epilogue: Epilogue) -> Kernel:
    """uint8 with the scale and zero point of the tensor's own range (one task)."""
    x = node.input(0)
    params = (*node.outputs, x)
    buffers = [parameter(f"p{i}", t) for i, t in enumerate(params)]
    f = "float32"
    walk = Walk(axes_of(x.shape, range(len(x.shape))), isa.lanes)

    def body(view: View) -> None:
        def element(p: Point) -> Expr:
            return tirx.BufferLoad(buffers[3], [p.offset])

        low = view.reduce(f, 0.0, lambda a, b: m.let(b, lambda b: smallest(a, b)), element)
        high = view.reduce(f, 0.0, lambda a, b: m.let(b, lambda b: largest(a, b)), element)

        def step(lane: Expr) -> Expr:
            s = (high(lane) - low(lane)) / const(255.0, f)
            return m.let(s, lambda s: tirx.Select(s > const(0.0, f), s, const(1.0, f)))

        scale = view.scalar(f, step)
        zero = view.scalar(
            f, lambda k: m.nearbyint(m.minimum(m.maximum(-low(k) / scale(k), 0.0), 255.0))
        )
        view.finish(lambda k: tirx.BufferStore(buffers[1], scale(k), [0]))
        view.finish(lambda k: tirx.BufferStore(buffers[2], cast(cast(zero(k), I32), "uint8"), [0]))

        def quantized(p: Point) -> Stmt:
            y = m.nearbyint(element(p) / scale(p.lane)) + zero(p.lane)
            y = m.minimum(m.maximum(y, 0.0), 255.0)
            return tirx.BufferStore(buffers[0], cast(cast(y, I32), "uint8"), [p.offset])

        view.each(quantized)

    func = tir.prim_func(name, buffers, lambda b, e: walk.run(b, e, body))
    return Kernel(name, func, walk.tasks, params, 3)
