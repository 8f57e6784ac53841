"""Interleaving and the interval of the median."""

from __future__ import annotations

import numpy as np
import pytest

from effc.core.measure import BURST_VALUES, Measurement, Runner, interleaved, median_interval


class Recorded(Runner):
    """A runner whose times are given; it writes down the order of the bursts."""

    def __init__(self, name: str, seconds: float, log: list[str]) -> None:
        self.name, self.seconds, self.log = name, seconds, log

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def infer(self, feeds):
        return {}

    def time(self, feeds, repeats):
        self.log.append(self.name)
        return Measurement("device", "here", self.name, 1, (self.seconds,) * repeats)


def test_runners_take_turns_and_get_equal_shares() -> None:
    log: list[str] = []
    rounds: list[tuple[int, int]] = []
    slow, fast = interleaved(
        [Recorded("slow", 0.01, log), Recorded("fast", 0.001, log)],
        {},
        seconds=1.0,
        rounds=5,
        on_round=lambda done, of: rounds.append((done, of)),
    )
    assert log == ["slow", "fast"] * 6  # one warm-up burst each, then five rounds
    assert rounds == [(i, 5) for i in range(1, 6)]
    assert len(slow.seconds) == 5 * 10
    assert len(fast.seconds) == 5 * BURST_VALUES
    assert (slow.median, fast.median) == (0.01, 0.001)


def test_interval_covers_the_median_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        low, high = median_interval(list(rng.exponential(size=51)))
        hits += low <= np.log(2) <= high
    assert 0.92 <= hits / 400 <= 0.99


@pytest.mark.parametrize("n", [1, 2, 3])
def test_interval_of_few_values_stays_among_them(n: int) -> None:
    values = [3.0, 1.0, 2.0][:n]
    low, high = median_interval(values)
    assert min(values) <= low <= high <= max(values)
