"""Activations against torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

X = np.linspace(-4, 7.3, 48, dtype=np.float32).reshape(2, 3, 2, 4)
ALPHA = np.array([0.1, 0.5, 2.0], np.float32)
BETA = np.array([1.5, 0.7, 0.3], np.float32)


def column(v: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(v).reshape(1, 3, 1, 1)


CASES: dict[str, tuple[dict[str, Any], Any]] = {
    "clamped_relu": (
        {"alpha": 0.3, "beta": 2.5},
        lambda x: torch.clamp(F.leaky_relu(x, 0.3), max=2.5),
    ),
    "elu": ({"alpha": 0.7}, lambda x: F.elu(x, 0.7)),
    "gelu": ({}, F.gelu),
    "gelu/tanh": ({"mode": "TANH_APPROXIMATION"}, lambda x: F.gelu(x, approximate="tanh")),
    "gelu/sigmoid": ({"mode": "SIGMOID_APPROXIMATION"}, lambda x: x * torch.sigmoid(1.702 * x)),
    "leaky_relu": ({"alpha": 0.2}, lambda x: F.leaky_relu(x, 0.2)),
    "linear_activation": ({"alpha": 0.2, "beta": -1.5}, lambda x: 0.2 * x - 1.5),
    "prelu": ({"alpha": ALPHA}, lambda x: F.prelu(x, torch.from_numpy(ALPHA))),
    "relu": ({}, F.relu),
    "relu6": ({}, F.relu6),
    "scaled_tanh": ({"alpha": 1.7, "beta": 0.6}, lambda x: 1.7 * torch.tanh(0.6 * x)),
    "sigmoid": ({}, torch.sigmoid),
    "sigmoid_hard": ({"alpha": 0.2, "beta": 0.4}, lambda x: torch.clamp(0.2 * x + 0.4, 0, 1)),
    "silu": ({}, F.silu),
    "softplus": ({}, F.softplus),
    "softplus_parametric": (
        {"alpha": ALPHA, "beta": BETA},
        lambda x: column(ALPHA) * torch.log1p(torch.exp(column(BETA) * x)),
    ),
    "softmax": ({}, lambda x: F.softmax(x, -1)),
    "softmax/1": ({"axis": 1}, lambda x: F.softmax(x, 1)),
    "softsign": ({}, F.softsign),
    "thresholded_relu": ({"alpha": 1.1}, lambda x: F.threshold(x, 1.1, 0.0)),
}


@pytest.mark.parametrize("case", CASES)
def test_activation(mil: Any, case: str) -> None:
    options, reference = CASES[case]
    options = {k: np.float32(v) if isinstance(v, float) else v for k, v in options.items()}
    got = mil.one(lambda mb, x: getattr(mb, case.split("/")[0])(x=x, **options), X)
    want = reference(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-6)


def test_large_arguments_stay_finite(mil: Any) -> None:
    x = np.array([-200.0, 0.0, 200.0], np.float32)
    got = mil.run(
        lambda mb, x: [mb.sigmoid(x=x), mb.softplus(x=x), mb.softmax(x=x), mb.silu(x=x)], {"x": x}
    )
    t = torch.from_numpy(x)
    for g, w in zip(
        got, [torch.sigmoid(t), F.softplus(t), F.softmax(t, -1), F.silu(t)], strict=True
    ):
        np.testing.assert_allclose(g, w.numpy(), rtol=1e-6, atol=1e-30)
