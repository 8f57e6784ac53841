"""Rules that make values out of shapes and coordinates: Range, OneHot, Trilu, ..."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from tvm import tirx

from effc.backends.tvm.ops.contract import Expr, Lazy, OpNode, Refused, rule
from effc.backends.tvm.ops.convert import converted
from effc.backends.tvm.ops.math import cast
from effc.backends.tvm.ops.movement import data, literal
from effc.backends.tvm.tir import let

Inputs = Sequence[Lazy | None]
Index = tuple[Expr, ...]


@rule("ConstantOfShape", static=(0,), kind="map", cost=0, by_shape=True)
def _constant_of_shape(node: OpNode, inputs: Inputs) -> Lazy:
    value = node.attr("value")
    number = 0.0 if value is None else np.asarray(value).reshape(-1)[0].item()
    return lambda index: literal(number, node.outputs[0].dtype)


@rule("Constant", kind="map", cost=0)
def _constant_node(node: OpNode, inputs: Inputs) -> Lazy:
    raise Refused("Constant was not folded", "run the canonicalize passes first")


@rule("Shape", "Size", static=(0,), kind="map", cost=0, by_shape=True)
def _shape(node: OpNode, inputs: Inputs) -> Lazy:
    shape = node.input(0).shape
    numbers = shape[node.attr("start", 0) : node.attr("end")]
    if node.op_type == "Size":
        numbers = (math.prod(shape),)

    def read(index: Index) -> Expr:
        value = tirx.const(numbers[-1] if numbers else 0, "int64")
        for k in reversed(range(len(numbers) - 1)):
            value = tirx.Select(index[0] <= k, tirx.const(numbers[k], "int64"), value)
        return value

    return read


@rule("Range", kind="map", cost=2)
def _range(node: OpNode, inputs: Inputs) -> Lazy:
    start, delta = data(inputs), data(inputs, 2)

    def read(index: Index) -> Expr:
        begin, step = start(()), delta(())
        return begin + step * converted(index[0] + tirx.const(0, "int32"), node.outputs[0].dtype)

    return read


@rule("OneHot", static=(1,), kind="map", cost=3, by_shape=True)
def _one_hot(node: OpNode, inputs: Inputs) -> Lazy:
    where, values = data(inputs), data(inputs, 2)
    rank = len(node.outputs[0].shape)
    axis = node.attr("axis", -1) % rank
    depth = node.outputs[0].shape[axis]

    def read(index: Index) -> Expr:
        i = cast(where((*index[:axis], *index[axis + 1 :])), "int32")
        i = let(i, lambda i: tirx.Select(i < 0, i + depth, i))
        return tirx.Select(tirx.EQ(i, index[axis]), values((1,)), values((0,)))

    return read


@rule("Trilu", static=(1,), kind="map", cost=2)
def _trilu(node: OpNode, inputs: Inputs) -> Lazy:
    x, k = data(inputs), node.const(1, "k")
    diagonal = 0 if k is None else int(k.reshape(()))
    upper = node.attr("upper", 1)

    def read(index: Index) -> Expr:
        row, column = index[-2], index[-1]
        keep = column - row >= diagonal if upper else column - row <= diagonal
        return tirx.Select(keep, x(index), literal(0, node.outputs[0].dtype))

    return read


@rule("EyeLike", static=(0,), kind="map", cost=2, by_shape=True)
def _eye_like(node: OpNode, inputs: Inputs) -> Lazy:
    k, dtype = node.attr("k", 0), node.outputs[0].dtype
    return lambda index: converted(tirx.EQ(index[1] - index[0], k), dtype)
