"""Elementwise rules of several inputs, with numpy broadcasting."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx

from effc.backends.tvm.ops import math as m
from effc.backends.tvm.ops.broadcast import in_wide, is_float, operand
from effc.backends.tvm.ops.contract import Lazy, OpNode, Refused, rule
from effc.backends.tvm.ops.math import cast, const, dtype_of
from effc.backends.tvm.ops.power import power
from effc.backends.tvm.tir import let

Expr = Any
Function = Callable[[OpNode, Expr, Expr], Expr]


def binary(*op_types: str, cost: int = 1) -> Callable[[Function], Function]:
    """Register `f(node, x, y)` as a rule; float16 is computed in float32."""

    def register(function: Function) -> Function:
        @rule(*op_types, cost=cost)
        def run(node: OpNode, inputs: Sequence[Lazy | None]) -> Lazy:
            x, y = operand(node, inputs, 0), operand(node, inputs, 1)
            return lambda index: in_wide(lambda a, b: function(node, a, b), x(index), y(index))

        return function

    return register


def _simple(op_type: str, function: Callable[[Expr, Expr], Expr]) -> None:
    binary(op_type)(lambda node, x, y: function(x, y))


_simple("Add", lambda x, y: x + y)
_simple("Sub", lambda x, y: x - y)
_simple("Mul", lambda x, y: x * y)
_simple("Less", lambda x, y: x < y)
_simple("LessOrEqual", lambda x, y: x <= y)
_simple("Greater", lambda x, y: x > y)
_simple("GreaterOrEqual", lambda x, y: x >= y)
_simple("And", tirx.And)
_simple("Or", tirx.Or)
_simple("BitwiseAnd", lambda x, y: x & y)
_simple("BitwiseOr", lambda x, y: x | y)
_simple("BitwiseXor", lambda x, y: x ^ y)


@binary("Equal")
def _equal(node: OpNode, x: Expr, y: Expr) -> Expr:
    return tirx.Not(_differ(x, y)) if dtype_of(x) == "bool" else tirx.EQ(x, y)


@binary("Xor")
def _xor(node: OpNode, x: Expr, y: Expr) -> Expr:
    return _differ(x, y)


def _no_zero(y: Expr) -> Expr:
    """An integer divisor that can't trap; dividing by zero is undefined in ONNX."""
    return tirx.Select(tirx.EQ(y, const(0, y)), const(1, y), y)


@binary("Div", cost=4)
def _div(node: OpNode, x: Expr, y: Expr) -> Expr:
    return x / y if is_float(dtype_of(x)) else tirx.truncdiv(x, _no_zero(y))


def _differ(x: Expr, y: Expr) -> Expr:
    """Exclusive or of two truth values (TIR compares those as floats)."""
    return tirx.NE(cast(x, "uint8"), cast(y, "uint8"))


def _remainder(x: Expr, y: Expr) -> Expr:
    """C's remainder; floats by libm: x - trunc(x / y) y is wrong where the quotient rounds."""
    dtype = dtype_of(x)
    if is_float(dtype):
        return tirx.call_pure_extern(dtype, "fmod" if dtype == "float64" else "fmodf", x, y)
    return tirx.truncmod(x, _no_zero(y))


@binary("Mod", cost=8)
def _mod(node: OpNode, x: Expr, y: Expr) -> Expr:
    r = _remainder(x, y)
    if node.attr("fmod", 0) or dtype_of(x).startswith("uint"):
        return r

    def sign_of_divisor(r: Expr) -> Expr:
        zero = const(0, r)
        other = tirx.And(tirx.NE(r, zero), _differ(r < zero, y < zero))
        if is_float(dtype_of(r)):
            still = tirx.Select(tirx.EQ(r, zero), y * zero, r)  # a zero takes the divisor's sign
            return tirx.Select(other, r + y, tirx.Select(m.is_nan(still), r, still))
        return tirx.Select(other, r + y, r)

    return let(r, sign_of_divisor)


@binary("BitShift", cost=2)
def _bit_shift(node: OpNode, x: Expr, y: Expr) -> Expr:
    width = int("".join(c for c in dtype_of(x) if c.isdigit()))
    inside = tirx.Select(y < const(width, y), y, const(0, y))
    shifted = x << inside if node.attr("direction") == "LEFT" else x >> inside
    over = const(0, x)
    if node.attr("direction") == "RIGHT" and not dtype_of(x).startswith("uint"):
        over = x >> const(width - 1, x)
    return tirx.Select(y < const(width, y), shifted, over)


def _nan_aware(pick: Callable[[Expr, Expr], Expr]) -> Callable[[Expr, Expr], Expr]:
    """max or min that gives nan where either argument is nan."""

    def choose(x: Expr, y: Expr) -> Expr:
        if not is_float(dtype_of(x)):
            return tirx.Select(pick(x, y), x, y)
        return tirx.Select(tirx.Or(pick(x, y), m.is_nan(x)), x, y)

    return choose


largest = _nan_aware(lambda x, y: x > y)
smallest = _nan_aware(lambda x, y: x < y)


@rule("Max", "Min", "Sum", "Mean", cost=3)
def _variadic(node: OpNode, inputs: Sequence[Lazy | None]) -> Lazy:
    values = [operand(node, inputs, i) for i in range(len(inputs))]
    fold: Callable[[Expr, Expr], Expr] = {"Max": largest, "Min": smallest}.get(
        node.op_type, lambda x, y: x + y
    )

    def read(index: tuple[Expr, ...]) -> Expr:
        total = values[0](index)
        for value in values[1:]:
            total = in_wide(fold, total, value(index))
        if node.op_type == "Mean":
            return in_wide(lambda t: t * const(1.0 / len(values), t), total)
        return total

    return read


def _integer_power(x: Expr, e: Expr) -> Expr:
    """Repeated squaring modulo 2^bits; exponents below 64."""

    def step(bit: int, result: Expr, base: Expr) -> Expr:
        if bit == 6:
            return result
        take = tirx.NE(e & const(1 << bit, e), const(0, e))
        chosen = tirx.Select(take, result * base, result)
        return let(chosen, lambda r: let(base * base, lambda b: step(bit + 1, r, b)))

    positive = step(0, const(1, x), x)
    if dtype_of(e).startswith("uint"):
        return positive
    odd = tirx.NE(e & const(1, e), const(0, e))
    sign = tirx.Select(odd, x, const(1, x))
    unit = tirx.Or(tirx.EQ(x, const(1, x)), tirx.EQ(x, const(-1, x)))
    return tirx.Select(e < const(0, e), tirx.Select(unit, sign, const(0, x)), positive)


@rule("Pow", cost=60)
def _pow(node: OpNode, inputs: Sequence[Lazy | None]) -> Lazy:
    x, y = operand(node, inputs, 0), operand(node, inputs, 1)
    exponent = node.constants.get(1)
    fixed = float(exponent.reshape(())) if exponent is not None and exponent.size == 1 else None
    simple: dict[float, Callable[[Expr], Expr]] = {
        1.0: lambda v: v,
        2.0: lambda v: v * v,
        3.0: lambda v: v * v * v,
        -1.0: lambda v: const(1.0, v) / v,
    }

    def raised(a: Expr, b: Expr) -> Expr:
        if is_float(dtype_of(a)):
            return power(a, cast(b, dtype_of(a)))
        if is_float(dtype_of(b)):  # libm: an exact power must not fall below the integer
            exact = tirx.pow(cast(a, "float64"), cast(b, "float64"))
            return cast(let(exact, lambda p: p), dtype_of(a))
        return _integer_power(a, b)

    def read(index: tuple[Expr, ...]) -> Expr:
        dtype = node.input(0).dtype
        if fixed in simple and (is_float(dtype) or fixed > 0):
            return in_wide(simple[fixed], x(index))
        return in_wide(raised, x(index), y(index))

    return read


@rule("Where")
def _where(node: OpNode, inputs: Sequence[Lazy | None]) -> Lazy:
    c, x, y = (operand(node, inputs, i) for i in range(3))
    return lambda index: tirx.Select(c(index), x(index), y(index))


@rule("PRelu", cost=2)
def _prelu(node: OpNode, inputs: Sequence[Lazy | None]) -> Lazy:
    x, slope = operand(node, inputs, 0), operand(node, inputs, 1)

    def value(v: Expr, s: Expr) -> Expr:
        return tirx.Select(v < const(0, v), v * s, v)

    return lambda index: in_wide(value, x(index), slope(index))


@rule("Clip", cost=2)
def _clip(node: OpNode, inputs: Sequence[Lazy | None]) -> Lazy:
    x = operand(node, inputs, 0)

    def limit(i: int, name: str) -> Lazy | None:
        if i in node.constants:
            number = node.constants[i].reshape(()).item()
            if isinstance(number, float) and not is_float(node.input(0).dtype):
                number = int(number)
            return lambda index: number
        if i < len(inputs) and inputs[i] is not None:
            bound, rank = inputs[i], len(node.input(i).shape)
            assert bound is not None
            return lambda index: bound((0,) * rank)
        number = node.attr(name)
        return None if number is None else (lambda index: number)

    low, high = limit(1, "min"), limit(2, "max")

    def clamp(v: Expr, bound: Any, below: bool) -> Expr:
        if isinstance(bound, (int, float)):
            if isinstance(bound, float) and math.isnan(bound):
                raise Refused("Clip to nan", "give numbers as min and max")
            bound = const(bound, v)
        return let(
            cast(bound, dtype_of(v)),
            lambda b: let(v, lambda v: tirx.Select(v < b if below else v > b, b, v)),
        )

    def read(index: tuple[Expr, ...]) -> Expr:
        def value(v: Expr) -> Expr:
            if low is not None:
                v = clamp(v, low(index), True)
            return v if high is None else clamp(v, high(index), False)

        return in_wide(value, x(index))

    return read


@rule("BatchNormalization", cost=3)
def _batch_normalization(node: OpNode, inputs: Sequence[Lazy | None]) -> Lazy:
    if node.attr("training_mode", 0) or len(node.outputs) > 1:
        raise Refused("BatchNormalization in training mode", "export the model in eval mode")
    x, scale, bias, mean, var = inputs[:5]
    assert x and scale and bias and mean and var
    epsilon = node.attr("epsilon", 1e-5)

    def read(index: tuple[Expr, ...]) -> Expr:
        c = (index[1],) if len(index) > 1 else (0,)

        def value(v: Expr, s: Expr, b: Expr, mu: Expr, var: Expr) -> Expr:
            factor = s / tirx.sqrt(var + const(epsilon, var))
            return (v - cast(mu, dtype_of(v))) * cast(factor, dtype_of(v)) + b

        return in_wide(value, x(index), scale(c), bias(c), mean(c), var(c))

    return read
