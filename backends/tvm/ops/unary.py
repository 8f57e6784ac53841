"""Elementwise rules of one input: activations, rounding, functions of a real number."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx

from effc.backends.tvm.ops import math as m
from effc.backends.tvm.ops import trigonometry
from effc.backends.tvm.ops.broadcast import in_wide, is_float
from effc.backends.tvm.ops.contract import Lazy, OpNode, Refused, rule
from effc.backends.tvm.ops.math import const, dtype_of, maximum, minimum
from effc.backends.tvm.tir import let

Expr = Any
Function = Callable[[OpNode, Expr], Expr]


def unary(*op_types: str, cost: int = 1) -> Callable[[Function], Function]:
    """Register `f(node, x)` as a rule; x is float32 where the tensor is float16."""

    def register(function: Function) -> Function:
        @rule(*op_types, cost=cost)
        def run(node: OpNode, inputs: Sequence[Lazy | None]) -> Lazy:
            x = inputs[0]
            if x is None:
                raise Refused("input 0 is missing")
            return lambda index: in_wide(lambda v: function(node, v), x(index))

        return function

    return register


_FUNCTIONS: dict[str, tuple[Callable[[Expr], Expr], int]] = {
    "Exp": (m.exp, 14),
    "Log": (m.log, 18),
    "Tanh": (m.tanh, 30),
    "Sigmoid": (m.sigmoid, 18),
    "Erf": (m.erf, 30),
    "Softplus": (m.softplus, 36),
    "Sin": (trigonometry.sin, 25),
    "Cos": (trigonometry.cos, 25),
    "Tan": (trigonometry.tan, 28),
    "Asin": (trigonometry.asin, 25),
    "Acos": (trigonometry.acos, 25),
    "Atan": (trigonometry.atan, 25),
    "Sinh": (trigonometry.sinh, 30),
    "Cosh": (trigonometry.cosh, 20),
    "Asinh": (trigonometry.asinh, 40),
    "Acosh": (trigonometry.acosh, 40),
    "Atanh": (trigonometry.atanh, 30),
    "Sqrt": (tirx.sqrt, 4),
    "Floor": (tirx.floor, 1),
    "Ceil": (tirx.ceil, 1),
    "Round": (m.nearbyint, 1),
    "Identity": (lambda x: x, 0),
    "IsNaN": (m.is_nan, 2),
}


def _function(function: Callable[[Expr], Expr]) -> Function:
    return lambda node, x: function(x)


for _op, (_call, _cost) in _FUNCTIONS.items():
    unary(_op, cost=_cost)(_function(_call))


@unary("Abs")
def _abs(node: OpNode, x: Expr) -> Expr:
    if is_float(dtype_of(x)):
        return tirx.abs(x)
    return x if dtype_of(x).startswith("uint") else tirx.Select(x < const(0, x), -x, x)


@unary("Neg")
def _neg(node: OpNode, x: Expr) -> Expr:
    return const(-1.0, x) * x if is_float(dtype_of(x)) else const(0, x) - x


@unary("Sign")
def _sign(node: OpNode, x: Expr) -> Expr:
    below = const(0, x) if dtype_of(x).startswith("uint") else const(-1, x)
    positive = tirx.Select(x > const(0, x), const(1, x), x)
    return tirx.Select(x < const(0, x), below, positive)


@unary("Relu")
def _relu(node: OpNode, x: Expr) -> Expr:
    return tirx.Select(x < const(0, x), const(0, x), x)


@unary("LeakyRelu", cost=2)
def _leaky_relu(node: OpNode, x: Expr) -> Expr:
    return tirx.Select(x < const(0, x), x * const(node.attr("alpha", 0.01), x), x)


@unary("ThresholdedRelu")
def _thresholded_relu(node: OpNode, x: Expr) -> Expr:
    return tirx.Select(x > const(node.attr("alpha", 1.0), x), x, const(0, x))


@unary("Elu", cost=18)
def _elu(node: OpNode, x: Expr) -> Expr:
    y = m.expm1(minimum(x, 0.0)) * const(node.attr("alpha", 1.0), x)
    return tirx.Select(x < const(0, x), y, x)


@unary("Selu", cost=18)
def _selu(node: OpNode, x: Expr) -> Expr:
    alpha = node.attr("alpha", 1.67326319217681884765625)
    y = m.expm1(minimum(x, 0.0)) * const(alpha, x)
    return tirx.Select(x < const(0, x), y, x) * const(
        node.attr("gamma", 1.05070102214813232421875), x
    )


@unary("Celu", cost=18)
def _celu(node: OpNode, x: Expr) -> Expr:
    alpha = node.attr("alpha", 1.0)
    y = m.expm1(minimum(x, 0.0) * const(1.0 / alpha, x)) * const(alpha, x)
    return tirx.Select(x < const(0, x), y, x)


@unary("Gelu", cost=32)
def _gelu(node: OpNode, x: Expr) -> Expr:
    half = x * const(0.5, x)
    if node.attr("approximate", "none") == "tanh":
        inner = (x + x * x * x * const(0.044715, x)) * const(math.sqrt(2.0 / math.pi), x)
        return half * (m.tanh(inner) + const(1.0, x))
    return half * (m.erf(x * const(math.sqrt(0.5), x)) + const(1.0, x))


@unary("Mish", cost=25)
def _mish(node: OpNode, x: Expr) -> Expr:
    # tanh(log(1 + w)) = (w^2 + 2w) / (w^2 + 2w + 2), w = e^x
    w = m.exp(minimum(x, 20.0))
    n = let(w, lambda w: w * (w + const(2.0, w)))
    y = let(n, lambda n: x * (n / (n + const(2.0, n))))
    return tirx.Select(x > const(20.0, x), x, y)


@unary("Swish", cost=19)
def _swish(node: OpNode, x: Expr) -> Expr:
    return x * m.sigmoid(x * const(node.attr("alpha", 1.0), x))


@unary("HardSigmoid", cost=3)
def _hard_sigmoid(node: OpNode, x: Expr) -> Expr:
    y = x * const(node.attr("alpha", 0.2), x) + const(node.attr("beta", 0.5), x)
    return minimum(maximum(y, 0.0), 1.0)


@unary("HardSwish", cost=4)
def _hard_swish(node: OpNode, x: Expr) -> Expr:
    return x * minimum(maximum(x * const(1.0 / 6.0, x) + const(0.5, x), 0.0), 1.0)


@unary("Softsign", cost=4)
def _softsign(node: OpNode, x: Expr) -> Expr:
    return x / (tirx.abs(x) + const(1.0, x))


@unary("Reciprocal", cost=4)
def _reciprocal(node: OpNode, x: Expr) -> Expr:
    return const(1.0, x) / x


@unary("Shrink", cost=3)
def _shrink(node: OpNode, x: Expr) -> Expr:
    bias, lambd = node.attr("bias", 0.0), node.attr("lambd", 0.5)
    if not is_float(dtype_of(x)):
        wide = m.cast(x, "float32")
        return m.cast(let(wide, lambda w: _shrunk(w, bias, lambd)), dtype_of(x))
    return _shrunk(x, bias, lambd)


def _shrunk(x: Expr, bias: float, lambd: float) -> Expr:
    above = tirx.Select(x > const(lambd, x), x - const(bias, x), const(0, x))
    return tirx.Select(x < const(-lambd, x), x + const(bias, x), above)


@unary("IsInf", cost=2)
def _is_inf(node: OpNode, x: Expr) -> Expr:
    positive, negative = const(math.inf, x), const(-math.inf, x)
    yes = tirx.const(False, "bool")
    if node.attr("detect_positive", 1):
        yes = tirx.Or(yes, x == positive)
    if node.attr("detect_negative", 1):
        yes = tirx.Or(yes, x == negative)
    return yes


@unary("Not")
def _not(node: OpNode, x: Expr) -> Expr:
    return tirx.Not(x)


@unary("BitwiseNot")
def _bitwise_not(node: OpNode, x: Expr) -> Expr:
    return ~x


@rule("Dropout", static=(1, 2))
def _dropout(node: OpNode, inputs: Sequence[Lazy | None]) -> tuple[Lazy, ...]:
    training = node.const(2, "training_mode")
    ratio = node.const(1, "ratio")
    if training is not None and bool(training) and (ratio is None or float(ratio) != 0.0):
        raise Refused("Dropout in training mode is random", "export the model in eval mode")
    x = inputs[0]
    assert x is not None
    return (x, lambda index: tirx.const(True, "bool"))
