"""How elementwise rules read their inputs: numpy broadcasting, wide arithmetic for narrow floats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from effc.backends.tvm.ops.contract import Lazy, OpNode, Refused
from effc.backends.tvm.ops.math import cast, dtype_of
from effc.backends.tvm.tir import let

Expr = Any


def broadcast(value: Lazy, shape: Sequence[int], rank: int) -> Lazy:
    """`value` of `shape` read at an index of `rank` axes, aligned at the last one."""

    def read(index: tuple[Expr, ...]) -> Expr:
        tail = index[rank - len(shape) :]
        return value(tuple(0 if e == 1 else i for e, i in zip(shape, tail, strict=True)))

    return read


def operand(node: OpNode, inputs: Sequence[Lazy | None], i: int) -> Lazy:
    """Input `i` broadcast to the output's shape."""
    value = inputs[i] if i < len(inputs) else None
    if value is None:
        raise Refused(f"input {i} is missing", "give the input that the operator requires")
    return broadcast(value, node.input(i).shape, len(node.outputs[0].shape))


def is_float(dtype: str) -> bool:
    return dtype.startswith(("float", "bfloat"))


def widened(x: Expr) -> Expr:
    """float16 as float32, everything else as it is."""
    return cast(x, "float32") if dtype_of(x) == "float16" else x


def in_wide(function: Callable[..., Expr], *xs: Expr, out: str = "") -> Expr:
    """`function` of the arguments in float32 where they are float16, each named once."""
    dtype = out or dtype_of(xs[0])

    def named(rest: tuple[Expr, ...], done: tuple[Expr, ...]) -> Expr:
        if not rest:
            return function(*done)
        return let(widened(rest[0]), lambda v: named(rest[1:], (*done, v)))

    y = named(xs, ())
    return cast(y, dtype) if dtype == "float16" and dtype_of(y) != "bool" else y
