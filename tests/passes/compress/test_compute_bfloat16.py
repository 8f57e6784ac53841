"""bfloat16 arithmetic: the standard's types hold, casts only at the borders, answers of eight bits."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from effc import passes
from effc.core.passinfra import PassContext
from effc.core.reference import OnnxRuntimeRunner, random_feeds
from effc.core.shapes import infer_shapes
from effc.sources import load

TEXT = """<ir_version: 10, opset_import: ["": 23]>
g (float[1,4,6,6] x) => (float[1,4,6,6] y, float[1,8,6,6] z) {
  c = Conv<pads=[1,1,1,1]>(x, w1, b1)
  r = Relu(c)
  d = Conv(r, w2)
  s = Softmax<axis=1>(d)
  y = Add(s, x)
  z = Concat<axis=1>(r, d)
}"""


def tiny() -> ir.Model:
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(TEXT)
    for name, shape in (("w1", (4, 4, 3, 3)), ("b1", (4,)), ("w2", (4, 4, 1, 1))):
        array = (rng.standard_normal(shape) * 0.4).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = ir.from_proto(proto)
    infer_shapes(model)
    return model


def shortened(model: ir.Model) -> int:
    text = "convert-float16{dtype=bfloat16},compute-bfloat16,eliminate-dead-code"
    records = passes.parse(text).run(model, PassContext())
    infer_shapes(model)  # raises where types don't fit
    return records[1].rewrites


def test_regions_are_computed_in_bfloat16_and_the_interface_stays() -> None:
    model = tiny()
    assert shortened(model) == 4  # c, r, d, z
    by_op = {n.op_type: n for n in model.graph if n.op_type != "Cast"}
    assert (
        by_op["Relu"].outputs[0].dtype == by_op["Concat"].outputs[0].dtype == ir.DataType.BFLOAT16
    )
    assert by_op["Softmax"].outputs[0].dtype == ir.DataType.FLOAT
    assert [(o.name, o.dtype) for o in model.graph.outputs] == [
        ("y", ir.DataType.FLOAT), ("z", ir.DataType.FLOAT)
    ]  # fmt: skip
    assert sum(n.op_type == "Cast" for n in model.graph) == 3  # x, d for the Softmax, z
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_answers_keep_eight_bits() -> None:
    """onnxruntime has no bfloat16 convolution: the reference evaluator of onnx computes it."""
    model = tiny()
    (feeds,) = random_feeds(model, 1)
    with OnnxRuntimeRunner(model) as runner:
        expected = runner.infer(feeds)
    shortened(model)
    found = ReferenceEvaluator(ir.to_proto(model)).run(None, dict(feeds))
    for output, array in zip(model.graph.outputs, found, strict=True):
        golden = expected[str(output.name)]
        error = np.abs(np.asarray(array, np.float64) - golden).max() / np.abs(golden).max()
        assert 0 < error < 3e-2


def test_without_stored_bfloat16_nothing_changes() -> None:
    model = tiny()
    assert passes.parse("compute-bfloat16").run(model, PassContext())[0].rewrites == 0


@pytest.mark.parametrize("name", ["tiny-resnet", "tiny-vit", "tiny-unet", "tiny-shufflenet"])
def test_models_of_the_zoo_stay_valid(name: str) -> None:
    model = load(f"zoo:{name}", {}).model
    infer_shapes(model)
    passes.parse(f"{passes.CANONICALIZE},{passes.FUSE}").run(model, PassContext())
    assert shortened(model) > 3
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert all(o.dtype == ir.DataType.FLOAT for o in model.graph.outputs)
