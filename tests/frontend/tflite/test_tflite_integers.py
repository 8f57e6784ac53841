"""Single int8 operators: integerize{rounding=tflite} gives what TFLite's reference kernels give, exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from effc import passes
from effc.core.integers import DOMAIN
from effc.core.integers import reference as integers
from effc.core.passinfra import PassContext

X = {"scale": [0.037], "zero_point": [-11]}
Y = {"scale": [0.051], "zero_point": [23]}
OUT = {"scale": [0.083], "zero_point": [5]}
SIGMOID = {"scale": [1 / 256], "zero_point": [-128]}
TANH = {"scale": [1 / 128], "zero_point": [0]}
SHAPE = (1, 9, 8, 4)
Build = Callable[[Any, np.random.Generator], None]


def one(
    op: str, options: str = "", shape: Any = SHAPE, out: Any = SHAPE, q: Any = OUT, x: Any = X,
    extra: Any = (), **values: Any,
) -> Build:  # fmt: skip
    def build(net: Any, rng: np.random.Generator) -> None:
        a = net.input(shape, np.int8, **x)
        more = [net.const(np.asarray(e, np.int32)) for e in extra]
        net.outputs = [net.tensor(out, np.int8, **q)]
        net.op(op, [a, *more], net.outputs, options, **values)

    return build


def two(
    op: str, options: str, a: Any = SHAPE, b: Any = SHAPE, out: Any = SHAPE, **values: Any
) -> Build:
    def build(net: Any, rng: np.random.Generator) -> None:
        inputs = [net.input(a, np.int8, **X), net.input(b, np.int8, **Y)]
        net.outputs = [net.tensor(out, np.int8, **OUT)]
        net.op(op, inputs, net.outputs, options, **values)

    return build


def product(
    op: str, options: str, weights: Any, axis: int, shape: Any, out: Any, **values: Any
) -> Build:
    def build(net: Any, rng: np.random.Generator) -> None:
        a = net.input(shape, np.int8, **X)
        filters = weights[axis]
        scale = rng.uniform(0.004, 0.01, 1 if op == "FULLY_CONNECTED" else filters).astype(
            np.float32
        )
        zero = [0] * scale.size
        w = net.const(
            rng.integers(-127, 128, weights).astype(np.int8),
            scale=scale,
            zero_point=zero,
            axis=axis,
        )
        bias = net.const(
            rng.integers(-3000, 3000, filters).astype(np.int32),
            scale=scale * np.float32(0.037), zero_point=zero,
        )  # fmt: skip
        inputs = [a, w, bias]
        if op == "TRANSPOSE_CONV":
            inputs = [net.const(np.array(out, np.int32)), w, a]
        net.outputs = [net.tensor(out, np.int8, **OUT)]
        net.op(op, inputs, net.outputs, options, **values)

    return build


ONE = {"StrideH": 1, "StrideW": 1, "DilationHFactor": 1, "DilationWFactor": 1}
TWO = {"StrideH": 2, "StrideW": 2, "DilationHFactor": 1, "DilationWFactor": 1}
POOL = {"FilterHeight": 3, "FilterWidth": 3, "StrideH": 2, "StrideW": 2, "Padding": 0}
VALID = {**POOL, "Padding": 1}
CASES: dict[str, Build] = {
    "ADD": two("ADD", "AddOptions"),
    "ADD, RELU": two("ADD", "AddOptions", FusedActivationFunction=1),
    "ADD, broadcast": two("ADD", "AddOptions", b=(1, 1, 1, 4)),
    "SUB": two("SUB", "SubOptions"),
    "MUL": two("MUL", "MulOptions"),
    "BATCH_MATMUL": two("BATCH_MATMUL", "BatchMatMulOptions", (2, 5, 6), (2, 6, 7), (2, 5, 7)),
    "QUANTIZE": one("QUANTIZE"),
    "RELU": one("RELU"),
    "RELU6": one("RELU6"),
    "LEAKY_RELU": one("LEAKY_RELU", "LeakyReluOptions", Alpha=0.1),
    "LOGISTIC": one("LOGISTIC", q=SIGMOID),
    "TANH": one("TANH", q=TANH),
    "HARD_SWISH": one("HARD_SWISH", "HardSwishOptions"),
    "MEAN, kept": one("MEAN", "ReducerOptions", out=(1, 1, 1, 4), extra=[[1, 2]], KeepDims=True),
    "MEAN, alike": one("MEAN", "ReducerOptions", out=(1, 1, 1, 4), q=X, extra=[[1, 2]], KeepDims=True),
    "MEAN": one("MEAN", "ReducerOptions", out=(1, 4), extra=[[1, 2]]),
    "AVERAGE_POOL_2D": one("AVERAGE_POOL_2D", "Pool2DOptions", out=(1, 4, 3, 4), q=X, **VALID),
    "AVERAGE_POOL_2D, SAME": one("AVERAGE_POOL_2D", "Pool2DOptions", out=(1, 5, 4, 4), q=X, **POOL),
    "MAX_POOL_2D": one("MAX_POOL_2D", "Pool2DOptions", out=(1, 5, 4, 4), q=X, **POOL),
    "CONV_2D": product("CONV_2D", "Conv2DOptions", (6, 3, 3, 4), 0, SHAPE, (1, 9, 8, 6), **ONE),
    "CONV_2D, RELU6": product(
        "CONV_2D", "Conv2DOptions", (6, 3, 3, 4), 0, SHAPE, (1, 5, 4, 6), FusedActivationFunction=3, **TWO
    ),
    "DEPTHWISE_CONV_2D": product(
        "DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions", (1, 3, 3, 8), 3, SHAPE, (1, 9, 8, 8),
        DepthMultiplier=2, **ONE,
    ),
    "TRANSPOSE_CONV": product(
        "TRANSPOSE_CONV", "TransposeConvOptions", (3, 3, 3, 4), 0, (1, 5, 6, 4), (1, 10, 12, 3),
        StrideH=2, StrideW=2,
    ),
    "FULLY_CONNECTED": product(
        "FULLY_CONNECTED", "FullyConnectedOptions", (10, 40), 0, (2, 40), (2, 10)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_reference_kernels(tfl: Any, name: str) -> None:
    rng = np.random.default_rng(0)
    net = tfl.Net()
    CASES[name](net, rng)
    data = net.bytes()
    interpreter = tfl.Interpreter(data)
    model = tfl.imported(data)
    passes.parse("integerize{rounding=tflite}").run(model, PassContext())
    assert not [n for n in model.graph if n.op_type in ("DequantizeLinear", "QuantizeLinear")]
    assert name.startswith("MAX") or [n for n in model.graph if n.domain == DOMAIN]
    names = [str(v.name) for v in model.graph.inputs]
    for _ in range(8):
        xs = [rng.integers(-128, 128, net.tensors[i].shape).astype(np.int8) for i in net.inputs]
        (found,) = integers.run(model, dict(zip(names, xs, strict=True))).values()
        (expected,) = interpreter.run(*xs)
        assert np.unique(expected).size > 2, "vacuous"
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_softmax(tfl: Any, classes: int) -> None:
    """It stays real between DQ and Q: the reference kernel's fixed point agrees after its rounding.

    The kernel adds exponentials of 5 integer bits in 12.19 fixed point and divides by a Newton step; the
    optimized ones add float32 exponentials from a table of 256. Measured on 2000 random inputs each of 2, 10,
    12 and 1000 classes: at most 0.005 % of the probabilities differ from any of them, by 1.
    """
    net = tfl.Net()
    x = {"scale": [0.02 if classes < 100 else 0.1], "zero_point": [0]}
    one("SOFTMAX", "SoftmaxOptions", (1, classes), (1, classes), SIGMOID, x, Beta=1.0)(
        net, np.random.default_rng(0)
    )
    data = net.bytes()
    model = tfl.imported(data)
    passes.parse("integerize{rounding=tflite}").run(model, PassContext())
    assert [n.op_type for n in model.graph] == ["DequantizeLinear", "Softmax", "QuantizeLinear"]
    rng = np.random.default_rng(1)
    xs = rng.normal(0, 40, (20, 1, classes)).clip(-128, 127).astype(np.int8)
    (name,) = [str(v.name) for v in model.graph.inputs]
    found = np.concatenate([next(iter(integers.run(model, {name: s}).values())) for s in xs])
    for kind in ("reference", "plain", "default"):
        interpreter = tfl.Interpreter(data, kind)
        expected = np.concatenate([interpreter.run(s)[0] for s in xs])
        assert np.unique(expected).size > 3, "vacuous"
        off = np.abs(found.astype(int) - expected)
        assert off.max() <= 1 and (off > 0).mean() <= 0.01, kind
