"""Elementwise operations of one and two arguments, casts, and comparisons."""

from __future__ import annotations

import math

import numpy as np

from effc.backends.coreml.interpret.ops.registry import Undefined, op
from effc.backends.coreml.interpret.values import NUMPY_TYPES
from effc.core.measure import Array

ERF_STEP = 1 / 1024
ERF_LIMIT = 6.0  # erf(6) is 1 in double precision
_NODES = np.arange(int(ERF_LIMIT / ERF_STEP) + 2) * ERF_STEP
_ERF = np.array([math.erf(x) for x in _NODES])
_ERF_SLOPE = 2 / math.sqrt(math.pi) * np.exp(-(_NODES**2))


def error_function(x: Array) -> Array:
    """erf by cubic Hermite interpolation between exact values: the error is under 1e-13."""
    size = np.minimum(np.abs(x.astype(np.float64)), ERF_LIMIT)
    index = np.nan_to_num(size / ERF_STEP).astype(np.int64)
    t = size / ERF_STEP - index
    a, b = _ERF[index], _ERF[index + 1]
    da, db = _ERF_SLOPE[index] * ERF_STEP, _ERF_SLOPE[index + 1] * ERF_STEP
    value = a + t * (da + t * (3 * (b - a) - 2 * da - db + t * (2 * (a - b) + da + db)))
    return np.copysign(value, x).astype(x.dtype)


@op("add")
def add(x: Array, y: Array) -> Array:
    return np.add(x, y)


@op("sub")
def sub(x: Array, y: Array) -> Array:
    return np.subtract(x, y)


@op("mul")
def mul(x: Array, y: Array) -> Array:
    return np.multiply(x, y)


@op("real_div")
def real_div(x: Array, y: Array) -> Array:
    if np.result_type(x, y).kind != "f":
        return np.trunc(np.true_divide(x, y)).astype(np.result_type(x, y))
    return np.true_divide(x, y)


@op("floor_div")
def floor_div(x: Array, y: Array) -> Array:
    return np.floor_divide(x, y)


@op("mod")
def mod(x: Array, y: Array) -> Array:
    """The result has the sign of `y`, as Python's."""
    return np.mod(x, y)


@op("pow")
def power(x: Array, y: Array) -> Array:
    if np.result_type(x, y).kind != "f":
        return np.power(x.astype(np.float64), y).astype(np.result_type(x, y))
    return np.power(x, y)


@op("maximum")
def maximum(x: Array, y: Array) -> Array:
    return np.maximum(x, y)


@op("minimum")
def minimum(x: Array, y: Array) -> Array:
    return np.minimum(x, y)


@op("equal")
def equal(x: Array, y: Array) -> Array:
    return np.equal(x, y)


@op("not_equal")
def not_equal(x: Array, y: Array) -> Array:
    return np.not_equal(x, y)


@op("greater")
def greater(x: Array, y: Array) -> Array:
    return np.greater(x, y)


@op("greater_equal")
def greater_equal(x: Array, y: Array) -> Array:
    return np.greater_equal(x, y)


@op("less")
def less(x: Array, y: Array) -> Array:
    return np.less(x, y)


@op("less_equal")
def less_equal(x: Array, y: Array) -> Array:
    return np.less_equal(x, y)


@op("logical_and")
def logical_and(x: Array, y: Array) -> Array:
    return np.logical_and(x, y)


@op("logical_or")
def logical_or(x: Array, y: Array) -> Array:
    return np.logical_or(x, y)


@op("logical_xor")
def logical_xor(x: Array, y: Array) -> Array:
    return np.logical_xor(x, y)


@op("logical_not")
def logical_not(x: Array) -> Array:
    return np.logical_not(x)


@op("abs")
def absolute(x: Array) -> Array:
    return np.abs(x)


@op("acos")
def acos(x: Array) -> Array:
    return np.arccos(x)


@op("asin")
def asin(x: Array) -> Array:
    return np.arcsin(x)


@op("atan")
def atan(x: Array) -> Array:
    return np.arctan(x)


@op("atanh")
def atanh(x: Array) -> Array:
    return np.arctanh(x)


@op("ceil")
def ceil(x: Array) -> Array:
    return np.ceil(x)


@op("clip")
def clip(x: Array, alpha: Array, beta: Array) -> Array:
    """Below iOS 17 `alpha > beta` is not refused by the format, but has no meaning."""
    if alpha > beta:
        raise Undefined(f"alpha {alpha} is above beta {beta}")
    return np.clip(x, alpha, beta)


@op("cos")
def cos(x: Array) -> Array:
    return np.cos(x)


@op("cosh")
def cosh(x: Array) -> Array:
    return np.cosh(x)


@op("erf")
def erf(x: Array) -> Array:
    return error_function(x)


@op("exp")
def exp(x: Array) -> Array:
    return np.exp(x)


@op("exp2")
def exp2(x: Array) -> Array:
    return np.exp2(x).astype(x.dtype)


@op("floor")
def floor(x: Array) -> Array:
    return np.floor(x)


@op("inverse")
def inverse(x: Array, epsilon: Array | float = 1e-4) -> Array:
    return 1 / (x + np.asarray(epsilon, x.dtype))


@op("log")
def log(x: Array, epsilon: Array | float = 1e-45) -> Array:
    return np.log(x + np.asarray(epsilon, x.dtype))


@op("round")
def round_to_even(x: Array) -> Array:
    return np.rint(x)


@op("rsqrt")
def rsqrt(x: Array, epsilon: Array | float = 1e-12) -> Array:
    return 1 / np.sqrt(x + np.asarray(epsilon, x.dtype))


@op("sign")
def sign(x: Array) -> Array:
    return np.sign(x)


@op("sin")
def sin(x: Array) -> Array:
    return np.sin(x)


@op("sinh")
def sinh(x: Array) -> Array:
    return np.sinh(x)


@op("sqrt")
def sqrt(x: Array) -> Array:
    return np.sqrt(x)


@op("square")
def square(x: Array) -> Array:
    return np.square(x)


@op("tan")
def tan(x: Array) -> Array:
    return np.tan(x)


@op("tanh")
def tanh(x: Array) -> Array:
    return np.tanh(x)


@op("threshold")
def threshold(x: Array, alpha: Array) -> Array:
    return np.maximum(x, alpha)


@op("cast")
def cast(x: Array, dtype: str) -> Array:
    """Floats to integers are cut towards zero. Values outside the integer's range have no meaning."""
    if dtype not in NUMPY_TYPES:
        raise Undefined(f"cast to {dtype!r}")
    target = np.dtype(NUMPY_TYPES[dtype])
    if target.kind in "iu" and x.dtype.kind == "f" and x.size:
        bounds = np.iinfo(target)
        whole = np.trunc(x.astype(np.float64))
        if not np.all((whole >= bounds.min) & (whole <= bounds.max)):
            raise Undefined(
                f"cast to {dtype} of {x[~((whole >= bounds.min) & (whole <= bounds.max))].flat[0]}"
            )
    return x.astype(target)
