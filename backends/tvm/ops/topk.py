"""TopK: rows sorted or selected."""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx

from effc.backends.tvm import tir
from effc.backends.tvm.isa import Isa
from effc.backends.tvm.kernels.epilogue import Epilogue
from effc.backends.tvm.ops import math as m
from effc.backends.tvm.ops.contract import (
    Expr,
    OpNode,
    Refused,
    kernel,
    loaded,
    stored,
)
from effc.backends.tvm.ops.injective import nothing, parameter
from effc.backends.tvm.ops.math import cast
from effc.backends.tvm.ops.reduce import accumulator, bottom
from effc.backends.tvm.ops.rows import Point, View, Walk, axes_of
from effc.backends.tvm.ops.scatter import I32
from effc.backends.tvm.program import Kernel

Stmt = Any


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
