"""Circular and hyperbolic functions and their inverses, as math.py makes them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import tirx

from effc.backends.tvm.ops.math import (
    LN2,
    cast,
    const,
    copysign,
    exp_scaled,
    horner,
    is_nan,
    libm,
    log,
    log1p,
    maximum,
    minimum,
    nearbyint,
)
from effc.backends.tvm.tir import let

Expr = Any
Function = Callable[[Expr], Expr]


_SIN = (-1.6666667e-01, 8.33338e-03, -1.9853505e-04, 2.8373952e-06)


_COS = (4.1666646e-02, -1.3887301e-03, 2.4430661e-05)


def _quadrant(x: Expr, body: Callable[[Expr, Expr, Expr], Expr]) -> Expr:
    """`body(q, sin r, cos r)` with x = k pi/2 + r and q = k mod 4; reduced in float64.

    Past |x| = 1e9 the reduction runs out of bits: results are bounded and no longer accurate.
    """
    wide = cast(x, "float64")

    def reduce(k: Expr) -> Expr:
        r = wide - k * const(1.57079632673412561417, k) - k * const(6.07710050650619224932e-11, k)
        q = k - tirx.floor(k * const(0.25, k)) * const(4.0, k)

        def series(r: Expr) -> Expr:
            def finish(z: Expr) -> Expr:
                sine = horner(z, _SIN) * z * r + r
                cosine = horner(z, _COS) * (z * z) - z * const(0.5, z) + const(1.0, z)
                return let(
                    cast(cast(q, "float32"), "int32"),
                    lambda q: let(sine, lambda s: let(cosine, lambda c: body(q, s, c))),
                )

            return let(r * r, finish)

        return let(minimum(maximum(cast(r, "float32"), -0.8), 0.8), series)

    return let(nearbyint(wide * const(2.0 / math.pi, wide)), reduce)


def _bit(q: Expr, value: int) -> Expr:
    return tirx.NE(q & tirx.const(value, "int32"), tirx.const(0, "int32"))


@libm("sin")
def sin(x: Expr) -> Expr:
    """The sine."""

    def body(q: Expr, s: Expr, c: Expr) -> Expr:
        return let(tirx.Select(_bit(q, 1), c, s), lambda v: tirx.Select(_bit(q, 2), -v, v))

    return tirx.Select(x == const(0.0, x), x, _quadrant(x, body))


@libm("cos")
def cos(x: Expr) -> Expr:
    """The cosine."""

    def body(q: Expr, s: Expr, c: Expr) -> Expr:
        flip = _bit(q + tirx.const(1, "int32"), 2)
        return let(tirx.Select(_bit(q, 1), s, c), lambda v: tirx.Select(flip, -v, v))

    return _quadrant(x, body)


@libm("tan")
def tan(x: Expr) -> Expr:
    """The tangent."""

    def body(q: Expr, s: Expr, c: Expr) -> Expr:
        odd = _bit(q, 1)
        return tirx.Select(odd, -c, s) / tirx.Select(odd, s, c)

    return tirx.Select(x == const(0.0, x), x, _quadrant(x, body))


_ASIN = (1.666666e-01, 7.500522e-02, 4.4513408e-02, 3.1838447e-02, 1.4318695e-02, 3.7689537e-02)


_ATAN = (-3.3333316e-01, 1.999853e-01, -1.4244427e-01, 1.05994284e-01, -6.090631e-02)


def _arcs(x: Expr, body: Callable[[Expr, Expr, Expr], Expr]) -> Expr:
    """`body(|x|, near, half)`: near = asin|x| where |x| <= 1/2, half = asin(sqrt((1 - |x|) / 2))."""

    def series(s: Expr, z: Expr) -> Expr:
        return horner(z, _ASIN) * z * s + s

    def finish(a: Expr) -> Expr:
        half = (const(1.0, a) - a) * const(0.5, a)
        return let(half, lambda z: body(a, series(a, a * a), series(tirx.sqrt(z), z)))

    return let(tirx.abs(x), finish)


@libm("asin")
def asin(x: Expr) -> Expr:
    """The arc sine; nan outside [-1, 1]."""

    def body(a: Expr, near: Expr, half: Expr) -> Expr:
        far = const(math.pi / 2, a) - half * const(2.0, a)
        y = tirx.Select(a > const(0.5, a), far, near)
        return tirx.Select(a > const(1.0, a), const(math.nan, a), copysign(y, x))

    return _arcs(x, body)


@libm("acos")
def acos(x: Expr) -> Expr:
    """The arc cosine; nan outside [-1, 1]."""

    def body(a: Expr, near: Expr, half: Expr) -> Expr:
        far = let(
            half * const(2.0, a),
            lambda h: tirx.Select(x < const(0.0, x), const(math.pi, a) - h, h),
        )
        middle = const(math.pi / 2, a) - copysign(near, x)
        return tirx.Select(a > const(0.5, a), far, middle)

    return _arcs(x, body)


@libm("atan")
def atan(x: Expr) -> Expr:
    """The arc tangent."""

    def reduce(a: Expr) -> Expr:
        high, middle = a > const(2.4142136, a), a > const(0.41421356, a)
        above = tirx.Select(high, const(-1.0, a), tirx.Select(middle, a - const(1.0, a), a))
        below = tirx.Select(high, a, tirx.Select(middle, a + const(1.0, a), const(1.0, a)))
        offset = tirx.Select(
            high,
            const(math.pi / 2, a),
            tirx.Select(middle, const(math.pi / 4, a), const(0.0, a)),
        )

        def series(t: Expr) -> Expr:
            return let(t * t, lambda z: horner(z, _ATAN) * z * t + t)

        return copysign(offset + let(above / below, series), x)

    return tirx.Select(is_nan(x), x, let(tirx.abs(x), reduce))


_SINH = (1.6666667e-01, 8.333311e-03, 1.9842632e-04, 2.783963e-06)


@libm("sinh")
def sinh(x: Expr) -> Expr:
    """The hyperbolic sine."""
    near = let(x * x, lambda z: horner(z, _SINH) * z * x + x)
    far = let(exp_scaled(tirx.abs(x), -1), lambda e: e - const(0.25, e) / e)
    return tirx.Select(tirx.abs(x) < const(1.0, x), near, copysign(far, x))


@libm("cosh")
def cosh(x: Expr) -> Expr:
    """The hyperbolic cosine."""
    return let(exp_scaled(tirx.abs(x), -1), lambda e: e + const(0.25, e) / e)


@libm("asinh")
def asinh(x: Expr) -> Expr:
    """The inverse hyperbolic sine."""

    def body(a: Expr) -> Expr:
        z = a * a
        near = log1p(let(z, lambda z: a + z / (const(1.0, a) + tirx.sqrt(const(1.0, a) + z))))
        return copysign(tirx.Select(a > const(1e9, a), log(a) + const(LN2, a), near), x)

    return let(tirx.abs(x), body)


@libm("acosh")
def acosh(x: Expr) -> Expr:
    """The inverse hyperbolic cosine; nan below 1."""
    near = let(x - const(1.0, x), lambda t: log1p(t + tirx.sqrt(t * const(2.0, t) + t * t)))
    y = tirx.Select(x > const(1e9, x), log(x) + const(LN2, x), near)
    return tirx.Select(x < const(1.0, x), const(math.nan, x), y)


@libm("atanh")
def atanh(x: Expr) -> Expr:
    """The inverse hyperbolic tangent; nan outside [-1, 1]."""
    a = tirx.abs(x)
    y = let(a, lambda a: log1p(a * const(2.0, a) / (const(1.0, a) - a)))
    return tirx.Select(a > const(1.0, x), const(math.nan, x), copysign(y * const(0.5, x), x))
