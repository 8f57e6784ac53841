"""Einsum: products of elements, summed over the letters that the output lacks."""

from __future__ import annotations

from typing import Any

from tvm import tirx

from effc.backends.tvm import tir
from effc.backends.tvm.isa import Isa
from effc.backends.tvm.kernels.epilogue import Epilogue
from effc.backends.tvm.ops.contract import (
    Expr,
    OpNode,
    kernel,
    loaded,
    operands,
    stored,
)
from effc.backends.tvm.ops.injective import nothing, parameter, unflatten
from effc.backends.tvm.ops.math import cast
from effc.backends.tvm.ops.reduce import accumulator
from effc.backends.tvm.program import Kernel

Stmt = Any


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
