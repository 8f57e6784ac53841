"""Elementwise operations against torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from effc.core.errors import EffcError

F32 = np.float32
X = np.array([[-2.6, -1.0, -0.5, 0.0], [0.3, 1.0, 1.5, 2.5]], F32)
POSITIVE = np.abs(X) + F32(0.1)
UNIT = np.array([-0.9, -0.3, 0.0, 0.6], F32)

UNARY: list[tuple[str, np.ndarray, Any]] = [
    ("abs", X, torch.abs),
    ("acos", UNIT, torch.acos),
    ("asin", UNIT, torch.asin),
    ("atan", X, torch.atan),
    ("atanh", UNIT, torch.atanh),
    ("ceil", X, torch.ceil),
    ("cos", X, torch.cos),
    ("cosh", X, torch.cosh),
    ("erf", X, torch.erf),
    ("exp", X, torch.exp),
    ("exp2", X, torch.exp2),
    ("floor", X, torch.floor),
    ("inverse", POSITIVE, lambda x: 1 / (x + 1e-4)),
    ("log", POSITIVE, torch.log),
    ("round", X, torch.round),
    ("rsqrt", POSITIVE, torch.rsqrt),
    ("sign", X, torch.sign),
    ("sin", X, torch.sin),
    ("sinh", X, torch.sinh),
    ("sqrt", POSITIVE, torch.sqrt),
    ("square", X, torch.square),
    ("tan", X, torch.tan),
    ("tanh", X, torch.tanh),
]


@pytest.mark.parametrize(("name", "x", "reference"), UNARY, ids=[c[0] for c in UNARY])
def test_unary(mil: Any, name: str, x: np.ndarray, reference: Any) -> None:
    got = mil.one(lambda mb, x: getattr(mb, name)(x=x), x, opset=15)
    np.testing.assert_allclose(got, reference(torch.from_numpy(x)).numpy(), rtol=1e-6, atol=1e-7)


def test_epsilons_are_added_before(mil: Any) -> None:
    x = POSITIVE
    for name, want in [
        ("inverse", 1 / (x + 0.5)),
        ("log", np.log(x + 0.5)),
        ("rsqrt", 1 / np.sqrt(x + 0.5)),
    ]:
        got = mil.one(lambda mb, x, n=name: getattr(mb, n)(x=x, epsilon=F32(0.5)), x)
        np.testing.assert_allclose(got, want, rtol=1e-6)


Y = np.array([1.5, -2.0, 0.7, 3.0], F32)
BINARY = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "real_div": torch.div,
    "floor_div": torch.floor_divide,
    "mod": torch.remainder,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "equal": torch.eq,
    "not_equal": torch.ne,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
}


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_binary_broadcasts(mil: Any, name: str, kind: Any) -> None:
    x = (X * 3).astype(kind)
    y = np.array([2, -2, 1, 3]).astype(kind)
    got = mil.one(lambda mb, x, y: getattr(mb, name)(x=x, y=y), x, y)
    want = BINARY[name](torch.from_numpy(x), torch.from_numpy(y)).numpy()
    if name == "real_div" and kind is np.int32:
        want = np.trunc(want)
    np.testing.assert_allclose(got, want.astype(got.dtype), rtol=1e-6)


def test_pow(mil: Any) -> None:
    got = mil.one(lambda mb, x, y: mb.pow(x=x, y=y), POSITIVE, Y)
    want = torch.pow(torch.from_numpy(POSITIVE), torch.from_numpy(Y)).numpy()
    np.testing.assert_allclose(got, want, rtol=1e-5)
    ints = mil.one(lambda mb, x: mb.pow(x=x, y=np.int32(3)), np.array([-2, 3, 0], np.int32))
    assert ints.tolist() == [-8, 27, 0]


@pytest.mark.parametrize("name", ["logical_and", "logical_or", "logical_xor"])
def test_logical(mil: Any, name: str) -> None:
    def build(mb: Any, x: Any, y: Any) -> Any:
        a, b = mb.greater(x=x, y=0.0), mb.greater(x=y, y=0.0)
        return getattr(mb, name)(x=a, y=b), mb.logical_not(x=a)

    got, inverted = mil.run(build, {"x": X, "y": X[::-1].copy()})
    want = getattr(torch, name)(torch.from_numpy(X > 0), torch.from_numpy(X[::-1] > 0))
    assert np.array_equal(got, want.numpy())
    assert np.array_equal(inverted, ~(X > 0))


def test_clip_and_threshold(mil: Any) -> None:
    got = mil.one(lambda mb, x: mb.clip(x=x, alpha=-0.7, beta=1.2), X)
    np.testing.assert_array_equal(got, torch.clamp(torch.from_numpy(X), -0.7, 1.2).numpy())
    got = mil.one(lambda mb, x: mb.threshold(x=x, alpha=0.4), X)
    np.testing.assert_array_equal(got, torch.clamp(torch.from_numpy(X), min=0.4).numpy())


@pytest.mark.parametrize("dtype", ["int32", "int8", "uint8", "int16", "uint16", "fp16", "bool"])
def test_cast(mil: Any, dtype: str) -> None:
    x = np.array([0.0, 1.9, 100.7, 0.1], F32)
    if dtype in ("int32", "int8", "int16"):
        x = np.concatenate([x, np.array([-1.9, -100.2], F32)])
    got = mil.one(lambda mb, x: mb.cast(x=mb.cast(x=x, dtype=dtype), dtype="fp32"), x)
    kinds = {"fp16": torch.float16}
    kind = kinds.get(dtype) or getattr(torch, dtype)
    np.testing.assert_array_equal(got, torch.from_numpy(x).to(kind).to(torch.float32).numpy())


def test_a_cast_beyond_the_integers_is_refused(mil: Any) -> None:
    with pytest.raises(EffcError, match=r"cast.*3000000000"):
        mil.one(lambda mb, x: mb.cast(x=x, dtype="int32"), np.array([3e9], F32))


def test_erf_is_exact_between_its_nodes() -> None:
    from effc.backends.coreml.interpret.ops.elementwise import error_function

    x = np.concatenate([np.linspace(-7, 7, 100_003), [np.inf, -np.inf]])
    want = torch.erf(torch.from_numpy(x)).numpy()
    assert np.abs(error_function(x) - want).max() < 1e-13
    assert np.isnan(error_function(np.array([np.nan])))[0]
