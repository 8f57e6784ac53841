"""Elementwise operators of domain `effc.integer` as rules, and its Lookup."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx

from effc.backends.tvm.ops import math as m
from effc.backends.tvm.ops.broadcast import operand
from effc.backends.tvm.ops.contract import Lazy, OpNode, Refused, rule
from effc.backends.tvm.ops.requantize import byte, number, real, scaled, target

Expr = Any
Index = tuple[Expr, ...]


@rule("effc.integer::Add", cost=9)
def _add(node: OpNode, inputs: Sequence[Lazy | None]) -> Lazy:
    a, b, to = operand(node, inputs, 0), operand(node, inputs, 1), target(node)
    zeros = [node.attr(f"{x}_zero_point", 0) for x in "ab"]
    factors = [number(node, f"{x}_multiplier") for x in "ab"]
    for i in (0, 1):
        byte(node.input(i).dtype)

    def read(index: Index) -> Expr:
        x = real(a(index), zeros[0], factors[0])
        return to.store(x + real(b(index), zeros[1], factors[1]))

    return read


@rule("effc.integer::Mul", cost=8)
def _mul(node: OpNode, inputs: Sequence[Lazy | None]) -> Lazy:
    a, b, to = operand(node, inputs, 0), operand(node, inputs, 1), target(node)
    zeros = [node.attr(f"{x}_zero_point", 0) for x in "ab"]
    factor = number(node, "multiplier")
    for i in (0, 1):
        byte(node.input(i).dtype)

    def read(index: Index) -> Expr:
        x, y = (
            m.cast(v(index), "int32") - tirx.const(z, "int32")
            for v, z in zip((a, b), zeros, strict=True)
        )
        return to.store(scaled(x * y, factor))

    return read


@rule("effc.integer::Requantize", cost=6)
def _requantize(node: OpNode, inputs: Sequence[Lazy | None]) -> Lazy:
    x, to = operand(node, inputs, 0), target(node)
    zero, factor = node.attr("x_zero_point", 0), number(node, "multiplier")
    byte(node.input(0).dtype)
    return lambda index: to.store(real(x(index), zero, factor))


@rule("effc.integer::Lookup", kind="map", cost=4)
def _lookup(node: OpNode, inputs: Sequence[Lazy | None]) -> Lazy:
    """Loads from the table; alone in its group it is the kernel of lookup.py."""
    x, table = operand(node, inputs, 0), inputs[1]
    check_lookup(node)
    assert table is not None
    offset = 128 if node.input(0).dtype == "int8" else 0
    return lambda index: table((m.cast(x(index), "int32") + tirx.const(offset, "int32"),))


def check_lookup(node: OpNode) -> None:
    """Refuse what is no table of 256 bytes."""
    byte(node.input(0).dtype)
    byte(node.outputs[0].dtype)
    if node.input(1).shape != (256,) or node.input(1).dtype != node.outputs[0].dtype:
        raise Refused(
            f"its table is {node.input(1).dtype} {list(node.input(1).shape)}",
            f"give 256 elements of {node.outputs[0].dtype}",
        )
