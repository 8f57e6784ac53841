"""Requantization: from exact 32-bit sums to 8-bit values, by the three written rules.

A real multiplier is written for each rule by `multiplier_for`: for `float32` as a float32, for the others
as a pair of integers (M, s). `requantize` computes the rule on int64 arrays that hold int32 numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

RULES = ("float32", "tflite", "fixed")
_ONE_INSTRUCTION = 32  # the shift of a high multiplication that rounds (smmlar)


def multiplier_for(rule: str, real: Any) -> Array:
    """`real` (float64, one or [n]) as the rule `rule` holds it: float32 [n], or int32 [2, n] of M and s.

    For one number: float32 [], or int32 [2].
    """
    if rule == "float32":
        return np.asarray(real, np.float64).astype(np.float32)
    pair = tflite_multiplier(real) if rule == "tflite" else fixed_multiplier(real)
    return np.stack(pair).astype(np.int32)


def tflite_multiplier(real: Any) -> tuple[Array, Array]:
    """M, s with real = M * 2^(s - 31), 2^30 <= M < 2^31: TensorFlow Lite's QuantizeMultiplier.

    Halves of M go up. Numbers under 2^-32 are 0.
    """
    fraction, shift = np.frexp(np.asarray(real, np.float64))
    fixed = np.floor(fraction * (1 << 31) + 0.5).astype(np.int64)
    full = fixed == 1 << 31
    fixed, shift = np.where(full, 1 << 30, fixed), np.where(full, shift + 1, shift).astype(np.int64)
    tiny = shift < -31
    return np.where(tiny, 0, fixed), np.where(tiny, 0, shift)


def fixed_multiplier(real: Any) -> tuple[Array, Array]:
    """M, s with real = M * 2^-s: s is 32 for 2^-17 <= real < 1/2, else such that 2^30 <= M < 2^31.

    With s = 32 the requantization is one rounding high multiplication; where M then has fewer than 31
    bits, the result is still off by less than 2^-8 of a unit before the rounding. Halves of M go up;
    numbers under 2^-32 are 0.
    """
    real = np.asarray(real, np.float64)
    high = np.floor(real * 2.0**_ONE_INSTRUCTION + 0.5)
    whole, exponent = tflite_multiplier(real)
    plain = (real >= 2.0**-17) & (real < 0.5) & (high < 2.0**31)
    m = np.where(plain, np.where(plain, high, 0).astype(np.int64), whole)
    return m, np.where(plain, _ONE_INSTRUCTION, 31 - exponent)


def common_multipliers(reals: Any, bits: int, most: int = 30) -> tuple[Array, int]:
    """Integers M < 2^bits and one shift s with reals = M * 2^-s: s as large as it can be, at most `most`.

    The largest real decides: floor(log2) of it is e, and s = bits - 1 - e (M = 2^bits may come of
    rounding, halves to even). This is how XNNPACK writes the multipliers of an addition (bits = 21).
    """
    reals = np.asarray(reals, np.float64)
    exponent = int(np.frexp(reals.max())[1]) - 1
    shift = min(bits - 1 - exponent, most)
    return np.rint(reals * 2.0**shift).astype(np.int64), shift


def requantize(
    acc: Array, multiplier: Array, zero_point: int, low: int, high: int, rule: str
) -> Array:
    """The integers in [low, high] of the sums `acc` (int64, within int32). Returns int64.

    `multiplier` is as `multiplier_for` makes it, its channels broadcasting against `acc`.
    """
    if rule == "float32":
        scaled = rounded(acc.astype(np.float32) * multiplier)
    elif rule == "tflite":
        scaled = twice_rounded(acc, multiplier[0], multiplier[1])
    else:
        scaled = once_rounded(acc, multiplier[0], multiplier[1])
    return np.asarray(np.clip(scaled + zero_point, low, high))


def rounded(x: Array) -> Array:
    """float32 -> int64, ties to even; what is out of int32's range stays out of 8 bits' range."""
    return np.asarray(np.clip(np.rint(x), -(2.0**31), 2.0**31).astype(np.int64))


def twice_rounded(x: Array, fixed: Any, shift: Any) -> Array:
    """MultiplyByQuantizedMultiplier: x * M * 2^(shift - 31), rounded twice.

    First to 2^-31 (halves up, of negative numbers too), then, where the shift is to the right, halves
    away from zero. Source: TensorFlow Lite, kernels/internal/common.h, and gemmlowp's fixedpoint.h.
    """
    fixed, shift = np.asarray(fixed, np.int64), np.asarray(shift, np.int64)
    product = (x << np.maximum(shift, 0)) * fixed
    nudged = product + np.where(product >= 0, 1 << 30, 1 - (1 << 30))
    top = np.sign(nudged) * (np.abs(nudged) >> 31)  # division that truncates
    right = np.maximum(-shift, 0)
    mask = (np.int64(1) << right) - 1
    return (top >> right) + ((top & mask) > (mask >> 1) + (top < 0))  # type: ignore[no-any-return]


def once_rounded(x: Array, fixed: Any, shift: Any) -> Array:
    """(x * M + 2^(shift - 1)) >> shift: rounded once, halves up."""
    fixed, shift = np.asarray(fixed, np.int64), np.asarray(shift, np.int64)
    half = (np.int64(1) << shift) >> 1
    return (x * fixed + half) >> shift  # type: ignore[no-any-return]
