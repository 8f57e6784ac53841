"""x to the power of y, to its last bit or so: log2 and exp2 in two float32 each."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import tirx

from effc.backends.tvm.ops.math import (
    LN2,
    bits,
    cast,
    const,
    dtype_of,
    horner,
    maximum,
    minimum,
    nearbyint,
)
from effc.backends.tvm.tir import let

Expr = Any
Function = Callable[[Expr], Expr]


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
    taylor = tuple(LN2**k / math.factorial(k) for k in range(12))

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
