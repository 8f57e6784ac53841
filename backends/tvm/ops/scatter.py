"""Kernels whose elements depend on one another or land where the data says: scans, scatters, TopK."""

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
    Refused,
    kernel,
    loaded,
    operands,
    stored,
)
from effc.backends.tvm.ops.injective import nothing, parameter, unflatten
from effc.backends.tvm.ops.math import cast, const
from effc.backends.tvm.ops.reduce import accumulator, bottom
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


@kernel("TopK", static=(1,))
def top_k(node: OpNode, name: str, isa: Isa, epilogue: Epilogue) -> Kernel:
    """k passes: each finds the best element after the one before (equal values: by index)."""
    x, values, places = node.input(0), node.outputs[0], node.outputs[1]
    axis = node.attr("axis", -1) % len(x.shape)
    k, largest_first = values.shape[axis], node.attr("largest", 1)
    if values.elements == 0:
        return nothing(name, (values, places, x), 2)
    dtype = accumulator(x.dtype)
    walk = Walk(axes_of(x.shape, [axis]), isa.lanes)
    params = (values, places, x)
    buffers = [parameter(f"p{i}", t) for i, t in enumerate(params)]
    far = 2**31 - 1
    worst = bottom(-math.inf if largest_first else math.inf, dtype)
    stride = math.prod(x.shape[axis + 1 :])

    def element(p: Point) -> Expr:
        return cast(loaded(tirx.BufferLoad(buffers[2], [p.offset]), x.dtype), dtype)

    def better(a: Expr, b: Expr) -> Expr:
        return a > b if largest_first else a < b

    def body(view: View) -> None:
        last: tuple[Any, Any] | None = None
        for rank in range(k):

            def after(p: Point, last: Any = last) -> Expr:
                """Whether the element comes after the last one that was taken."""
                if last is None:
                    return tirx.const(True, "bool")
                v, i = last[0](p.lane), last[1](p.lane)
                here = p.reduced[-1] if p.reduced else tirx.const(0, I32)
                same = tirx.And(tirx.EQ(element(p), v), here > i)
                return tirx.Or(better(v, element(p)), same)

            def candidate(p: Point, after: Any = after) -> Expr:
                return tirx.Select(after(p), element(p), tirx.const(worst, dtype))

            top = view.reduce(
                dtype,
                worst,
                lambda a, b: m.let(b, lambda b: tirx.Select(better(a, b), a, b)),
                candidate,
            )

            def place(p: Point, after: Any = after, top: Any = top) -> Expr:
                here = p.reduced[-1] if p.reduced else tirx.const(0, I32)
                hit = tirx.And(after(p), tirx.EQ(element(p), top(p.lane)))
                return tirx.Select(hit, here, tirx.const(far, I32))

            where = view.reduce(I32, far, tirx.min, place)

            def store(lane: Expr, rank: int = rank, top: Any = top, where: Any = where) -> Stmt:
                flat = view.kept_flat(lane)
                at = (flat // stride) * (k * stride) + rank * stride + flat % stride
                v = top(lane) if x.dtype == "bfloat16" else cast(top(lane), values.dtype)
                return tir.seq(
                    tirx.BufferStore(buffers[0], stored(v, values.dtype), [at]),
                    tirx.BufferStore(buffers[1], cast(where(lane), places.dtype), [at]),
                )

            view.finish(store)
            last = (top, where)

    if k > 64:
        raise Refused(f"TopK with k = {k}", "k up to 64 is compiled; do the rest outside the model")
    func = tir.prim_func(name, buffers, lambda b, e: walk.run(b, e, body))
    return Kernel(name, func, walk.tasks, params, 2)


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


@kernel("Einsum")
def einsum(node: OpNode, name: str, isa: Isa, epilogue: Epilogue) -> Kernel:
    """Loops over the output's letters, sums over the others; lanes along the output's last letter."""
    ins, out = [node.input(i) for i in operands(node)], node.outputs[0]
    left, _, right = node.attr("equation").replace(" ", "").partition("->")
    terms = left.split(",")
    if "->" not in node.attr("equation"):
        letters = sorted(set(left) - {",", "."})
        right = ("..." if "..." in left else "") + "".join(c for c in letters if left.count(c) == 1)
    if "..." in left:  # the broadcast axes get names of their own
        ranks = [len(t.shape) - len(s.replace("...", "")) for t, s in zip(ins, terms, strict=True)]
        most = max(r for r, s in zip(ranks, terms, strict=True) if "..." in s)
        spare = [chr(0x3B1 + k) for k in range(most)]
        terms = [
            s.replace("...", "".join(spare[most - r :])) for r, s in zip(ranks, terms, strict=True)
        ]
        right = right.replace("...", "".join(spare))
    sizes: dict[str, int] = {}
    for t, s in zip(ins, terms, strict=True):
        for c, e in zip(s, t.shape, strict=True):
            sizes[c] = max(sizes.get(c, 1), e)
    summed = [c for c in sizes if c not in right]
    dtype = accumulator(out.dtype)
    params = (out, *ins)
    buffers = [parameter(f"p{i}", t) for i, t in enumerate(params)]
    inner = out.shape[-1] if out.shape else 1
    width = min(isa.lanes, 1 << (max(inner, 1).bit_length() - 1))
    tiles = -(-inner // width)
    total = tir.local("total", width, dtype)
    if out.elements == 0:
        return nothing(name, params, 1)

    def task(t: Expr) -> Stmt:
        first = tirx.min((t % tiles) * width, inner - width)
        head = unflatten(t // tiles, out.shape[:-1]) if len(out.shape) > 1 else ()

        def product(lane: Expr, where: dict[str, Expr]) -> Expr:
            value: Expr = None
            for buffer, t, s in zip(buffers[1:], ins, terms, strict=True):
                index = tuple(0 if e == 1 else where[c] for c, e in zip(s, t.shape, strict=True))
                v = tirx.BufferLoad(buffer, [t.layout.flat_index(t.shape, index)])
                v = cast(loaded(v, t.dtype), dtype)
                value = v if value is None else value * v
            return value

        def level(k: int, where: dict[str, Expr]) -> Stmt:
            if k < len(summed):
                c = summed[k]
                return tir.loop("s", sizes[c], lambda v: level(k + 1, {**where, c: v}))

            def add(lane: Expr) -> Stmt:
                here = dict(where)
                if right:
                    here[right[-1]] = first + lane
                sum_ = tirx.BufferLoad(total, [lane]) + product(lane, here)
                return tirx.BufferStore(total, sum_, [lane])

            return tir.lanes(width, add)

        zero = tir.lanes(width, lambda k: tirx.BufferStore(total, tirx.const(0, dtype), [k]))
        outer = dict(zip(right[:-1], head, strict=True))

        def store(lane: Expr) -> Stmt:
            v = tirx.BufferLoad(total, [lane])
            v = v if out.dtype == "bfloat16" else cast(v, out.dtype)
            at = (t // tiles) * inner + first + lane
            return tirx.BufferStore(buffers[0], stored(v, out.dtype), [at])

        return tir.seq(zero, level(0, outer), tir.lanes(width, store))

    func = tir.prim_func(name, buffers, lambda b, e: tir.loop("t", e - b, task, begin=b), [total])
    tasks = (out.elements // inner) * tiles
    return Kernel(name, func, tasks, params)
