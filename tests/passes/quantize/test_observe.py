"""Observers: exact counts, whatever the order and the growth of the range."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effc.passes.quantize.observe import BINS, Histogram, MinMax

# a number that is not 0 in units of the widest bin: float32 has no smaller ones
FLOATS = st.floats(-(2.0**60), 2.0**60, width=32).filter(lambda v: v == 0 or abs(v) > 2.0**-60)
STREAMS = st.lists(st.lists(FLOATS, min_size=1, max_size=20), min_size=1, max_size=6)


def seen(stream: list[list[float]]) -> Histogram:
    histogram = Histogram()
    for one in stream:
        histogram.see([np.array(one, np.float32)])
    return histogram


@given(STREAMS)
@settings(max_examples=60, deadline=None)
def test_a_histogram_counts_every_number_in_its_bin(stream: list[list[float]]) -> None:
    histogram = seen(stream)
    x = np.array([v for one in stream for v in one], np.float32)
    assert histogram.total == x.size
    assert histogram.zeros == (x == 0).sum()
    assert histogram.low == x.min() and histogram.high == x.max()
    assert histogram.counts.size <= BINS
    wanted = np.zeros_like(histogram.counts)
    for v in x[x != 0].astype(np.float64):
        wanted[int(np.floor(v / 2.0**histogram.exponent)) - histogram.first] += 1
    np.testing.assert_array_equal(histogram.counts, wanted)


@given(STREAMS, st.randoms())
@settings(max_examples=40, deadline=None)
def test_the_order_of_samples_does_not_matter(stream: list[list[float]], random: object) -> None:
    other = list(stream)
    random.shuffle(other)  # type: ignore[attr-defined]
    one, two = seen(stream), seen(other)
    # a first sample of tiny numbers may leave finer bins where both ranges fit
    while one.exponent < two.exponent:
        one._merge()
    while two.exponent < one.exponent:
        two._merge()
    for histogram in (one, two):
        filled = np.flatnonzero(histogram.counts)
        histogram.first += int(filled[0]) if filled.size else 0
        histogram.counts = histogram.counts[filled[0] : filled[-1] + 1] if filled.size else filled
    assert one.first == two.first or not one.counts.size
    np.testing.assert_array_equal(one.counts, two.counts)


def test_the_range_doubles_and_the_resolution_stays() -> None:
    histogram = Histogram()
    for size in (1e-3, 1.0, 50.0, 2000.0):
        histogram.see([np.linspace(0, size, 1000, dtype=np.float32)])
    assert BINS / 2 - 1 <= histogram.counts.size <= BINS
    assert histogram.total == 4000
    assert histogram.high == 2000


def test_several_tensors_of_a_sample_count_together() -> None:
    one, two = MinMax(), MinMax(0.5)
    for observer in (one, two):
        observer.see([np.array([1.0, 2.0], np.float32), np.array([-3.0], np.float32)])
        observer.see([np.array([0.0], np.float32), np.array([4.0], np.float32)])
    assert (one.low, one.high) == (-3, 4)
    assert (two.low, two.high) == (-1.5, 3)


@pytest.mark.parametrize("observer", [MinMax(), Histogram()])
def test_empty_tensors_say_nothing(observer: MinMax | Histogram) -> None:
    observer.see([np.zeros((0, 3), np.float32)])
    assert observer.low > observer.high
