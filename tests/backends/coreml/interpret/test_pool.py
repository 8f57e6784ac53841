"""Pooling against torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from effc.core.errors import EffcError

SHAPES = {1: (2, 3, 10), 2: (2, 3, 10, 8), 3: (1, 2, 6, 5, 7)}
OPTIONS = [
    {"kernel_sizes": [3, 2, 2], "strides": [2, 1, 3], "pad": [1, 1, 0, 0, 1, 1]},
    {"kernel_sizes": [2, 3, 3], "strides": [3, 2, 2], "pad": [0, 0, 1, 1, 1, 1]},
]


def cut(options: dict[str, list[int]], rank: int) -> dict[str, list[int]]:
    return {k: v[: rank * (2 if k == "pad" else 1)] for k, v in options.items()}


@pytest.mark.parametrize("rank", SHAPES)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_pool(
    mil: Any, rng: np.random.Generator, rank: int, options: dict[str, list[int]], ceil_mode: bool
) -> None:
    if ceil_mode and rank == 3:
        pytest.skip("MIL has no ceil_mode in three dimensions")
    x = rng.normal(size=SHAPES[rank]).astype(np.float32)
    o = cut(options, rank)

    def build(mb: Any, x: Any) -> list[Any]:
        common = {"x": x, "pad_type": "custom", "ceil_mode": ceil_mode, **o}
        return [
            mb.max_pool(**common),
            mb.avg_pool(**common),
            mb.avg_pool(**common, exclude_padding_from_average=True),
        ]

    got = mil.run(build, {"x": x})
    t, pads = torch.from_numpy(x), o["pad"][::2]
    args = (t, o["kernel_sizes"], o["strides"], pads)
    largest = [F.max_pool1d, F.max_pool2d, F.max_pool3d][rank - 1](*args, ceil_mode=ceil_mode)
    mean = [F.avg_pool1d, F.avg_pool2d, F.avg_pool3d][rank - 1]
    wants = [largest] + [
        mean(*args, ceil_mode=ceil_mode, count_include_pad=include) for include in (True, False)
    ]
    for g, w in zip(got, wants, strict=True):
        np.testing.assert_allclose(g, w.numpy(), rtol=1e-5, atol=1e-6)


def test_l2_pool(mil: Any, rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 3, 8, 9)).astype(np.float32)
    got = mil.one(
        lambda mb, x: mb.l2_pool(x=x, kernel_sizes=[2, 3], strides=[2, 3], pad_type="valid"), x
    )
    want = F.lp_pool2d(torch.from_numpy(x), 2.0, (2, 3), (2, 3)).numpy()
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_same_lets_the_larger_half_be_after(mil: Any) -> None:
    x = np.arange(1, 8, dtype=np.float32).reshape(1, 1, 7)
    for kind, want in (("same", [1.5, 3.5, 5.5, 7.0]), ("same_lower", [1.0, 2.5, 4.5, 6.5])):
        got = mil.one(
            lambda mb, x, kind=kind: mb.avg_pool(
                x=x, kernel_sizes=[2], strides=[2], pad_type=kind,
                exclude_padding_from_average=True,
            ),
            x,
        )  # fmt: skip
        assert got[0, 0].tolist() == want


def test_asymmetric_padding(mil: Any, rng: np.random.Generator) -> None:
    x = rng.normal(size=(1, 2, 5, 6)).astype(np.float32) - 5
    got = mil.one(
        lambda mb, x: mb.max_pool(
            x=x, kernel_sizes=[3, 2], strides=[1, 2], pad_type="custom", pad=[0, 2, 1, 0]
        ),
        x,
    )
    wide = F.pad(torch.from_numpy(x), (1, 0, 0, 2), value=-np.inf)
    np.testing.assert_array_equal(got, F.max_pool2d(wide, (3, 2), (1, 2)).numpy())


def test_an_empty_window_is_refused(mil: Any) -> None:
    """Without padding MIL keeps a last window that PyTorch drops; it has no documented value."""
    with pytest.raises(EffcError, match="without any element"):
        mil.one(
            lambda mb, x: mb.max_pool(
                x=x, kernel_sizes=[2], strides=[3], pad_type="valid", ceil_mode=True
            ),
            np.zeros((1, 1, 9), np.float32),
        )
