"""Calibrators: each held to what it promises, on distributions whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from effc.core.errors import ConfigError
from effc.core.schemes import TensorRule, scheme
from effc.passes.quantize.parameters import activation_params
from effc.passes.quantize.ranges import CALIBRATORS, choose_range, observer

RNG = np.random.default_rng(0)
NORMAL = RNG.standard_normal(40_000).astype(np.float32)
RELU = np.maximum(NORMAL, 0)
OUTLIER = np.append(NORMAL, np.float32(300))
ASYMMETRIC = scheme("vnni").activation
SYMMETRIC = scheme("tensorrt").activation


def found(calibrator: str, *arrays: np.ndarray, symmetric: bool = False) -> tuple[float, float]:
    seen = observer(calibrator)
    for array in arrays:
        seen.see([array])
    return choose_range(calibrator, seen, levels=256, symmetric=symmetric)


def error(x: np.ndarray, bounds: tuple[float, float], rule: TensorRule) -> float:
    params = activation_params(rule, bounds)
    return float(((params.dequantize(params.quantize(x)) - x) ** 2).mean())


@pytest.mark.parametrize("calibrator", CALIBRATORS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_range_holds_zero_and_stays_within_what_was_seen(
    calibrator: str, symmetric: bool
) -> None:
    for x in (NORMAL, RELU, -RELU, OUTLIER, RELU + 3, NORMAL * 1e-6):
        low, high = found(calibrator, x[:20_000], x[20_000:], symmetric=symmetric)
        bound = float(np.abs(x).max()) * (1 + 1e-6)
        assert -bound <= low <= 0 <= high <= bound
        if not symmetric and x.min() >= 0:
            assert low == 0
        if not symmetric and x.max() <= 0:
            assert high == 0


@pytest.mark.parametrize("calibrator", CALIBRATORS)
@pytest.mark.parametrize("value", [0.0, 2.5, -7.0])
def test_constant_tensors_survive_exactly(calibrator: str, value: float) -> None:
    x = np.full(100, value, np.float32)
    for rule in (ASYMMETRIC, SYMMETRIC):
        params = activation_params(rule, found(calibrator, x, symmetric=rule.symmetric))
        assert params.scale > 0
        np.testing.assert_allclose(params.dequantize(params.quantize(x)), x, rtol=0.02)


def test_min_max_is_exact() -> None:
    assert found("min-max", NORMAL[:100], NORMAL[100:]) == (NORMAL.min(), NORMAL.max())


def test_percentile_cuts_as_many_as_it_says() -> None:
    low, high = found("percentile", NORMAL)
    for share in ((NORMAL < low).mean(), (NORMAL > high).mean()):
        assert 0 < share <= 1e-4
    np.testing.assert_allclose([low, high], np.quantile(NORMAL, [1e-4, 1 - 1e-4]), atol=0.2)
    assert found("percentile", OUTLIER)[1] < 5
    assert found("percentile", RELU)[0] == 0


@pytest.mark.parametrize("rule", [ASYMMETRIC, SYMMETRIC])
@pytest.mark.parametrize(
    "x", [NORMAL, RELU, OUTLIER, NORMAL**3], ids=["normal", "relu", "outlier", "cube"]
)
def test_mse_is_near_the_best_of_all_ranges(rule: TensorRule, x: np.ndarray) -> None:
    own = error(x, found("mse", x, symmetric=rule.symmetric), rule)
    low, high = float(min(x.min(), 0)), float(x.max())
    grid = [(low * a, high * b) for a in np.linspace(0.02, 1, 50) for b in np.linspace(0.02, 1, 50)]
    if rule.symmetric or low == 0:
        grid = [(low * b, high * b) for b in np.linspace(0.02, 1, 200)]
    best = min(error(x, g, rule) for g in grid)
    assert own <= 1.05 * best
    assert own <= error(x, found("min-max", x), rule)


def test_entropy_cuts_an_outlier_and_keeps_a_uniform_distribution() -> None:
    for symmetric in (False, True):
        assert 3 < found("entropy", OUTLIER, symmetric=symmetric)[1] < 40
    uniform = np.linspace(-1, 1, 50_001, dtype=np.float32)
    low, high = found("entropy", uniform)
    assert low <= -0.95 and high >= 0.95


def test_the_moving_average_follows_the_samples() -> None:
    low, high = found("moving-average", *(np.array([-i, i], np.float32) for i in range(1, 4)))
    assert (low, high) == pytest.approx((-1.29, 1.29))


@pytest.mark.parametrize("calibrator", ["min-max", "percentile", "mse", "entropy"])
def test_the_order_of_the_samples_does_not_matter(calibrator: str) -> None:
    parts = np.split(OUTLIER[:40_000] * np.linspace(0.01, 1, 40_000, dtype=np.float32), 8)
    assert found(calibrator, *parts) == found(calibrator, *parts[::-1])


def test_an_unknown_calibrator_is_refused() -> None:
    with pytest.raises(ConfigError, match="'kl'"):
        observer("kl")
