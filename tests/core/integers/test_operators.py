"""The integer operators against onnxruntime's integer kernels and plain loops."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from effc.core.errors import FrontendError
from effc.core.integers import DOMAIN
from effc.core.integers.reference import run_node
from effc.core.integers.rounding import multiplier_for

UINT8, INT8, FLOAT = 2, 3, 1
IMPORTS = {"": 23, DOMAIN: 1}


def compute(op: str, inputs: list[Any], domain: str = DOMAIN, **attributes: Any) -> np.ndarray:
    node = ir.node(op, [None] * len(inputs), attributes, domain=domain, name="n")
    (found,) = run_node(node, inputs, IMPORTS)
    return found


def stored(rng: np.random.Generator, shape: Any, dtype: Any) -> np.ndarray:
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, endpoint=True).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize(
    ("x", "w", "more"),
    [
        ((2, 6, 9, 7), (8, 6, 3, 3), {"pads": [1, 1, 1, 1]}),
        ((1, 6, 9, 7), (8, 3, 3, 2), {"group": 2, "strides": [2, 1], "pads": [0, 1, 1, 0]}),
        ((1, 6, 9, 9), (6, 1, 3, 3), {"group": 6, "dilations": [2, 2], "pads": [2, 2, 2, 2]}),
        ((1, 4, 8, 8), (8, 1, 3, 3), {"group": 4, "strides": [2, 2], "pads": [0, 0, 1, 1]}),
        ((3, 5, 11), (4, 5, 3), {"strides": [2], "pads": [1, 2]}),
        ((1, 2, 5, 5, 5), (3, 2, 2, 3, 2), {"pads": [1] * 6}),
    ],
)
def test_conv(dtype: Any, x: Any, w: Any, more: dict[str, Any]) -> None:
    """Against ConvInteger; real outputs with multiplier 1 show the sums (all under 2^24)."""
    rng = np.random.default_rng(0)
    x, w = stored(rng, x, dtype), stored(rng, w, np.int8)
    zero = 77
    bias = rng.integers(-1000, 1000, w.shape[0]).astype(np.int32)
    if x.ndim == 5:  # onnxruntime has no ConvInteger of three dimensions: its Conv is exact here
        real = [x.astype(np.float32) - zero, w.astype(np.float32)]
        expected = compute("Conv", real, "", **more)
    else:
        zeros = [np.array(zero, dtype), np.array(0, np.int8)]
        signed = x.astype(np.int16) + 128 if dtype == np.int8 else x
        zeros[0] = np.array(zero + (128 if dtype == np.int8 else 0), np.uint8)
        expected = compute("ConvInteger", [signed.astype(np.uint8), w, *zeros], "", **more)
    expected = expected + bias.reshape(-1, *(1,) * (x.ndim - 2))
    one = np.ones(1, np.float32)
    found = compute("Conv", [x, w, bias, one], x_zero_point=zero, to=FLOAT, **more)
    np.testing.assert_array_equal(found, expected)
    for rule in ("float32", "fixed", "tflite"):
        m = multiplier_for(rule, rng.uniform(1e-4, 1e-3, w.shape[0]))
        given = {"x_zero_point": zero, "y_zero_point": 9, "to": UINT8, "rounding": rule, **more}
        q = compute("Conv", [x, w, bias, m], low=9, high=200, **given)
        scale = m if rule == "float32" else m[0] * 2.0 ** (-m[1] if rule == "fixed" else m[1] - 31)
        real = expected * scale.reshape(-1, *(1,) * (x.ndim - 2)).astype(np.float64)
        assert q.dtype == np.uint8
        assert np.abs(q - np.clip(real + 9, 9, 200)).max() <= 0.5 + 1e-3


@pytest.mark.parametrize(
    ("x", "w", "more"),
    [
        ((2, 4, 5, 6), (4, 3, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ((1, 4, 5, 6), (4, 2, 2, 3), {"group": 2, "strides": [2, 3], "output_padding": [1, 2]}),
        ((1, 4, 7), (4, 2, 3), {"dilations": [2], "pads": [1, 0]}),
    ],
)
def test_conv_transpose(x: Any, w: Any, more: dict[str, Any]) -> None:
    rng = np.random.default_rng(1)
    x, w = stored(rng, x, np.uint8), stored(rng, w, np.int8)
    real = [x.astype(np.float32) - 100, w.astype(np.float32)]
    expected = compute("ConvTranspose", real, "", **more)
    given = {"x_zero_point": 100, "to": FLOAT, **more}
    found = compute("ConvTranspose", [x, w, None, np.ones(1, np.float32)], **given)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("a", "b"), [((7, 12), (12, 5)), ((2, 3, 7, 12), (3, 12, 5))])
def test_matmul(a: Any, b: Any) -> None:
    rng = np.random.default_rng(2)
    x, w = stored(rng, a, np.uint8), stored(rng, b, np.uint8)
    zeros = [np.array(3, np.uint8), np.array(200, np.uint8)]
    expected = compute("MatMulInteger", [x, w, *zeros], "")
    given = {"x_zero_point": 3, "w_zero_point": 200}
    one = np.ones(1, np.float32)
    found = compute("MatMul", [x, w, None, one], to=FLOAT, **given)
    np.testing.assert_array_equal(found, expected)
    m = multiplier_for("fixed", np.full(w.shape[-1], 1e-3))
    q = compute("MatMul", [x, w, None, m], to=INT8, rounding="fixed", y_zero_point=-5, **given)
    assert np.abs(q - np.clip(expected * 1e-3 - 5, -128, 127)).max() <= 0.501


@pytest.mark.parametrize("rule", ["float32", "fixed"])
def test_residual_input(rule: str) -> None:
    """One rounding of the sum of both, not one of each: the halves show it."""
    x = np.array([[[[1, 3, 5, 7]]]], np.uint8)
    w = np.ones((1, 1, 1, 1), np.int8)
    z = np.array([[[[11, 11, 13, 13]]]], np.uint8)
    m = multiplier_for(rule, np.array([0.25]))
    by_z: Any = 0.25 if rule == "float32" else [1 << 20, 22]
    found = compute(
        "Conv", [x, w, None, m, z], to=UINT8, rounding=rule, z_zero_point=10, z_multiplier=by_z,
        y_zero_point=100,
    )  # fmt: skip
    # 0.25 + 0.25, 0.75 + 0.25, 1.25 + 0.75, 1.75 + 0.75
    expected = {"float32": [100, 101, 102, 102], "fixed": [101, 101, 102, 103]}
    np.testing.assert_array_equal(found.reshape(-1), expected[rule])


def test_no_residual_input_by_tflites_rule() -> None:
    x, w = np.ones((1, 1, 1, 1), np.uint8), np.ones((1, 1, 1, 1), np.int8)
    m = multiplier_for("tflite", np.array([0.5]))
    with pytest.raises(FrontendError, match="has no residual input"):
        compute("Conv", [x, w, None, m, x], to=UINT8, rounding="tflite", z_multiplier=[1, 1])


def every_pair() -> tuple[np.ndarray, np.ndarray]:
    a = np.arange(256, dtype=np.uint8)
    return a[:, None], a[None, :]


def test_add_float32_in_plain_float32_arithmetic() -> None:
    a, b = every_pair()
    x, y = np.float32(0.37), np.float32(-0.71)
    found = compute(
        "Add", [a, b], a_zero_point=10, b_zero_point=20, a_multiplier=0.37, b_multiplier=-0.71,
        y_zero_point=99, low=0, high=255, to=UINT8,
    )  # fmt: skip
    for i, j in itertools.product(range(0, 256, 5), range(0, 256, 7)):
        real = np.float32(np.float32(i - 10) * x) + np.float32(np.float32(j - 20) * y)
        assert found[i, j] == min(max(int(np.rint(real)) + 99, 0), 255)


def test_add_fixed() -> None:
    a, b = every_pair()
    found = compute(
        "Add", [a, b], a_zero_point=10, b_zero_point=20, a_multiplier=[3, 3], b_multiplier=[5, 3],
        y_zero_point=0, to=INT8, rounding="fixed",
    )  # fmt: skip
    exact = ((a.astype(int) - 10) * 3 + (b.astype(int) - 20) * 5) / 8
    np.testing.assert_array_equal(found, np.clip(np.floor(exact + 0.5), -128, 127))


def test_mul() -> None:
    a, b = every_pair()
    found = compute(
        "Mul", [a, b], a_zero_point=10, b_zero_point=20, multiplier=0.01, y_zero_point=5, to=UINT8
    )
    exact = (a.astype(int) - 10) * (b.astype(int) - 20) * np.float64(np.float32(0.01)) + 5
    assert np.abs(found - np.clip(exact, 0, 255)).max() <= 0.5 + 1e-5


@pytest.mark.parametrize("include", [0, 1])
@pytest.mark.parametrize("ceil", [0, 1])
@pytest.mark.parametrize(
    "window",
    [
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
        {"kernel_shape": [2, 3], "strides": [3, 2], "pads": [0, 1, 1, 0]},
        {"kernel_shape": [3, 2], "dilations": [1, 2]},
    ],
)
def test_average_pool(window: dict[str, Any], include: int, ceil: int) -> None:
    """Against onnxruntime's AveragePool of real numbers, whose windows and counts these are."""
    x = stored(np.random.default_rng(3), (2, 3, 8, 7), np.int8)
    given = {**window, "count_include_pad": include, "ceil_mode": ceil}
    real = compute("AveragePool", [x.astype(np.float32) + 7], "", **given)
    more = {"x_zero_point": -7, "y_zero_point": 1, "to": INT8}
    for rule, m in (("float32", 0.8), ("fixed", [int(v) for v in multiplier_for("tflite", 0.8)])):
        if rule == "fixed":
            m = [m[0], 31 - m[1]]
        found = compute("AveragePool", [x], rounding=rule, multiplier=m, **more, **given)
        assert found.shape == real.shape
        assert np.abs(found - np.clip(real * 0.8 + 1, -128, 127)).max() <= 0.5 + 1e-4


def test_average_of_stored_values_by_tflites_rule() -> None:
    """Halves away from the stored zero, whatever the zero point."""
    x = np.array([[[[1, 2], [-1, -2]]]], np.int8)
    found = compute(
        "AveragePool", [x], kernel_shape=[1, 2], rounding="tflite", multiplier=[1 << 30, 1],
        x_zero_point=-128, y_zero_point=-128, to=INT8,
    )  # fmt: skip
    np.testing.assert_array_equal(found.reshape(-1), [2, -2])
    with pytest.raises(FrontendError, match="both parameters agree"):
        compute(
            "AveragePool", [x], kernel_shape=[1, 2], rounding="tflite", multiplier=[1 << 30, 0],
            x_zero_point=-128, y_zero_point=-128, to=INT8,
        )  # fmt: skip


@pytest.mark.parametrize("rule", ["float32", "fixed", "tflite"])
def test_global_average_pool(rule: str) -> None:
    x = stored(np.random.default_rng(4), (2, 5, 6, 7), np.uint8)
    m = multiplier_for("tflite", 0.7)
    number: Any = 0.7
    if rule != "float32":
        number = [int(m[0]), int(m[1]) if rule == "tflite" else 31 - int(m[1])]
    found = compute(
        "GlobalAveragePool", [x], rounding=rule, multiplier=number, x_zero_point=100,
        y_zero_point=50, to=UINT8,
    )  # fmt: skip
    exact = (x.astype(int) - 100).mean((2, 3), keepdims=True) * 0.7 + 50
    assert found.shape == (2, 5, 1, 1) and np.abs(found - exact).max() <= 0.5 + 1e-4


def test_requantize_by_one_changes_the_type_exactly() -> None:
    x = np.arange(-128, 128).astype(np.int8)
    for rule in ("float32", "fixed", "tflite"):
        m = multiplier_for(rule, 1.0)
        number: Any = 1.0 if rule == "float32" else [int(v) for v in m]
        found = compute(
            "Requantize", [x], multiplier=number, rounding=rule, y_zero_point=128, to=UINT8
        )
        np.testing.assert_array_equal(found, np.arange(256))


def test_lookup() -> None:
    table = np.random.default_rng(5).permutation(256).astype(np.uint8)
    x = np.array([-128, 0, 127], np.int8)
    np.testing.assert_array_equal(compute("Lookup", [x, table]), table[[0, 128, 255]])
    np.testing.assert_array_equal(
        compute("Lookup", [x.view(np.uint8), table]), table[[128, 0, 127]]
    )


def test_a_sum_over_32_bits_is_an_error() -> None:
    x, w = np.full((1, 70000), 255, np.uint8), np.full((70000, 1), 127, np.int8)
    with pytest.raises(FrontendError, match="exceeds 32 bits"):
        compute("MatMul", [x, w, None, np.ones(1, np.float32)], to=FLOAT)


def test_bounds_outside_of_the_type_are_an_error() -> None:
    with pytest.raises(FrontendError, match="is no range of"):
        compute("Requantize", [np.zeros(1, np.uint8)], multiplier=1.0, low=-1, high=200, to=UINT8)
    with pytest.raises(FrontendError, match="has no operator Gelu"):
        compute("Gelu", [np.zeros(1, np.uint8)])
