"""Palettes against exhaustive search and against the definition."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from effc.passes.compress.kmeans import cheap_palette, nearest, palette


def error(values: np.ndarray, centers: np.ndarray, weight: np.ndarray | None = None) -> float:
    squares = np.square(values[:, None] - centers).min(axis=1)
    return float((squares if weight is None else squares * weight).sum())


@given(st.integers(0, 1 << 30), st.integers(1, 4), st.booleans())
def test_no_other_cut_is_better(seed: int, k: int, weighted: bool) -> None:
    rng = np.random.default_rng(seed)
    x = np.sort(rng.standard_normal(rng.integers(k, 9)))
    w = rng.random(x.size) + 0.1 if weighted else np.ones(x.size)
    centers = palette(x, k, w if weighted else None)
    best = np.inf
    for cuts in combinations(range(1, x.size), min(k, x.size) - 1):
        parts = np.split(np.arange(x.size), cuts)
        means = np.array([np.average(x[p], weights=w[p]) for p in parts])
        best = min(best, error(x, means, w))
    assert len(centers) <= k
    assert error(x, centers, w) <= best * (1 + 1e-9) + 1e-12


def test_large_inputs_come_close_to_the_optimum_of_a_normal() -> None:
    x = np.random.default_rng(0).standard_normal(60_000)
    # Max, 1960: the least mean square errors of 4, 8 and 16 levels
    for k, wanted in ((4, 0.1175), (8, 0.03454), (16, 0.009497)):
        found = error(x, palette(x, k)) / x.size
        assert abs(found / wanted - 1) < 0.03


def test_nearest_is_the_nearest() -> None:
    rng = np.random.default_rng(1)
    x, centers = rng.standard_normal((7, 5)), np.sort(rng.standard_normal(6))
    np.testing.assert_array_equal(
        nearest(x, centers), np.abs(x[..., None] - centers).argmin(axis=2)
    )


def test_bits_that_cost_are_saved() -> None:
    x = np.random.default_rng(2).laplace(size=20_000)
    importance = np.full(x.size, 1 / x.size)
    rates, errors = [], []
    for price in (1e-8, 1e-6, 1e-5, 1e-4):
        centers, bits = cheap_palette(x, 32, importance, price)
        assert (centers == 0).sum() == 1
        np.testing.assert_allclose((2.0**-bits).sum(), 1, rtol=1e-3)
        cost = np.square(x[:, None] - centers) * importance[:, None] + price * bits
        chosen = cost.argmin(axis=1)
        share = np.bincount(chosen, minlength=len(centers)) / x.size
        share = share[share > 0]
        rates.append(float(-(share * np.log2(share)).sum()))
        errors.append(error(x, centers) / x.size)
    assert rates == sorted(rates, reverse=True)
    assert errors == sorted(errors)
    # at about the rate of 8 Lloyd-Max levels the error is below theirs
    at = next(i for i, r in enumerate(rates) if r < 2.6)
    eight = palette(x, 8)
    assert rates[at] < 2.9 or errors[at] < error(x, eight) / x.size
