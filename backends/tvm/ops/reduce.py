"""Reductions over any axes, ArgMax and ArgMin, global pooling."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx

from effc.backends.tvm import tir
from effc.backends.tvm.isa import Isa
from effc.backends.tvm.kernels.epilogue import Epilogue
from effc.backends.tvm.layout import PLAIN, Layout, TensorType
from effc.backends.tvm.ops import math as m
from effc.backends.tvm.ops.binary import largest, smallest
from effc.backends.tvm.ops.broadcast import is_float
from effc.backends.tvm.ops.contract import (
    Expr,
    OpNode,
    Refused,
    Wanted,
    kernel,
    load,
    loaded,
    operands,
    stored,
)
from effc.backends.tvm.ops.injective import injective, parameter, unflatten
from effc.backends.tvm.ops.math import cast, const
from effc.backends.tvm.ops.rows import Point, Stat, View, Walk, axes_of
from effc.backends.tvm.program import Kernel

GLOBAL = {"GlobalAveragePool": "ReduceMean", "GlobalMaxPool": "ReduceMax", "GlobalLpPool": "Lp"}


def reduced_axes(node: OpNode) -> tuple[int, ...]:
    """The axes that the node reduces; empty where it does nothing."""
    rank = len(node.input(0).shape)
    if node.op_type in GLOBAL:
        return tuple(range(2, rank))
    given = node.attr("axes")
    if given is None and node.has(1):
        given = node.required(1, "axes").reshape(-1)
    if given is None or len(given) == 0:
        return () if node.attr("noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(sorted(int(a) % rank for a in given))


def physical(tensor: TensorType, axes: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The physical shape and the physical numbers of logical `axes` (spatial ones if blocked)."""
    if tensor.layout.block and any(a < 2 for a in axes):
        raise Refused("reducing channels of a blocked tensor", "plan it plain")
    return tensor.layout.physical_shape(tensor.shape), axes


def accumulator(dtype: str) -> str:
    """In which dtype results add up."""
    narrow = {"float16": "float32", "bfloat16": "float32", "bool": "uint8"}
    narrow |= {"int8": "int32", "uint8": "int32", "int16": "int32", "uint16": "int32"}
    return narrow.get(dtype, dtype)


@dataclass(frozen=True, slots=True)
class _Reduction:
    start: float
    combine: Callable[[Expr, Expr], Expr]
    each: Callable[[Expr], Expr]
    finish: Callable[[Expr, int], Expr]  # total, count


def _as_float(function: Callable[[Expr], Expr]) -> Callable[[Expr, int], Expr]:
    def finish(v: Expr, count: int) -> Expr:
        dtype = m.dtype_of(v)
        return function(v) if is_float(dtype) else cast(function(cast(v, "float64")), dtype)

    return finish


def _mean(v: Expr, count: int) -> Expr:
    if is_float(m.dtype_of(v)):
        return v * const(1.0 / count, v) if count & (count - 1) == 0 else v / const(count, v)
    return tirx.truncdiv(v, const(count, v))


def _add(x: Expr, y: Expr) -> Expr:
    return x + y


def _same(v: Expr, count: int) -> Expr:
    return v


def _absolute(v: Expr) -> Expr:
    return tirx.abs(v) if is_float(m.dtype_of(v)) else tirx.Select(v < const(0, v), -v, v)


_REDUCTIONS = {
    "ReduceSum": _Reduction(0, _add, lambda v: v, _same),
    "ReduceMean": _Reduction(0, _add, lambda v: v, _mean),
    "ReduceMax": _Reduction(-math.inf, largest, lambda v: v, _same),
    "ReduceMin": _Reduction(math.inf, smallest, lambda v: v, _same),
    "ReduceProd": _Reduction(1, lambda x, y: x * y, lambda v: v, _same),
    "ReduceL1": _Reduction(0, _add, _absolute, _same),
    "ReduceL2": _Reduction(0, _add, lambda v: v * v, _as_float(tirx.sqrt)),
    "ReduceSumSquare": _Reduction(0, _add, lambda v: v * v, _same),
    "ReduceLogSum": _Reduction(0, _add, lambda v: v, _as_float(m.log)),
    "ReduceLogSumExp": _Reduction(-math.inf, largest, lambda v: v, _same),
}


def bottom(value: float, dtype: str) -> float | int:
    """An infinity as the dtype's own extreme value."""
    if is_float(dtype) or math.isfinite(value):
        return value if is_float(dtype) else int(value)
    info = np.iinfo(dtype)
    return int(info.min if value < 0 else info.max)


def spatial_blocked(node: OpNode, block: int) -> Wanted:
    """Blocked where only spatial axes are reduced and kept as ones; else plain."""
    axes = reduced_axes(node)
    shape, out = node.input(0).shape, node.outputs[0].shape
    fits = len(shape) >= 3 and len(out) == len(shape) and axes and min(axes) >= 2
    zero = node.op_type not in ("ReduceLogSum", "ReduceLogSumExp", "ReduceProd")
    layout = Layout(block) if fits and zero and block else PLAIN
    return Wanted((layout,), (layout,))


@kernel(*_REDUCTIONS, *GLOBAL, static=(1,), fuses=True, wants=spatial_blocked)
def reduction(node: OpNode, name: str, isa: Isa, epilogue: Epilogue) -> Kernel:
    """One kernel a reduction: parallel over kept axes, lanes along the innermost axis.

    Partial results are float32 for float16, int32 for narrow integers; up to 64 of them add up
    pairwise, so the rounding error grows with count / 64.
    """
    x, out = node.input(0), node.outputs[0]
    op = GLOBAL.get(node.op_type, node.op_type)
    if op == "Lp":
        power = node.attr("p", 2)
        if power not in (1, 2):
            raise Refused(f"GlobalLpPool with p = {power}", "use p of 1 or 2")
        op = f"ReduceL{power}"
    spec, dtype = _REDUCTIONS[op], accumulator(x.dtype)
    axes = reduced_axes(node)
    count = math.prod(x.shape[a] for a in axes)
    if x.elements == 0:
        return _of_nothing(name, isa, node, spec, epilogue)
    shape, where = physical(x, axes)
    walk = Walk(axes_of(shape, where), isa.lanes)
    target = TensorType(out.shape, epilogue.dtype or out.dtype, out.layout)
    params = (target, x, *epilogue.operands)
    buffers = [parameter(f"p{i}", t) for i, t in enumerate(params)]
    loads = [load(b, t) for b, t in zip(buffers[2:], epilogue.operands, strict=True)]

    def element(point: Point) -> Expr:
        raw = tirx.BufferLoad(buffers[1], [point.offset])
        return cast(raw if x.dtype == "bool" else loaded(raw, x.dtype), dtype)

    def body(view: View) -> None:
        start = bottom(spec.start, dtype)
        total = view.reduce(
            dtype, start, lambda a, b: combine(spec, a, b), lambda p: m.let(element(p), spec.each)
        )
        result: Stat = total
        if op == "ReduceLogSumExp":
            result = _log_sum_exp(view, total, element, dtype)
        final = view.scalar(dtype, lambda lane: spec.finish(result(lane), count))

        def store(lane: Expr) -> Expr:
            flat = view.kept_flat(lane)
            value = final(lane)
            if x.dtype == "bool":
                return tirx.BufferStore(buffers[0], value, [flat])
            if is_float(out.dtype) and out.dtype != "bfloat16":
                value = cast(value, out.dtype)
            elif not is_float(out.dtype):
                value = cast(value, out.dtype)
            value = through(epilogue, value, flat, out, loads)
            return tirx.BufferStore(buffers[0], stored(value, target.dtype), [flat])

        view.finish(store)

    func = tir.prim_func(name, buffers, lambda b, e: walk.run(b, e, body))
    return Kernel(name, func, walk.tasks, params)


def combine(spec: _Reduction, a: Expr, b: Expr) -> Expr:
    """The reduction of two values, the second named once."""
    return m.let(b, lambda b: spec.combine(a, b))


def through(epilogue: Epilogue, value: Expr, flat: Expr, out: TensorType, loads: list[Any]) -> Expr:
    """`value` after the epilogue at physical position `flat`; padding lanes stay zeros."""
    if epilogue.identity:
        return value
    if not out.layout.block:
        index = unflatten(flat, out.shape) if out.shape else ()
        return m.let(value, lambda v: epilogue.apply(v, index, loads))
    n, c, *spatial, lane = unflatten(flat, out.layout.physical_shape(out.shape))
    channel, extent = c * out.layout.block + lane, out.shape[1]
    if extent % out.layout.block == 0:
        return m.let(value, lambda v: epilogue.apply(v, (n, channel, *spatial), loads))
    inside = tirx.min(channel, extent - 1)
    result = m.let(value, lambda v: epilogue.apply(v, (n, inside, *spatial), loads))
    return tirx.Select(channel < extent, result, const(0, m.dtype_of(result)))


def _log_sum_exp(view: View, top: Stat, element: Callable[[Point], Expr], dtype: str) -> Stat:
    """log(sum(exp(x - max))) + max; an infinite max is the answer itself."""

    def shift(lane: Expr) -> Expr:
        return tirx.Select(tirx.abs(top(lane)) < const(math.inf, dtype), top(lane), const(0, dtype))

    base = view.scalar(dtype, shift)
    total = view.reduce(
        dtype,
        0,
        _add,
        lambda p: m.exp(element(p) - base(p.lane)),
    )
    return view.scalar(dtype, lambda lane: m.log(total(lane)) + base(lane))


def _of_nothing(name: str, isa: Isa, node: OpNode, spec: _Reduction, epilogue: Epilogue) -> Kernel:
    """The reduction of no elements: the neutral element, finished."""
    out = node.outputs[0]
    ins = [node.input(i) for i in operands(node)]
    values = {"ReduceMean": math.nan, "ReduceLogSum": -math.inf, "ReduceLogSumExp": -math.inf}
    value = values.get(node.op_type, spec.start)
    dtype = "float32" if out.dtype == "bfloat16" else out.dtype
    number = tirx.const(value > 0 if dtype == "bool" else bottom(value, dtype), dtype)
    target = TensorType(out.shape, epilogue.dtype or out.dtype, out.layout)

    def body(loads: list[Any]) -> list[Any]:
        return [lambda index: epilogue.apply(number, index, loads[len(ins) :])]

    return injective(name, isa, [target], [*ins, *epilogue.operands], body)


@kernel("ArgMax", "ArgMin")
def arg_extreme(node: OpNode, name: str, isa: Isa, epilogue: Epilogue) -> Kernel:
    """The index of the first (or last) extreme element: one pass for the extreme, one for the index."""
    x, out = node.input(0), node.outputs[0]
    axis = node.attr("axis", 0) % len(x.shape)
    last = node.attr("select_last_index", 0)
    pick = largest if node.op_type == "ArgMax" else smallest
    start = -math.inf if node.op_type == "ArgMax" else math.inf
    dtype = accumulator(x.dtype)
    walk = Walk(axes_of(x.shape, [axis]), isa.lanes)
    buffers = [parameter("p0", out), parameter("p1", x)]

    def element(point: Point) -> Expr:
        raw = tirx.BufferLoad(buffers[1], [point.offset])
        return cast(raw if x.dtype == "bool" else loaded(raw, x.dtype), dtype)

    def body(view: View) -> None:
        best = view.reduce(
            dtype, bottom(start, dtype), lambda a, b: m.let(b, lambda b: pick(a, b)), element
        )

        def place(point: Point) -> Expr:
            i = point.reduced[-1] if point.reduced else tirx.const(0, "int32")
            other = tirx.const(-1 if last else 2**31 - 1, "int32")
            return tirx.Select(tirx.EQ(element(point), best(point.lane)), i, other)

        where = view.reduce(
            "int32", -1 if last else 2**31 - 1, tirx.max if last else tirx.min, place
        )

        def store(lane: Expr) -> Expr:
            value = cast(where(lane), out.dtype)
            return tirx.BufferStore(buffers[0], value, [view.kept_flat(lane)])

        view.finish(store)

    func = tir.prim_func(name, buffers, lambda b, e: walk.run(b, e, body))
    return Kernel(name, func, walk.tasks, (out, x))
