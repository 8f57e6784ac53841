"""Rules put together: the body of a map kernel, and the epilogue of an anchor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir
import tvm
from tvm import tirx

from effc.backends.tvm import tir
from effc.backends.tvm.grouping import Group, Op
from effc.backends.tvm.kernels.epilogue import Apply
from effc.backends.tvm.ops.contract import Lazy, Refused, apply_rule

Expr = Any
T = TypeVar("T")


class RefusedAt(Exception):
    """A refusal and the operator that it is about."""

    def __init__(self, op: Op, refused: Refused) -> None:
        super().__init__(str(refused))
        self.op, self.refused = op, refused


def located(op: Op, make: Callable[[], T]) -> T:
    """`make()`, with the operator added to a refusal."""
    try:
        return make()
    except Refused as refused:
        raise RefusedAt(op, refused) from refused


def body(group: Group) -> Callable[[list[Lazy]], Sequence[Lazy]]:
    """The output of a map group as a function of its operands."""
    operands = group.operands

    def build(loads: list[Lazy]) -> Sequence[Lazy]:
        values = dict(zip(operands, loads, strict=True))
        _extend(values, group.ops)
        return [values[group.outputs[0]]]

    return build


def epilogue_operands(group: Group) -> tuple[ir.Value, ...]:
    """What the operators behind the anchor read besides the anchor's result."""
    inside = {v for op in group.ops for v in op.outputs}
    found: dict[ir.Value, None] = {}
    for op in group.ops[1:]:
        found.update((v, None) for v in op.reads if v not in inside)
    return tuple(found)


def epilogue(group: Group, operands: Sequence[ir.Value]) -> Apply:
    """The operators behind the anchor, as one expression of its result."""
    anchor = group.ops[0]

    def apply(value: Expr, index: tuple[Expr, ...], loads: Sequence[Lazy]) -> Expr:
        values: dict[ir.Value, Lazy] = dict(zip(operands, loads, strict=True))
        values[anchor.outputs[0]] = lambda _: value
        _extend(values, group.ops[1:])
        return values[group.outputs[0]](index)

    return apply


def _extend(values: dict[ir.Value, Lazy], ops: Sequence[Op]) -> None:
    """Add the outputs of `ops` to `values`."""
    uses: dict[ir.Value, int] = {}
    for op in ops:
        for v in op.node.inputs:
            if v is not None:
                uses[v] = uses.get(v, 0) + 1
    for op in ops:
        inputs = [_input(op, i, values) for i in range(len(op.node.inputs))]
        lazy = _guarded(op, inputs)
        value = op.outputs[0]
        costly = op.rule is not None and op.rule.cost > 0
        values[value] = _named(lazy) if uses.get(value, 0) > 1 and costly else lazy


def _guarded(op: Op, inputs: Sequence[Lazy | None]) -> Lazy:
    lazy = located(op, lambda: apply_rule(op.info, inputs))[op.output]
    return lambda index: located(op, lambda: lazy(index))


def _input(op: Op, i: int, values: dict[ir.Value, Lazy]) -> Lazy | None:
    value = op.node.inputs[i]
    if value is None:
        return None
    if i in op.runtime:
        return values[value]
    constant = op.info.constants.get(i)
    if constant is None or np.size(constant) != 1:
        return None
    number = np.asarray(constant).reshape(())
    dtype = "bool" if number.dtype == np.bool_ else number.dtype.name
    return lambda _: tirx.const(number.item(), dtype)


def _named(lazy: Lazy) -> Lazy:
    """`lazy` computed once for each index at which it is read."""
    known: list[tuple[tuple[Expr, ...], Expr]] = []

    def read(index: tuple[Expr, ...]) -> Expr:
        for other, value in known:
            if all(_same(a, b) for a, b in zip(index, other, strict=True)):
                return value
        named = tir.let(lazy(index), lambda v: v)
        known.append((index, named))
        return named

    return read


def _same(a: Expr, b: Expr) -> bool:
    if isinstance(a, int) or isinstance(b, int):
        return isinstance(a, int) and isinstance(b, int) and a == b
    return a is b or bool(tvm.ir.structural_equal(a, b))
