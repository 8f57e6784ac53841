"""Quantizers between float16 operators: float16 scales instead of casts, and the same integers."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from effc import passes
from effc.core.ir import const
from effc.core.passinfra import PassContext
from effc.core.reference import OnnxRuntimeRunner
from effc.core.shapes import infer_shapes
from effc.passes.quantize.halve_scales import HalveScales

TEXT = """<ir_version: 10, opset_import: ["": 23]>
g (float[1,4,6,6] x) => (float[1,4,6,6] y) {
  q = QuantizeLinear(x, s, z)
  d = DequantizeLinear(q, s, z)
  dh = Cast<to=10>(d)
  w = DequantizeLinear<axis=0>(wq, ws, wz)
  wh = Cast<to=10>(w)
  c = Conv<pads=[1,1,1,1]>(dh, wh)
  r = Relu(c)
  rf = Cast<to=1>(r)
  q2 = QuantizeLinear(rf, s2, z)
  d2 = DequantizeLinear(q2, s2, z)
  dh2 = Cast<to=10>(d2)
  c2 = Conv<pads=[1,1,1,1]>(dh2, wh)
  y = Cast<to=1>(c2)
}"""


def quantized(s2: float = 0.0437) -> ir.Model:
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(TEXT)
    arrays = {
        "s": np.float32(0.0213), "s2": np.float32(s2), "z": np.int8(0),
        "wq": rng.integers(-127, 128, (4, 4, 3, 3)).astype(np.int8),
        "ws": rng.uniform(0.001, 0.01, 4).astype(np.float32), "wz": np.zeros(4, np.int8),
    }  # fmt: skip
    for name, array in arrays.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    model = ir.from_proto(proto)
    infer_shapes(model)
    return model


def answer(model: ir.Model) -> np.ndarray:
    x = np.random.default_rng(1).standard_normal((1, 4, 6, 6)).astype(np.float32)
    with OnnxRuntimeRunner(model, optimize=False) as runner:
        return runner.infer({"x": x})["y"]


def test_casts_between_quantizers_and_operators_are_gone() -> None:
    model = quantized()
    expected = answer(model)
    records = passes.parse("halve-scales,eliminate-dead-code").run(model, PassContext())
    assert records[0].rewrites == 5
    infer_shapes(model)
    assert [n.op_type for n in model.graph] == [
        "QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "Conv", "Relu", "QuantizeLinear",
        "DequantizeLinear", "Conv", "Cast",
    ]  # fmt: skip
    pairs = [n for n in model.graph if n.op_type.endswith("quantizeLinear") or "Quant" in n.op_type]
    kinds = [n.inputs[1].dtype for n in pairs]
    # the first reads the float32 input; its scale is the same number as its partner's
    assert kinds[0] == ir.DataType.FLOAT and set(kinds[1:]) == {ir.DataType.FLOAT16}
    assert const(pairs[0].inputs[1]) == np.float32(const(pairs[1].inputs[1]))
    error = np.abs(answer(model) - expected).max() / np.abs(expected).max()
    assert error < 2e-2
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_scales_that_half_can_not_hold_stay() -> None:
    model = quantized(s2=2e-5)
    expected = answer(model)
    HalveScales().run(model, PassContext())
    infer_shapes(model)
    second = [n for n in model.graph if n.op_type == "QuantizeLinear"][1]
    assert second.inputs[1].dtype == ir.DataType.FLOAT and const(second.inputs[1]) == np.float32(
        2e-5
    )
    assert np.abs(answer(model) - expected).max() <= 2e-2 * np.abs(expected).max()


def test_float32_models_are_left_alone() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 23]> g (float[4] x) => (float[4] y)'
        " { q = QuantizeLinear(x, s)\n y = DequantizeLinear(q, s) }"
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.1), "s"))
    model = ir.from_proto(proto)
    infer_shapes(model)
    assert HalveScales().run(model, PassContext()) == 0
    assert const(model.graph.node(0).inputs[1]) == np.float32(0.1)
