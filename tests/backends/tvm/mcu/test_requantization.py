"""Very small multipliers written for one high product: the same 8 bits over the whole range of sums."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from effc.backends.tvm.mcu.ops.requantization import narrowed


@given(
    st.integers(2**30, 2**31 - 1),
    st.integers(33, 60),
    st.integers(-(2**30), 2**30),
    st.integers(0, 29),
    st.integers(0, 5000),
)
def test_every_sum_rounds_the_same(m: int, shift: int, middle: int, down: int, reach: int) -> None:
    low, high = (middle >> down) - reach, (middle >> down) + reach
    sums = np.arange(low, high + 1, dtype=np.int64)
    right = (sums * m + (1 << (shift - 1))) >> shift
    new, by = narrowed(m, shift, low, high)
    assert by in (32, shift) and 0 <= new < 2**31
    found = (sums * new + (1 << (by - 1))) >> by
    np.testing.assert_array_equal(found.clip(-255, 255), right.clip(-255, 255))


def test_a_multiplier_of_few_steps_needs_one_product() -> None:
    assert narrowed(1_284_537_286, 51, 10_000_000, 10_300_000)[1] == 32
    assert narrowed(0, 31, -100, 100) == (0, 32)
