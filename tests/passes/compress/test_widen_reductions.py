"""Reductions of half-precision networks in float32: no overflow, few casts, interfaces as they were."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from effc.core.passinfra import PassContext
from effc.core.reference import OnnxRuntimeRunner
from effc.core.shapes import infer_shapes
from effc.passes.compress.widen_reductions import WidenReductions


def parse(body: str, **arrays: np.ndarray) -> ir.Model:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 23]> {body}')
    for name, array in arrays.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = ir.from_proto(proto)
    infer_shapes(model)
    return model


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    with OnnxRuntimeRunner(model, optimize=False) as runner:
        return runner.infer({"x": x})["y"]


def ops(model: ir.Model) -> list[str]:
    return [n.op_type for n in model.graph]


def widen(model: ir.Model) -> int:
    count = WidenReductions().run(model, PassContext())
    infer_shapes(model)  # types agree
    return count


def test_a_power_is_computed_in_float32() -> None:
    text = (
        "g (float16[1,8] x) => (float16[1,8] y) { p = Pow(x, two)\n s = Sqrt(p)\n y = Identity(s) }"
    )
    model = parse(text, two=np.array(2, np.float16))
    assert widen(model) == 1
    assert next(n for n in model.graph if n.op_type == "Pow").outputs[0].dtype == ir.DataType.FLOAT
    assert ops(model) == ["Cast", "Pow", "Cast", "Sqrt", "Identity"]
    assert model.graph.outputs[0].dtype == ir.DataType.FLOAT16


@pytest.mark.parametrize("kind", [np.float16])
def test_layer_normalization_of_large_numbers(kind: type) -> None:
    rng = np.random.default_rng(0)
    text = "g (float16[2,64] x) => (float16[2,64] y) { y = LayerNormalization(x, s, b) }"
    model = parse(
        text, s=rng.standard_normal(64).astype(kind), b=rng.standard_normal(64).astype(kind)
    )
    x = (rng.standard_normal((2, 64)) * 3e4).clip(-6e4, 6e4).astype(kind)
    wide = x.astype(np.float64)
    normal = (wide - wide.mean(-1, keepdims=True)) / wide.std(-1, keepdims=True)
    expected = normal * np.asarray(model.graph.initializers["s"].const_value.numpy(), float)
    expected += np.asarray(model.graph.initializers["b"].const_value.numpy(), float)
    assert widen(model) == 1 and ops(model) == ["Cast", "LayerNormalization", "Cast"]
    assert [o.name for o in model.graph.outputs] == ["y"]
    np.testing.assert_allclose(run(model, x), expected, rtol=2e-3, atol=2e-3)


def test_casts_on_both_sides_disappear() -> None:
    text = """g (float[2,8] x) => (float[2,8] y) {
      h = Cast<to=10>(x)
      s = Softmax(h)
      f = Cast<to=1>(s)
      y = Mul(f, f)
    }"""
    model = parse(text)
    assert widen(model) == 1
    softmax = next(n for n in model.graph if n.op_type == "Softmax")
    assert softmax.inputs[0] is model.graph.inputs[0]
    mul = next(n for n in model.graph if n.op_type == "Mul")
    assert all(v is softmax.outputs[0] for v in mul.inputs)


def test_float32_and_other_operators_stay() -> None:
    text = "g (float16[2,8] x, float[2,8] z) => (float16[2,8] y, float[2,8] w) { y = Relu(x)\n w = Exp(z) }"
    model = parse(text)
    before = ir.to_proto(model).SerializeToString()
    assert WidenReductions().run(model, PassContext()) == 0
    assert ir.to_proto(model).SerializeToString() == before


def test_readers_in_half_get_half() -> None:
    text = """g (float16[2,8] x) => (float16[2,8] y, float[2,8] w) {
      e = Exp(x)
      y = Relu(e)
      w = Cast<to=1>(e)
    }"""
    model = parse(text)
    x = np.linspace(-2, 2, 16, dtype=np.float16).reshape(2, 8)
    assert widen(model) == 1
    with OnnxRuntimeRunner(model) as runner:
        found = runner.infer({"x": x})
    np.testing.assert_allclose(found["y"], np.exp(x.astype(np.float64)), rtol=1e-3)
    np.testing.assert_allclose(found["w"], np.exp(x.astype(np.float64)), rtol=1e-3)
