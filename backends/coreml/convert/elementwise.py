"""Elementwise arithmetic, comparison, logic and casts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from effc.backends.coreml.convert.call import (
    CARRIERS,
    INTEGERS,
    MAX_RANK,
    Call,
    Refusal,
    Var,
    kind_of,
    saturate,
)
from effc.backends.coreml.convert.table import op

# ONNX -> MIL where both mean the same for floats; those of the second table also for int32
_UNARY = {
    "Acos": "acos", "Asin": "asin", "Atan": "atan", "Atanh": "atanh", "Ceil": "ceil", "Cos": "cos",
    "Cosh": "cosh", "Erf": "erf", "Exp": "exp", "Floor": "floor", "Round": "round", "Sin": "sin",
    "Sinh": "sinh", "Sqrt": "sqrt", "Tan": "tan", "Tanh": "tanh",
}  # fmt: skip


def _any_rank(c: Call) -> Var:
    """An elementwise operator of one input does not care about the shape."""
    return c.plain(c.raw())


@op(*_UNARY)
def unary(c: Call) -> Var:
    c.only_float()
    return getattr(c.mb, _UNARY[c.node.op_type])(x=_any_rank(c))


@op("Abs")
def absolute(c: Call) -> Var:
    return c.mb.abs(x=_any_rank(c))


@op("Sign")
def sign(c: Call) -> Var:
    return c.mb.sign(x=_any_rank(c))


@op("Neg")
def neg(c: Call) -> Var:
    c.no_wrap()
    x = _any_rank(c)
    return c.mb.mul(x=x, y=c.like(-1, x))


@op("Reciprocal")
def reciprocal(c: Call) -> Var:
    c.only_float()
    x = _any_rank(c)
    return c.mb.real_div(x=c.like(1, x), y=x)


@op("Log")
def log(c: Call) -> Var:
    c.only_float()
    x = _any_rank(c)
    return c.mb.log(x=x, epsilon=c.like(0, x))


@op("Acosh")
def acosh(c: Call) -> Var:
    """log(x + sqrt(x^2 - 1)): MIL has none."""
    c.only_float()
    x = _any_rank(c)
    root = c.mb.sqrt(x=c.mb.sub(x=c.mb.mul(x=x, y=x), y=c.like(1, x)))
    return c.mb.log(x=c.mb.add(x=x, y=root), epsilon=c.like(0, x))


@op("Asinh")
def asinh(c: Call) -> Var:
    """sign(x) * log(|x| + sqrt(x^2 + 1)): of the absolute value, so that nothing cancels."""
    c.only_float()
    x = _any_rank(c)
    size = c.mb.abs(x=x)
    root = c.mb.sqrt(x=c.mb.add(x=c.mb.mul(x=x, y=x), y=c.like(1, x)))
    inner = c.mb.log(x=c.mb.add(x=size, y=root), epsilon=c.like(0, x))
    return c.mb.mul(x=c.mb.sign(x=x), y=inner)


@op("IsNaN")
def is_nan(c: Call) -> Var:
    c.only_float()
    x = _any_rank(c)
    return c.mb.not_equal(x=x, y=x)


@op("IsInf")
def is_inf(c: Call) -> Var:
    c.only_float()
    x = _any_rank(c)
    positive, negative = c.attr("detect_positive", 1), c.attr("detect_negative", 1)
    if positive and negative:
        return c.mb.equal(x=c.mb.abs(x=x), y=c.like(np.inf, x))
    if not positive and not negative:
        return c.mb.not_equal(x=c.mb.abs(x=c.mb.sign(x=x)), y=c.mb.abs(x=c.mb.sign(x=x)))
    return c.mb.equal(x=x, y=c.like(np.inf if positive else -np.inf, x))


# -- two inputs ----------------------------------------------------------------------------------


def _pair(c: Call) -> tuple[Var, Var]:
    x, y = c.x(0), c.x(1)
    if len(c.out_shape()) > MAX_RANK:
        raise Refusal(
            f"its result has rank {len(c.out_shape())}, and Core ML takes at most {MAX_RANK}"
        )
    return x, y


@op("Add")
def add(c: Call) -> Var:
    c.no_wrap()
    x, y = _pair(c)
    return c.mb.add(x=x, y=y)


@op("Sub")
def sub(c: Call) -> Var:
    c.no_wrap()
    x, y = _pair(c)
    return c.mb.sub(x=x, y=y)


@op("Mul")
def mul(c: Call) -> Var:
    c.no_wrap()
    x, y = _pair(c)
    return c.mb.mul(x=x, y=y)


@op("Div")
def div(c: Call) -> Var:
    """Integers are divided toward zero in ONNX; floor_div goes down."""
    x, y = _pair(c)
    if c.is_float():
        return c.mb.real_div(x=x, y=y)
    c.no_wrap()
    down = c.mb.floor_div(x=x, y=y)
    rest = c.mb.sub(x=x, y=c.mb.mul(x=down, y=y))
    inexact = c.mb.not_equal(x=rest, y=np.int32(0))
    opposite = c.mb.logical_xor(x=c.mb.less(x=x, y=np.int32(0)), y=c.mb.less(x=y, y=np.int32(0)))
    up = c.mb.cast(x=c.mb.logical_and(x=inexact, y=opposite), dtype="int32")
    return c.mb.add(x=down, y=up)


@op("Mod")
def mod(c: Call) -> Var:
    """fmod=0 has the sign of the divisor, as MIL's mod; fmod=1 that of the dividend."""
    x, y = _pair(c)
    if c.attr("fmod", 0):
        size = c.mb.mod(x=c.mb.abs(x=x), y=c.mb.abs(x=y))
        return c.mb.mul(x=c.mb.sign(x=x), y=size)
    return c.mb.mod(x=x, y=y)


@op("Pow")
def power(c: Call) -> Var:
    if not c.is_float():
        raise Refusal(
            "it is a power of integers, which Core ML computes in floats", "cast to float"
        )
    x, y = _pair(c)
    exponent = c.const(1)
    if exponent is not None and exponent.size == 1 and len(c.shape(1)) <= c.rank():
        number = float(exponent.reshape(()))
        if number == 2.0:
            return c.mb.mul(x=x, y=x)
        if number == 0.5:
            return c.mb.sqrt(x=x)
        if number == -1.0:
            return c.mb.real_div(x=c.like(1, x), y=x)
        if number == 3.0:
            return c.mb.mul(x=c.mb.mul(x=x, y=x), y=x)
    return c.mb.pow(x=x, y=c.cast(y, kind_of(x)))


@op("Max", "Min", "Sum", "Mean")
def variadic(c: Call) -> Var:
    name = c.node.op_type
    function: Callable[..., Var] = {
        "Max": c.mb.maximum, "Min": c.mb.minimum, "Sum": c.mb.add, "Mean": c.mb.add
    }[name]  # fmt: skip
    parts = c.xs()
    if c.dtype() in (ir.DataType.UINT64, ir.DataType.UINT32):
        c.no_wrap()
    result = parts[0]
    for part in parts[1:]:
        result = function(x=result, y=part)
    if name == "Mean":
        result = c.mb.real_div(x=result, y=c.like(len(parts), result))
    return c.mb.identity(x=result) if len(parts) == 1 else result


_COMPARE = {
    "Equal": "equal", "Greater": "greater", "GreaterOrEqual": "greater_equal", "Less": "less",
    "LessOrEqual": "less_equal",
}  # fmt: skip


@op(*_COMPARE)
def compare(c: Call) -> Var:
    if c.dtype() in (ir.DataType.UINT64, ir.DataType.UINT32):
        c.no_wrap()
    x, y = _pair(c)
    if kind_of(x) == "bool":
        return c.mb.logical_not(x=c.mb.logical_xor(x=x, y=y))
    return getattr(c.mb, _COMPARE[c.node.op_type])(x=x, y=y)


@op("And", "Or", "Xor")
def logic(c: Call) -> Var:
    x, y = _pair(c)
    return getattr(c.mb, f"logical_{c.node.op_type.lower()}")(x=x, y=y)


@op("Not")
def invert(c: Call) -> Var:
    return c.mb.logical_not(x=_any_rank(c))


@op("Where")
def where(c: Call) -> Var:
    """select broadcasts nothing reliably before iOS 17, so the parts are brought to one shape."""
    out = c.out_shape()
    if len(out) > MAX_RANK:
        raise Refusal(f"its result has rank {len(out)}, and Core ML takes at most {MAX_RANK}")
    cond, a, b = (broadcast(c, c.x(i), out) for i in range(3))
    return c.mb.select(cond=cond, a=a, b=b)


def broadcast(c: Call, var: Var, shape: tuple[int, ...]) -> Var:
    """`var` repeated to `shape` by ONNX's rules."""
    if 0 in shape:
        raise Refusal("it makes an empty tensor, which Core ML does not have")
    if tuple(var.shape) == shape:
        return var
    padded = (1,) * (len(shape) - len(var.shape)) + tuple(var.shape)
    var = c.reshaped(var, padded)
    reps = [s // p for s, p in zip(shape, padded, strict=True)]
    return var if set(reps) <= {1} else c.mb.tile(x=var, reps=np.array(reps, np.int32))


# -- clip and cast -------------------------------------------------------------------------------


@op("Clip")
def clip(c: Call) -> Var:
    x = _any_rank(c)
    float_ = c.is_float()
    limits = [c.const(i) if c.has(i) else None for i in (1, 2)]
    if float_ and all(v is not None or not c.has(i) for i, v in zip((1, 2), limits, strict=True)):
        span = np.finfo(c.numpy())
        low, high = (
            float(default) if v is None else float(v.reshape(()))
            for v, default in zip(limits, (-np.inf, np.inf), strict=True)
        )
        if low == 0.0 and high >= span.max:
            return c.mb.relu(x=x)
        if (low, high) == (0.0, 6.0):
            return c.mb.relu6(x=x)
        if low < high and np.isfinite([low, high]).all() and abs(low) <= span.max >= abs(high):
            return c.mb.clip(x=x, alpha=c.like(low, x), beta=c.like(high, x))
    for i, function in ((1, c.mb.maximum), (2, c.mb.minimum)):
        if c.has(i):
            bound = c.const(i)
            if bound is not None and not float_:
                bound = saturate(bound)
            y = c.x(i) if bound is None else c.constant(bound.reshape(()), c.carrier())
            x = function(x=x, y=y)
    return x


_SPANS = {
    ir.DataType.INT8: (8, True), ir.DataType.UINT8: (8, False), ir.DataType.INT16: (16, True),
    ir.DataType.UINT16: (16, False),
}  # fmt: skip


@op("Cast", "CastLike")
def cast(c: Call) -> Var:
    to = c.out_dtype()
    if to not in CARRIERS:
        raise Refusal(f"it casts to {to.name.lower()}, which Core ML does not have")
    source, x = c.dtype(), _any_rank(c)
    if to in _SPANS and source in INTEGERS and source != to:
        bits, signed = _SPANS[to]
        return wrapped(c, x, bits, signed)
    if to not in (ir.DataType.INT64, ir.DataType.INT32, *_SPANS) and to in INTEGERS:
        raise Refusal(f"it casts to {to.name.lower()}, whose range int32 does not have")
    if CARRIERS[to] == "bool" and kind_of(x) != "bool":
        return c.mb.not_equal(x=x, y=c.like(0, x))
    return c.cast(x, CARRIERS[to])


def wrapped(c: Call, x: Var, bits: int, signed: bool) -> Var:
    """An int32 cut to its lowest bits, as a cast between integers does."""
    size = np.int32(1 << bits)
    x = c.mb.mod(x=x, y=size)
    if not signed:
        return x
    over = c.mb.cast(x=c.mb.greater_equal(x=x, y=np.int32(1 << (bits - 1))), dtype="int32")
    return c.mb.sub(x=x, y=c.mb.mul(x=over, y=size))
