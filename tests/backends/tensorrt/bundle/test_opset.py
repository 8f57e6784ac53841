"""Models at an older opset answer as before, or their nodes are refused."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from effc.backends.tensorrt.bundle.forms import single, weights_in_pairs
from effc.backends.tensorrt.bundle.opset import lower_opset
from effc.core.errors import UnsupportedOpError
from effc.core.measure import Array

HEAD = '<ir_version: 10, opset_import: ["": 21]> net '
# what changed between 17 and 21, each beside a node that did not
GRAPHS = {
    "reduce": "(float[2,3,4] x) => (float[2,4] y) <int64[1] a = {1}> { y = ReduceMean<keepdims=0>(x, a) }",
    "reduce all": "(float[2,3,4] x) => (float[1,1,1] y) { y = ReduceMax(x) }",
    "reduce nothing": "(float[2,3,4] x) => (float[2,3,4] y) { y = ReduceMin<noop_with_empty_axes=1>(x) }",
    "reduce sum": "(float[2,3,4] x) => (float[2,3,1] y) <int64[1] a = {-1}> { y = ReduceSum(x, a) }",
    "split": "(float[2,7] x) => (float[2,3] y, float[2,3] z, float[2,1] w)"
    " { y, z, w = Split<axis=-1, num_outputs=3>(x) }",
    "split sizes": "(float[2,7] x) => (float[2,2] y, float[2,5] z) <int64[2] s = {2, 5}>"
    " { y, z = Split<axis=1>(x, s) }",
    "pad": "(float[2,3,4] x) => (float[2,6,4] y) <int64[2] p = {1, 2}, int64[1] a = {-2}>"
    " { y = Pad(x, p, , a) }",
    "pad whole": "(float[2,3] x) => (float[4,4] y) <int64[4] p = {1, 0, 1, 1}>"
    ' { y = Pad<mode="reflect">(x, p) }',
    "gelu": "(float[2,50] x) => (float[2,50] y) { y = Gelu(x) }",
    "gelu tanh": '(float[2,50] x) => (float[2,50] y) { y = Gelu<approximate="tanh">(x) }',
    "mish": "(float[2,50] x) => (float[2,50] y) { y = Mish(x) }",
    "group": "(float[2,6,4,5] x) => (float[2,6,4,5] y) <float[6] s = {1, 2, 3, 4, 5, 6},"
    " float[6] b = {0, 1, 0, -1, 2, 0}> { y = GroupNormalization<num_groups=3, epsilon=0.01>(x, s, b) }",
    "grid": "(float[1,2,5,5] x, float[1,3,3,2] g) => (float[1,2,3,3] y)"
    ' { y = GridSample<mode="linear">(x, g) }',
    "resize": "(float[1,2,4,4] x) => (float[1,2,8,8] y) <float[4] s = {1., 1., 2., 2.}>"
    ' { y = Resize<mode="linear">(x, , s) }',
    "pool": "(float[1,2,6,6] x) => (float[1,2,3,3] y)"
    " { y = AveragePool<kernel_shape=[2,2], strides=[2,2], dilations=[1,1]>(x) }",
    "cast": "(float[2,3] x) => (int32[2,3] y) { y = Cast<to=6, saturate=1>(x) }",
    "quantize": "(float[2,3] x) => (float[2,3] y) <float s = {0.1}, int8 z = {0}>"
    " { q = QuantizeLinear<block_size=0>(x, s, z) y = DequantizeLinear(q, s, z) }",
    "hardswish": "(float[2,3] x) => (float[2,3] y) { y = HardSwish(x) }",
    "layernorm": "(float[2,4] x) => (float[2,4] y) <float[4] s = {1, 2, 3, 4}>"
    " { y = LayerNormalization(x, s) }",
}
# half precision, and a Cast that ends a chain
HALVES = {
    "constant": "(float[2,3] x) => (float[2,3] y)"
    " { f = Constant<value = float {2.5}>() k = Cast<to=10>(f) h = Cast<to=10>(x)"
    " m = Mul(h, k) y = Cast<to=1>(m) }",
    "straight": "(float[2,3] x) => (float[2,3] y) { h = Cast<to=10>(x) y = Cast<to=1>(h) }",
}  # fmt: skip


def parsed(text: str) -> onnx.ModelProto:
    model = onnx.parser.parse_model(HEAD + text)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def answers(model: onnx.ModelProto) -> list[Array]:
    rng = np.random.default_rng(3)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {
        v.name: rng.uniform(-0.9, 0.9, v.shape).astype(np.float32) * (1 if v.name == "g" else 3)
        for v in session.get_inputs()
    }
    return list(session.run(None, feeds))


@pytest.mark.parametrize("opset", [17, 19])
@pytest.mark.parametrize("name", GRAPHS)
def test_the_older_form_answers_as_before(name: str, opset: int) -> None:
    model = parsed(GRAPHS[name])
    lowered = ir.to_proto(lower_opset(ir.from_proto(model), opset, "jetson"))
    onnx.checker.check_model(lowered, full_check=True)
    assert lowered.opset_import[0].version == opset
    assert lowered.ir_version == {17: 8, 19: 9}[opset]
    for a, b in zip(answers(model), answers(lowered), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert np.allclose(a, b, rtol=1e-5, atol=1e-5)


def test_the_model_is_left_alone() -> None:
    model = ir.from_proto(parsed(GRAPHS["gelu"]))
    before = ir.to_proto(model).SerializeToString()
    lower_opset(model, 17, "jetson")
    assert ir.to_proto(model).SerializeToString() == before


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("(float[1,2,4,4] x) => (float[1,2,2,2] y) <float[4] s = {1., 1., 0.5, 0.5}>"
         ' { y = Resize<mode="linear", antialias=1>(x, , s) }', "no attribute antialias"),
        ("(float[1,2,6,6] x) => (float[1,2,2,2] y)"
         " { y = AveragePool<kernel_shape=[3,3], dilations=[2,2]>(x) }", "no attribute dilations"),
        ("(float[2,3] x) => (float[2,3] y) { n = IsInf(x) m = Not(n) y = Where(m, x, x) }", ""),
        ("(float[2,3] x) => (string[2,3] y) { y = Cast<to=8>(x) }", ""),
        ('(float[1,2,4] x) => (float[1,2,8] y) <int64[2] p = {2, 2}, int64[1] a = {2}>'
         ' { y = Pad<mode="wrap">(x, p, , a) }', "does not wrap"),
        ("(float[2,3] x, int64[1] a) => (float[n,m] y) { y = ReduceMean(x, a) }", "axes are computed"),
        ("(float[2,3] x) => (float[2,3] y) { y = ReduceL2<noop_with_empty_axes=1>(x) }", "no axis"),
    ],
)  # fmt: skip
def test_what_has_no_older_form(text: str, reason: str) -> None:
    model = ir.from_proto(onnx.parser.parse_model(HEAD + text))
    if not reason:
        lower_opset(model, 17, "jetson")
        return
    with pytest.raises(UnsupportedOpError, match=reason):
        lower_opset(model, 17, "jetson")


def test_all_refused_nodes_are_listed() -> None:
    text = (
        "(float[1,2,6,6] x) => (float[1,2,2,2] y, float[1,2,2,2] z)"
        " { y = AveragePool<kernel_shape=[3,3], dilations=[2,2]>(x)"
        " z = AveragePool<kernel_shape=[3,3], dilations=[2,2]>(x) }"
    )
    with pytest.raises(UnsupportedOpError) as caught:
        lower_opset(ir.from_proto(onnx.parser.parse_model(HEAD + text)), 17, "jetson")
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("name", ["constant", "straight"])
def test_single_precision_has_no_casts(name: str) -> None:
    proto = parsed(HALVES[name])
    model = ir.from_proto(proto)
    before = ir.to_proto(model).SerializeToString()
    wide = ir.to_proto(single(model))
    assert ir.to_proto(model).SerializeToString() == before  # clones share tensors and types
    onnx.checker.check_model(wide, full_check=True)
    kept = [n.op_type for n in wide.graph.node if n.op_type == "Cast"]
    assert len(kept) == (1 if name == "straight" else 0)  # an input is no output
    for a, b in zip(answers(proto), answers(wide), strict=True):
        assert np.allclose(a, b, rtol=2e-3, atol=2e-3)


def test_weights_in_pairs_are_the_same_integers() -> None:
    rng = np.random.default_rng(8)
    integers = rng.integers(-127, 128, (4, 3)).astype(np.int8)
    scale = rng.uniform(1e-3, 1e-1, 4).astype(np.float32)
    model = onnx.parser.parse_model(
        HEAD + "(float[4,3] x, int8[4,3] q, float[4] s) => (float[4,3] y)"
        " { w = DequantizeLinear<axis=0>(q, s) y = Add(x, w) }"
    )
    for name, array in (("q", integers), ("s", scale)):
        del model.graph.input[1]
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    made = ir.from_proto(model)
    assert weights_in_pairs(made) == 1
    after = ir.to_proto(made)
    onnx.checker.check_model(after, full_check=True)
    assert [n.op_type for n in after.graph.node] == ["QuantizeLinear", "DequantizeLinear", "Add"]
    assert np.array_equal(answers(model)[0], answers(after)[0])
