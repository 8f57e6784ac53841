"""Convolutions against torch, and `same` padding against sums in plain loops."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from effc.backends.coreml.interpret.ops import conv as module

CONV: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "1d": ((2, 3, 11), (4, 3, 3), {"strides": [2]}),
    "2d": ((2, 3, 9, 7), (4, 3, 3, 2), {"strides": [2, 1], "pad": [1, 2, 0, 3]}),
    "dilated": ((1, 2, 11, 9), (3, 2, 3, 2), {"dilations": [2, 3], "pad": [2, 0, 1, 1]}),
    "groups": ((2, 6, 7, 6), (4, 3, 3, 3), {"groups": 2, "strides": [1, 2]}),
    "depthwise": (
        (2, 5, 8, 7),
        (5, 1, 3, 2),
        {"groups": 5, "strides": [2, 1], "pad": [1, 0, 1, 2]},
    ),
    "multiplier": ((1, 3, 6, 5), (6, 1, 2, 3), {"groups": 3}),
    "pointwise": ((2, 5, 4, 3), (7, 5, 1, 1), {}),
    "3d": ((1, 2, 5, 6, 4), (3, 2, 2, 3, 2), {"strides": [1, 2, 1], "pad": [0, 1, 1, 0, 2, 0]}),
}


def torch_conv(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, o: dict[str, Any]) -> np.ndarray:
    rank = x.ndim - 2
    pad = o.get("pad", [0] * 2 * rank)
    turned = [v for i in reversed(range(rank)) for v in pad[2 * i : 2 * i + 2]]
    function = [F.conv1d, F.conv2d, F.conv3d][rank - 1]
    result = function(
        F.pad(torch.from_numpy(x), turned),
        torch.from_numpy(w),
        None if b is None else torch.from_numpy(b),
        stride=o.get("strides", 1),
        dilation=o.get("dilations", 1),
        groups=o.get("groups", 1),
    )
    return result.numpy()


@pytest.mark.parametrize("case", CONV)
@pytest.mark.parametrize("bias", [True, False])
def test_conv(mil: Any, rng: np.random.Generator, case: str, bias: bool) -> None:
    x_shape, w_shape, options = CONV[case]
    x = rng.normal(size=x_shape).astype(np.float32)
    w = rng.normal(size=w_shape).astype(np.float32)
    b = rng.normal(size=w_shape[0]).astype(np.float32) if bias else None
    kind = "custom" if "pad" in options else "valid"
    got = mil.one(lambda mb, x: mb.conv(x=x, weight=w, bias=b, pad_type=kind, **options), x)
    np.testing.assert_allclose(got, torch_conv(x, w, b, options), rtol=1e-5, atol=1e-5)


def test_conv_in_parts(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    x = rng.normal(size=(2, 3, 13, 8)).astype(np.float32)
    w = rng.normal(size=(4, 3, 3, 3)).astype(np.float32)
    options = {"strides": [2, 1], "pad": [1, 1, 0, 2]}
    monkeypatch.setattr(module, "COLUMNS_BYTES", 1)
    got = module.conv(x, w, pad_type="custom", **options)
    np.testing.assert_allclose(got, torch_conv(x, w, None, options), rtol=1e-5, atol=1e-5)


def test_weights_may_be_computed(mil: Any, rng: np.random.Generator) -> None:
    x = rng.normal(size=(1, 2, 5, 5)).astype(np.float32)
    w = rng.normal(size=(3, 2, 3, 3)).astype(np.float32)
    got = mil.one(lambda mb, x, w: mb.conv(x=x, weight=w, pad_type="valid"), x, w)
    np.testing.assert_allclose(got, torch_conv(x, w, None, {}), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [7, 8, 9])
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"), [(3, 2, 1), (4, 1, 1), (2, 3, 1), (3, 1, 2)]
)
@pytest.mark.parametrize("kind", ["same", "same_lower"])
def test_same_padding(
    mil: Any,
    rng: np.random.Generator,
    size: int,
    kernel: int,
    stride: int,
    dilation: int,
    kind: str,
) -> None:
    x = rng.normal(size=(1, 1, size)).astype(np.float32)
    w = rng.normal(size=(1, 1, kernel)).astype(np.float32)
    got = module.conv(x, w, pad_type=kind, strides=[stride], dilations=[dilation])
    out = -(-size // stride)
    total = max(0, (out - 1) * stride + (kernel - 1) * dilation + 1 - size)
    before = (total + (kind == "same_lower")) // 2
    want = np.zeros(out)
    for o, k in itertools.product(range(out), range(kernel)):
        at = o * stride + k * dilation - before
        if 0 <= at < size:
            want[o] += x[0, 0, at] * w[0, 0, k]
    np.testing.assert_allclose(got[0, 0], want, rtol=1e-5, atol=1e-6)


TRANSPOSED: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "1d": ((2, 3, 5), (3, 4, 3), {"strides": [2]}),
    "2d": ((2, 3, 4, 5), (3, 4, 3, 2), {"strides": [2, 3]}),
    "dilated": ((1, 2, 4, 3), (2, 3, 3, 2), {"strides": [2, 1], "dilations": [2, 3]}),
    "groups": ((2, 4, 3, 4), (4, 3, 3, 3), {"groups": 2, "strides": [2, 2]}),
    "depthwise": ((1, 3, 4, 5), (3, 1, 2, 3), {"groups": 3, "strides": [2, 1]}),
    "3d": ((1, 2, 3, 2, 4), (2, 3, 2, 3, 2), {"strides": [2, 1, 2]}),
}


def torch_transposed(x: np.ndarray, w: np.ndarray, b: np.ndarray, o: dict[str, Any]) -> np.ndarray:
    function = [F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d][x.ndim - 3]
    return function(
        *(torch.from_numpy(v) for v in (x, w, b)),
        stride=o.get("strides", 1),
        dilation=o.get("dilations", 1),
        groups=o.get("groups", 1),
    ).numpy()


@pytest.mark.parametrize("case", TRANSPOSED)
@pytest.mark.parametrize("padded", [False, True])
def test_conv_transpose(mil: Any, rng: np.random.Generator, case: str, padded: bool) -> None:
    x_shape, w_shape, options = TRANSPOSED[case]
    x = rng.normal(size=x_shape).astype(np.float32)
    w = rng.normal(size=w_shape).astype(np.float32)
    b = rng.normal(size=w_shape[1] * options.get("groups", 1)).astype(np.float32)
    want = torch_transposed(x, w, b, options)
    extra: dict[str, Any] = {"pad_type": "valid"}
    if padded:
        rank = x.ndim - 2
        pad = [1, 2, 0, 1, 1, 0][: 2 * rank]
        extra = {"pad_type": "custom", "pad": pad}
        cut = tuple(slice(pad[2 * i], want.shape[2 + i] - pad[2 * i + 1]) for i in range(rank))
        want = want[(slice(None), slice(None), *cut)]
    got = mil.one(lambda mb, x: mb.conv_transpose(x=x, weight=w, bias=b, **options, **extra), x)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_conv_transpose_with_output_padding(mil: Any, rng: np.random.Generator) -> None:
    x = rng.normal(size=(1, 2, 4, 5)).astype(np.float32)
    w = rng.normal(size=(2, 3, 3, 3)).astype(np.float32)
    b = np.array([0.5, -1.0, 2.0], np.float32)
    want = F.conv_transpose2d(
        *(torch.from_numpy(v) for v in (x, w, b)), stride=2, padding=1, output_padding=1
    ).numpy()
    got = mil.one(
        lambda mb, x: mb.conv_transpose(
            x=x, weight=w, bias=b, strides=[2, 2], pad=[1, 1, 1, 1], pad_type="custom",
            output_shape=list(want.shape),
        ),
        x,
    )  # fmt: skip
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", [2, 3, 4, 5])
def test_conv_transpose_same_is_the_gradient_of_same(rng: np.random.Generator, kernel: int) -> None:
    """<conv(z), x> = <z, conv_transpose(x)> for every z."""
    stride, size = 2, 4
    x = rng.normal(size=(1, 1, size)).astype(np.float64)
    w = rng.normal(size=(1, 1, kernel)).astype(np.float64)
    back = module.conv_transpose(x, w, pad_type="same", strides=[stride])
    assert back.shape == (1, 1, size * stride)
    for i in range(size * stride):
        z = np.zeros((1, 1, size * stride))
        z[0, 0, i] = 1
        forth = module.conv(z, w, pad_type="same", strides=[stride])
        np.testing.assert_allclose((forth * x).sum(), back[0, 0, i], atol=1e-12)
