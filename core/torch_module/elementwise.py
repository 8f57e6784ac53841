"""Operators that compute element by element."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor

from effc.core.torch_module.op import Function, Op


def _unary(function: Callable[[Tensor], Tensor]) -> Function:
    return lambda op, x: function(x)


def _binary(function: Any) -> Function:
    return lambda op, a, b: function(a, b)


def _fold(function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    return lambda op, *xs: functools.reduce(function, xs)


def _div(op: Op, a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _mod(op: Op, a: Tensor, b: Tensor) -> Tensor:
    return torch.fmod(a, b) if op.get("fmod", 0) else torch.remainder(a, b)


def _pow(op: Op, a: Tensor, b: Tensor) -> Tensor:
    if a.is_floating_point() or not b.is_floating_point():
        return torch.pow(a, b.to(a.dtype)) if a.is_floating_point() else torch.pow(a, b).to(a.dtype)
    return torch.pow(a.to(b.dtype), b).to(a.dtype)


def _clip(op: Op, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    least: Any = low if low is not None else op.get("min")
    most: Any = high if high is not None else op.get("max")
    if least is not None:
        x = torch.maximum(x, torch.as_tensor(least, dtype=x.dtype))
    return x if most is None else torch.minimum(x, torch.as_tensor(most, dtype=x.dtype))


def _gelu(op: Op, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=op.get("approximate", "none"))


def _prelu(op: Op, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


def _selu(op: Op, x: Tensor) -> Tensor:
    alpha = op.get("alpha", 1.67326319217681884765625)
    gamma = op.get("gamma", 1.05070102214813232421875)
    y: Tensor = gamma * torch.where(x > 0, x, alpha * torch.expm1(x.clamp(max=0)))
    return y


def _elu(op: Op, x: Tensor) -> Tensor:
    y: Tensor = torch.where(x > 0, x, op.get("alpha", 1.0) * torch.expm1(x.clamp(max=0)))
    return y


def _celu(op: Op, x: Tensor) -> Tensor:
    alpha = op.get("alpha", 1.0)
    y: Tensor = x.clamp(min=0) + (alpha * torch.expm1(x / alpha)).clamp(max=0)
    return y


def _hard_sigmoid(op: Op, x: Tensor) -> Tensor:
    y: Tensor = (x * op.get("alpha", 0.2) + op.get("beta", 0.5)).clamp(0, 1)
    return y


def _shrink(op: Op, x: Tensor) -> Tensor:
    bias, limit = op.get("bias", 0.0), op.get("lambd", 0.5)
    zero = torch.zeros_like(x)
    return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, zero)).to(x.dtype)


def _is_inf(op: Op, x: Tensor) -> Tensor:
    found = torch.zeros_like(x, dtype=torch.bool)
    if op.get("detect_positive", 1):
        found = found | torch.isposinf(x)
    return found | torch.isneginf(x) if op.get("detect_negative", 1) else found


def _cast(op: Op, x: Tensor) -> Tensor:
    return _to(op, x, int(op.get("to")))


def _to(op: Op, x: Tensor, code: int) -> Tensor:
    wanted = ir.DataType(code)
    if wanted in (ir.DataType.UINT16, ir.DataType.UINT32) and not x.is_floating_point():
        return x.to(torch.int64) & (0xFFFF if wanted == ir.DataType.UINT16 else 0xFFFFFFFF)
    dtype = op.dtype(code)
    if dtype == torch.bool:
        return x != 0
    if x.is_floating_point() and not dtype.is_floating_point and dtype != torch.int64:
        return x.to(torch.int64).to(dtype)  # from a float, torch leaves overflow undefined
    return x.to(dtype)


def _cast_like(op: Op, x: Tensor, like: Tensor) -> Tensor:
    source = op.node.inputs[1]
    if source is None or source.dtype is None:
        return x.to(like.dtype)
    return _to(op, x, int(source.dtype))


def _bit_shift(op: Op, a: Tensor, b: Tensor) -> Tensor:
    if op.get("direction") == "LEFT":
        return torch.bitwise_left_shift(a, b)
    return torch.bitwise_right_shift(a, b)


def _mean(op: Op, *xs: Tensor) -> Tensor:
    return functools.reduce(torch.add, xs) / len(xs)


def _swiglu(op: Op, a: Tensor, b: Tensor) -> Tensor:
    return a * torch.sigmoid(op.get("alpha", 1.0) * a) * b


def _dropout(op: Op, x: Tensor, ratio: Tensor | None = None, train: Tensor | None = None) -> Any:
    if train is not None and bool(train) and (ratio is None or float(ratio) > 0):
        raise NotImplementedError("training_mode is true: effc's models are for inference")
    return (x, torch.ones_like(x, dtype=torch.bool))[: len(op.wanted)]


TABLE: dict[str, Function] = {
    **{
        name: _unary(function)
        for name, function in {
            "Abs": torch.abs, "Acos": torch.acos, "Acosh": torch.acosh, "Asin": torch.asin,
            "Asinh": torch.asinh, "Atan": torch.atan, "Atanh": torch.atanh, "Ceil": torch.ceil,
            "Cos": torch.cos, "Cosh": torch.cosh, "Erf": torch.erf, "Exp": torch.exp,
            "Floor": torch.floor, "IsNaN": torch.isnan, "Log": torch.log, "Neg": torch.neg,
            "Not": torch.logical_not, "Reciprocal": torch.reciprocal, "Relu": F.relu,
            "Round": torch.round, "Sigmoid": torch.sigmoid, "Sign": torch.sign, "Sin": torch.sin,
            "Sinh": torch.sinh, "Softplus": F.softplus, "Softsign": F.softsign, "Sqrt": torch.sqrt,
            "Tan": torch.tan, "Tanh": torch.tanh, "HardSwish": F.hardswish, "Mish": F.mish,
            "BitwiseNot": torch.bitwise_not, "Identity": lambda x: x, "Det": torch.linalg.det,
        }.items()
    },
    **{
        name: _binary(function)
        for name, function in {
            "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Equal": torch.eq,
            "Greater": torch.gt, "GreaterOrEqual": torch.ge, "Less": torch.lt,
            "LessOrEqual": torch.le, "And": torch.logical_and, "Or": torch.logical_or,
            "Xor": torch.logical_xor, "BitwiseAnd": torch.bitwise_and,
            "BitwiseOr": torch.bitwise_or, "BitwiseXor": torch.bitwise_xor,
        }.items()
    },
    "Sum": _fold(torch.add),
    "Max": _fold(torch.maximum),
    "Min": _fold(torch.minimum),
    "Mean": _mean,
    "Div": _div,
    "Mod": _mod,
    "Pow": _pow,
    "Clip": _clip,
    "Gelu": _gelu,
    "PRelu": _prelu,
    "Selu": _selu,
    "Elu": _elu,
    "Celu": _celu,
    "LeakyRelu": lambda op, x: F.leaky_relu(x, op.get("alpha", 0.01)),
    "ThresholdedRelu": lambda op, x: torch.where(x > op.get("alpha", 1.0), x, torch.zeros_like(x)),
    "HardSigmoid": _hard_sigmoid,
    "Swish": lambda op, x: x * torch.sigmoid(op.get("alpha", 1.0) * x),
    "SwiGLU": _swiglu,
    "Shrink": _shrink,
    "IsInf": _is_inf,
    "Cast": _cast,
    "CastLike": _cast_like,
    "BitShift": _bit_shift,
    "Where": lambda op, c, a, b: torch.where(c, a, b),
    "Dropout": _dropout,
}  # fmt: skip
