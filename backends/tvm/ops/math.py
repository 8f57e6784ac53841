"""Transcendental functions as float32 TIR expressions that stay in vector registers.

LLVM turns `llvm.exp` on a vector into one libm call a lane, so every function here is a range reduction
and a polynomial (minimax by weighted least squares, coefficients rounded to float32 one after the
other). float64 arguments go to libm, which is slower and exact to its last bit or so.

Largest errors in units in the last place, against float64 libm; the bounds are those that
tests/backends/tvm/ops/test_math.py holds, over the arguments that it draws: exp 1.1 (from -87 on; below,
results are denormal), expm1 2, log 1, log1p 2 (x > 0), tanh 3, sigmoid 3, erf 1.5, softplus 2, sin and
cos 2 and tan 4 (|x| < 1e5), asin 3, acos 2, atan 3, sinh 2, cosh 2, asinh 3, acosh 3, atanh 3, pow 1.
nan stays nan; infinities, zeros and their signs are those of C99. Sigmoid is 0 below -87.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import tirx

from effc.backends.tvm.tir import let

Expr = Any
Function = Callable[[Expr], Expr]


def dtype_of(x: Expr) -> str:
    """The TIR dtype of an expression."""
    return str(x.ty.dtype)


def const(value: float | int, like: Expr | str) -> Expr:
    """A constant of the dtype of `like` (an expression, or the name of a dtype)."""
    return tirx.const(value, like if isinstance(like, str) else dtype_of(like))


def cast(x: Expr, dtype: str) -> Expr:
    """Conversion as C does it."""
    return x if dtype_of(x) == dtype else tirx.Cast(dtype, x)


def bits(x: Expr, dtype: str) -> Expr:
    """The same bits read as `dtype`."""
    return tirx.reinterpret(dtype, x)


def horner(x: Expr, coefficients: tuple[float, ...]) -> Expr:
    """c0 + c1 x + c2 x^2 + ..."""
    y = const(coefficients[-1], x)
    for c in reversed(coefficients[:-1]):
        y = y * x + const(c, x)
    return y


def is_nan(x: Expr) -> Expr:
    """True for nan."""
    if dtype_of(x) == "float32":
        magnitude = bits(x, "uint32") & tirx.const(0x7FFFFFFF, "uint32")
        return magnitude > tirx.const(0x7F800000, "uint32")
    return tirx.isnan(x)


def nearbyint(x: Expr) -> Expr:
    """Round half to even; the vectorizer knows the LLVM intrinsic, not `tirx.nearbyint`."""
    return tirx.call_llvm_pure_intrin(dtype_of(x), "llvm.nearbyint", x)


def maximum(x: Expr, c: float) -> Expr:
    """max(x, c) of a constant that is no nan; nan where x is nan."""
    return let(x, lambda x: tirx.Select(x < const(c, x), const(c, x), x))


def minimum(x: Expr, c: float) -> Expr:
    """min(x, c) of a constant that is no nan; nan where x is nan."""
    return let(x, lambda x: tirx.Select(x > const(c, x), const(c, x), x))


def copysign(magnitude: Expr, sign: Expr) -> Expr:
    """|magnitude| with the sign of `sign` (float32)."""
    low = bits(magnitude, "uint32") & tirx.const(0x7FFFFFFF, "uint32")
    return bits(low | (bits(sign, "uint32") & tirx.const(0x80000000, "uint32")), "float32")


def _libm(name: str) -> Callable[[Function], Function]:
    """float64 through libm, float16 and bfloat16 through float32."""

    def decorate(function: Function) -> Function:
        def call(x: Expr) -> Expr:
            dtype = dtype_of(x)
            if dtype == "float64":
                return getattr(tirx, name)(x)
            if dtype != "float32":
                return cast(let(cast(x, "float32"), function), dtype)
            return let(x, function)

        call.__doc__ = function.__doc__
        call.__name__ = function.__name__
        return call

    return decorate


_EXP = (0.5, 1.6666667e-01, 4.1666463e-02, 8.333207e-03, 1.3935104e-03, 1.9945152e-04)
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4


def _pow2(n: Expr) -> Expr:
    """2^n for an int32 in [-126, 127]."""
    return bits((n + tirx.const(127, "int32")) << tirx.const(23, "int32"), "float32")


def _reduced_exp(x: Expr, body: Callable[[Expr, Expr], Expr], most: float = 89.0) -> Expr:
    """`body(n, r)` with x = n ln 2 + r, |r| <= ln 2 / 2; x is clamped to [-104, most]."""
    return let(minimum(maximum(x, -104.0), most), lambda x: _split_exp(x, body))


def _split_exp(x: Expr, body: Callable[[Expr, Expr], Expr]) -> Expr:
    """`body(n, r)` of an `x` that is named and in range."""
    n = nearbyint(x * const(math.log2(math.e), x))
    return let(
        n, lambda n: let(x - n * const(_LN2_HIGH, n) - n * const(_LN2_LOW, n), lambda r: body(n, r))
    )


def _exp_scaled(x: Expr, scale: int) -> Expr:
    """exp(x) * 2^scale without an overflow in between."""

    def body(n: Expr, r: Expr) -> Expr:
        y = horner(r, _EXP) * (r * r) + r + const(1.0, r)

        def scaled(n: Expr) -> Expr:
            half = n >> tirx.const(1, "int32")
            return let(half, lambda h: (y * _pow2(h)) * _pow2(n - h))

        return let(cast(n, "int32") + tirx.const(scale, "int32"), scaled)

    return _reduced_exp(x, body, 89.0 - scale)


@_libm("exp")
def exp(x: Expr) -> Expr:
    """e^x."""
    return _exp_scaled(x, 0)


def _exp_moderate(x: Expr) -> Expr:
    """e^x for -87.3 <= x <= 88 without any check."""

    def body(n: Expr, r: Expr) -> Expr:
        return (horner(r, _EXP) * (r * r) + r + const(1.0, r)) * _pow2(cast(n, "int32"))

    return let(x, lambda x: _split_exp(x, body))


@_libm("exp")
def exp_nonpositive(x: Expr) -> Expr:
    """e^x for x <= 0, 0 below -87 (softmax: a few instructions less than exp)."""
    y = _exp_moderate(maximum(x, -87.0))
    return tirx.Select(x < const(-87.0, x), const(0.0, x), y)


def expm1(x: Expr) -> Expr:
    """e^x - 1 without cancellation near 0 (float64: exp(x) - 1)."""
    if dtype_of(x) != "float32":
        return exp(x) - const(1.0, x)

    def body(n: Expr, r: Expr) -> Expr:
        q = horner(r, _EXP) * (r * r) + r
        s = _pow2(minimum(cast(n, "int32"), 127))
        return let(s, lambda s: q * s + (s - const(1.0, s)))

    def whole(x: Expr) -> Expr:
        y = _reduced_exp(maximum(x, -50.0), body)
        y = tirx.Select(x > const(88.0, x), _exp_scaled(x, 0), y)
        return tirx.Select(x == const(0.0, x), x, y)

    return let(x, whole)


_LOG = (
    3.333331e-01, -2.4999987e-01, 2.0002225e-01, -1.6669253e-01, 1.421867e-01,
    -1.2384285e-01, 1.1872924e-01, -1.1790409e-01, 6.9162056e-02,
)  # fmt: skip


@_libm("log")
def log(x: Expr) -> Expr:
    """The natural logarithm."""
    tiny = x < const(1.1754944e-38, x)

    def scaled(y: Expr) -> Expr:
        i = bits(y, "int32")

        def exponent(i: Expr) -> Expr:
            e = (i - tirx.const(0x3F3504F3, "int32")) >> tirx.const(23, "int32")
            return let(e, lambda e: finish(e, bits(i - (e << tirx.const(23, "int32")), "float32")))

        return let(i, exponent)

    def finish(e: Expr, m: Expr) -> Expr:
        n = cast(e, "float32") - tirx.Select(tiny, const(23.0, x), const(0.0, x))

        def series(n: Expr, f: Expr) -> Expr:
            z = f * f
            tail = horner(f, _LOG) * f * z + n * const(_LN2_LOW, n) - z * const(0.5, z)
            return tail + f + n * const(_LN2_HIGH, n)

        return let(n, lambda n: let(m - const(1.0, m), lambda f: series(n, f)))

    y = let(tirx.Select(tiny, x * const(8388608.0, x), x), scaled)
    y = tirx.Select(x < const(math.inf, x), y, x)  # inf and nan
    y = tirx.Select(x < const(0.0, x), const(math.nan, x), y)
    return tirx.Select(x == const(0.0, x), const(-math.inf, x), y)


@_libm("log1p")
def log1p(x: Expr) -> Expr:
    """log(1 + x) without cancellation near 0."""

    def body(u: Expr) -> Expr:
        lost = (x - (u - const(1.0, u))) / u
        inside = tirx.And(u > const(0.0, u), u < const(math.inf, u))
        return log(u) + tirx.Select(inside, lost, const(0.0, u))

    return tirx.Select(tirx.abs(x) < const(1e-10, x), x, let(const(1.0, x) + x, body))


@_libm("tanh")
def tanh(x: Expr) -> Expr:
    """The hyperbolic tangent: t / (t + 2) with t = e^2|x| - 1."""

    def body(n: Expr, r: Expr) -> Expr:
        q, s = horner(r, _EXP) * (r * r) + r, _pow2(cast(n, "int32"))
        t = let(s, lambda s: q * s + (s - const(1.0, s)))
        return let(t, lambda t: t / (t + const(2.0, t)))

    a = let(tirx.abs(x), lambda a: minimum(a, 10.0) * const(2.0, a))
    return copysign(let(a, lambda a: _split_exp(a, body)), x)


@_libm("sigmoid")
def sigmoid(x: Expr) -> Expr:
    """1 / (1 + e^-x), 0 below -87."""
    e = _exp_moderate(minimum(maximum(-x, -87.0), 87.0))
    y = const(1.0, x) / (const(1.0, x) + e)
    return tirx.Select(x < const(-87.0, x), const(0.0, x), y)


_ERF = (
    1.2837917e-01, -3.761263e-01, 1.1283624e-01, -2.6855577e-02,
    5.1918793e-03, -8.0425333e-04, 7.96179e-05,
)  # fmt: skip
_ERFC = (
    1.7587456e-04, -1.1295208e+00, -6.333349e-01, -1.0829354e-01,
    2.512824e-02, -4.174444e-03, 4.3516562e-04, -2.1156146e-05,
)  # fmt: skip


@_libm("erf")
def erf(x: Expr) -> Expr:
    """The error function: x P(x^2) near 0, 1 - exp(P(|x|)) beyond 0.92."""

    def far(a: Expr) -> Expr:
        return copysign(
            const(1.0, a) - _exp_moderate(let(minimum(a, 4.0), lambda a: horner(a, _ERFC))), x
        )

    near = let(x * x, lambda z: horner(z, _ERF) * x + x)
    y = tirx.Select(tirx.abs(x) < const(0.92, x), near, let(tirx.abs(x), far))
    return tirx.Select(is_nan(x), x, y)


def softplus(x: Expr) -> Expr:
    """log(1 + e^x)."""
    return let(x, lambda x: maximum(x, 0.0) + log1p(exp_nonpositive(-tirx.abs(x))))


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


@_libm("sin")
def sin(x: Expr) -> Expr:
    """The sine."""

    def body(q: Expr, s: Expr, c: Expr) -> Expr:
        return let(tirx.Select(_bit(q, 1), c, s), lambda v: tirx.Select(_bit(q, 2), -v, v))

    return tirx.Select(x == const(0.0, x), x, _quadrant(x, body))


@_libm("cos")
def cos(x: Expr) -> Expr:
    """The cosine."""

    def body(q: Expr, s: Expr, c: Expr) -> Expr:
        flip = _bit(q + tirx.const(1, "int32"), 2)
        return let(tirx.Select(_bit(q, 1), s, c), lambda v: tirx.Select(flip, -v, v))

    return _quadrant(x, body)


@_libm("tan")
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


@_libm("asin")
def asin(x: Expr) -> Expr:
    """The arc sine; nan outside [-1, 1]."""

    def body(a: Expr, near: Expr, half: Expr) -> Expr:
        far = const(math.pi / 2, a) - half * const(2.0, a)
        y = tirx.Select(a > const(0.5, a), far, near)
        return tirx.Select(a > const(1.0, a), const(math.nan, a), copysign(y, x))

    return _arcs(x, body)


@_libm("acos")
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


@_libm("atan")
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


@_libm("sinh")
def sinh(x: Expr) -> Expr:
    """The hyperbolic sine."""
    near = let(x * x, lambda z: horner(z, _SINH) * z * x + x)
    far = let(_exp_scaled(tirx.abs(x), -1), lambda e: e - const(0.25, e) / e)
    return tirx.Select(tirx.abs(x) < const(1.0, x), near, copysign(far, x))


@_libm("cosh")
def cosh(x: Expr) -> Expr:
    """The hyperbolic cosine."""
    return let(_exp_scaled(tirx.abs(x), -1), lambda e: e + const(0.25, e) / e)


_LN2 = math.log(2.0)


@_libm("asinh")
def asinh(x: Expr) -> Expr:
    """The inverse hyperbolic sine."""

    def body(a: Expr) -> Expr:
        z = a * a
        near = log1p(let(z, lambda z: a + z / (const(1.0, a) + tirx.sqrt(const(1.0, a) + z))))
        return copysign(tirx.Select(a > const(1e9, a), log(a) + const(_LN2, a), near), x)

    return let(tirx.abs(x), body)


@_libm("acosh")
def acosh(x: Expr) -> Expr:
    """The inverse hyperbolic cosine; nan below 1."""
    near = let(x - const(1.0, x), lambda t: log1p(t + tirx.sqrt(t * const(2.0, t) + t * t)))
    y = tirx.Select(x > const(1e9, x), log(x) + const(_LN2, x), near)
    return tirx.Select(x < const(1.0, x), const(math.nan, x), y)


@_libm("atanh")
def atanh(x: Expr) -> Expr:
    """The inverse hyperbolic tangent; nan outside [-1, 1]."""
    a = tirx.abs(x)
    y = let(a, lambda a: log1p(a * const(2.0, a) / (const(1.0, a) - a)))
    return tirx.Select(a > const(1.0, x), const(math.nan, x), copysign(y * const(0.5, x), x))


def rsqrt(x: Expr) -> Expr:
    """1 / sqrt(x), correctly rounded twice."""
    return const(1.0, x) / tirx.sqrt(x)


def _log2_wide(x: Expr) -> Expr:
    """log2 of a positive float64 to about 1e-13."""

    def exponent(i: Expr) -> Expr:
        e = (i - tirx.const(0x3FE6A09E667F3BCD, "int64")) >> tirx.const(52, "int64")

        def finish(e: Expr) -> Expr:
            m = bits(i - (e << tirx.const(52, "int64")), "float64")

            def series(s: Expr) -> Expr:
                odd = tuple(2.0 / math.log(2.0) / k for k in (1, 3, 5, 7, 9, 11, 13))
                tail = let(s * s, lambda z: horner(z, odd))
                return tail * s + cast(cast(e, "int32"), "float64")

            return let(m, lambda m: let((m - const(1.0, m)) / (m + const(1.0, m)), series))

        return let(e, finish)

    return let(bits(x, "int64"), exponent)


def _exp2_wide(t: Expr) -> Expr:
    """2^t of a float64, clamped to +-400, to about 1e-12."""
    taylor = tuple(_LN2**k / math.factorial(k) for k in range(12))

    def body(t: Expr) -> Expr:
        def scaled(n: Expr) -> Expr:
            scale = (cast(cast(n, "int32"), "int64") + tirx.const(1023, "int64")) << tirx.const(
                52, "int64"
            )
            return let(t - n, lambda r: horner(r, taylor)) * bits(scale, "float64")

        return let(nearbyint(t), scaled)

    return let(minimum(maximum(t, -400.0), 400.0), body)


def power(x: Expr, y: Expr) -> Expr:
    """x^y of float32, through float64 inside; the special cases are those of C99."""
    if dtype_of(x) == "float64":
        return tirx.pow(x, cast(y, "float64"))

    def body(x: Expr, y: Expr) -> Expr:
        one, zero = const(1.0, x), const(0.0, x)
        a = cast(tirx.abs(x), "float64")
        log2 = _log2_wide(a)
        log2 = tirx.Select(a < const(math.inf, a), log2, a)
        log2 = tirx.Select(a == const(0.0, a), const(-math.inf, a), log2)
        r = cast(_exp2_wide(log2 * cast(y, "float64")), "float32")
        integer = nearbyint(y) == y
        half = y * const(0.5, y)
        odd = tirx.And(integer, tirx.Not(nearbyint(half) == half))

        def signs(r: Expr) -> Expr:
            negative = bits(x, "int32") < tirx.const(0, "int32")
            s = tirx.Select(tirx.And(negative, odd), -r, r)
            bad = tirx.And(x < zero, tirx.And(tirx.Not(integer), x > const(-math.inf, x)))
            s = tirx.Select(bad, const(math.nan, x), s)
            inf = const(math.inf, y)
            unit = tirx.And(x == -one, tirx.abs(y) == inf)
            return tirx.Select(tirx.Or(tirx.Or(x == one, unit), y == zero), one, s)

        return let(r, signs)

    return let(x, lambda x: let(y, lambda y: body(x, y)))
