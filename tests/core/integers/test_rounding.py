"""The rounding rules against exact rational arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from effc.core.integers.rounding import (
    common_multipliers,
    fixed_multiplier,
    multiplier_for,
    requantize,
    tflite_multiplier,
)

ACCUMULATORS = st.integers(-(2**31), 2**31 - 1)
REALS = st.floats(2.0**-30, 4.0, allow_nan=False)


def one(
    acc: int, real: float, rule: str, zero: int = 0, ends: tuple[int, int] = (-128, 127)
) -> int:
    m = multiplier_for(rule, real)
    return int(requantize(np.array([acc], np.int64), m, zero, *ends, rule)[0])


def half_even(x: Fraction) -> int:
    return round(x)  # Python's: ties to even


@given(ACCUMULATORS, REALS, st.integers(-128, 127))
def test_float32_is_two_roundings_to_float_and_one_to_even(
    acc: int, real: float, zero: int
) -> None:
    product = np.float32(acc) * np.float32(real)
    expected = min(max(half_even(Fraction(float(product))) + zero, -128), 127)
    assert one(acc, real, "float32", zero) == expected


@given(REALS)
def test_tflite_multipliers_have_31_bits(real: float) -> None:
    m, s = (int(v) for v in tflite_multiplier(real))
    assert 2**30 <= m < 2**31
    assert abs(Fraction(m) * Fraction(2) ** (s - 31) - Fraction(real)) <= Fraction(real) / 2**31


@given(REALS)
def test_fixed_multipliers(real: float) -> None:
    m, s = (int(v) for v in fixed_multiplier(real))
    assert 0 < m < 2**31 and 1 <= s <= 62
    assert m == math.floor(Fraction(real) * 2**s + Fraction(1, 2)) or m == 2**30
    if 2.0**-17 <= real < 0.5 - 2.0**-32:
        assert s == 32
    else:
        assert m >= 2**30
    # what a result of 8 bits is off by before it is rounded
    assert abs(Fraction(m, 2**s) / Fraction(real) - 1) * 256 <= Fraction(1, 256)


@given(st.integers(-(2**22), 2**22), REALS)
def test_fixed_rounds_once_halves_up(acc: int, real: float) -> None:
    m, s = (int(v) for v in fixed_multiplier(real))
    exact = Fraction(acc * m, 2**s)
    expected = math.floor(exact + Fraction(1, 2))
    assert one(acc, real, "fixed", 3) == min(max(expected + 3, -128), 127)


@given(st.integers(-(2**26), 2**26), st.floats(2.0**-20, 0.99))
def test_tflite_rounds_twice(acc: int, real: float) -> None:
    """First to nearest at 2^-31 (halves up in magnitude order of gemmlowp), then halves away from zero."""
    m, s = (int(v) for v in tflite_multiplier(real))
    high = Fraction(acc * 2 ** max(s, 0) * m, 2**31)
    first = math.floor(high + Fraction(1, 2)) if high >= 0 else -math.floor(-high + Fraction(1, 2))
    if high < 0 and (-high) % 1 == Fraction(1, 2):
        first = -math.floor(-high)  # the nudge of negative products is one short of a half
    second = Fraction(first, 2 ** max(-s, 0))
    away = math.floor(abs(second) + Fraction(1, 2)) * (1 if second >= 0 else -1)
    assert one(acc, real, "tflite") == min(max(away, -128), 127)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("float32", [-2, -2, 0, 0, 0, 2, 2]),
        ("tflite", [-3, -2, -1, 0, 1, 2, 3]),
        ("fixed", [-2, -1, 0, 0, 1, 2, 3]),
    ],
)
def test_ties(rule: str, expected: list[int]) -> None:
    """Halves: to even, away from zero, up. -2.5 -1.5 -0.5 0 0.5 1.5 2.5"""
    acc = [-10, -6, -2, 0, 2, 6, 10]
    found = [one(a, 0.25, rule) for a in acc]
    assert found == expected


def test_the_bounds_hold_whatever_the_sum() -> None:
    for rule in ("float32", "tflite", "fixed"):
        for acc in (-(2**31), 2**31 - 1):
            assert one(acc, 0.9, rule, 7, (7, 200)) == (7 if acc < 0 else 200)


@given(st.floats(2.0**-8, 8), st.floats(2.0**-8, 8))
def test_common_multipliers_share_a_shift(a: float, b: float) -> None:
    (m, n), shift = common_multipliers([a, b], 21)
    assert max(m, n) <= 2**21 and max(m, n) >= 2**20 or shift == 30
    for real, whole in ((a, m), (b, n)):
        assert abs(Fraction(int(whole), 2**shift) - Fraction(real)) <= Fraction(1, 2 ** (shift + 1))


def test_a_multiplier_a_channel() -> None:
    acc = np.array([[100, 100], [-100, -100]], np.int64)
    reals = np.array([0.1, 0.5])
    for rule in ("float32", "tflite", "fixed"):
        m = multiplier_for(rule, reals)
        m = m if rule == "float32" else m[:, None]
        found = requantize(acc, m, 0, -128, 127, rule)
        np.testing.assert_array_equal(found, [[10, 50], [-10, -50]])
