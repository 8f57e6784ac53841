"""Costs counted by hand, and against what the field publishes for well-known models."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest

from effc import zoo
from effc.core.cost import activation_peak, live_bytes, model_cost, roofline
from effc.core.shapes import infer_shapes
from effc.core.target import HardwareProfile, Memory, Number


def model(text: str, opset: int = 17) -> ir.Model:
    made = ir.from_proto(
        onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> {text}')
    )
    infer_shapes(made)
    return made


@pytest.mark.parametrize(
    ("text", "macs", "flops"),
    [
        ("g (float[1,3,8,8] x, float[16,3,3,3] w) => (float[1,16,6,6] y) { y = Conv(x, w) }",
         16 * 36 * 27, 0),
        ("g (float[1,8,8,8] x, float[8,1,3,3] w, float[8] b) => (float[1,8,4,4] y) "
         "{ y = Conv <group=8, strides=[2,2], pads=[1,1,1,1]> (x, w, b) }", 8 * 16 * 9, 8 * 16),
        ("g (float[1,4,5,5] x, float[4,6,2,2] w) => (float[1,6,10,10] y) "
         "{ y = ConvTranspose <strides=[2,2]> (x, w) }", 4 * 25 * 24, 0),
        ("g (float[2,7] x, float[5,7] w, float[5] b) => (float[2,5] y) { y = Gemm <transB=1> (x, w, b) }",
         2 * 5 * 7, 10),
        ("g (float[7,2] x, float[7,5] w) => (float[2,5] y) { y = Gemm <transA=1> (x, w) }", 70, 0),
        ("g (float[2,3,4] x, float[4,6] w) => (float[2,3,6] y) { y = MatMul(x, w) }", 2 * 3 * 6 * 4, 0),
        ("g (float[2,3,4] a, float[2,5,4] b) => (float[2,3,5] y) "
         '{ y = Einsum <equation="bij,bkj->bik"> (a, b) }',
         2 * 3 * 5 * 4, 0),
        ("g (float[1,2,8,8] x) => (float[1,2,4,4] y) { y = MaxPool <kernel_shape=[2,2], strides=[2,2]> (x) }",
         0, 2 * 16 * 4),
        ("g (float[2,10] x) => (float[2,10] y) { y = Softmax(x) }", 0, 60),
        ("g (float[2,10] x) => (float[2,10] y) { y = Relu(x) }", 0, 20),
        ("g (float[2,10] x) => (float[20] y) { s = Constant <value_ints=[20]> () y = Reshape(x, s) }", 0, 0),
    ],
)  # fmt: skip
def test_counts(text: str, macs: int, flops: int) -> None:
    cost = model_cost(model(text))
    assert (cost.macs, cost.flops) == (macs, flops)


def test_attention() -> None:
    made = model(
        "g (float[1,2,5,8] q, float[1,2,7,8] k, float[1,2,7,4] v) => (float[1,2,5,4] y) "
        "{ y = Attention(q, k, v) }",
        opset=23,
    )
    assert model_cost(made).macs == 2 * 5 * 7 * (8 + 4)


def test_a_loop_counts_each_trip_and_an_if_its_dearer_branch() -> None:
    looped = model(
        "g (float[4,4] x) => (float[4,4] y) { n = Constant <value_int=3> () c = Constant <value_int=1> () "
        "b = Cast <to=9> (c) "
        "y = Loop <body = body (int64 i, bool k, float[4,4] a) => (bool k2, float[4,4] r) "
        "{ k2 = Identity(k) r = MatMul(a, a) }> (n, b, x) }"
    )
    assert model_cost(looped).macs == 3 * 64
    branched = model(
        "g (bool c, float[4,4] x) => (float[4,4] y) { y = If (c) <then_branch = t () => (float[4,4] a) "
        "{ a = MatMul(x, x) }, else_branch = e () => (float[4,4] b) { b = Relu(x) }> }"
    )
    assert model_cost(branched).macs == 64


def test_live_memory() -> None:
    made = model(
        "g (float[10] x) => (float[10] y) { a = Relu(x) b = Neg(a) f = Flatten <axis=0> (b) "
        "c = Squeeze(f) y = Add(c, a) }"
    )
    # x a | a b | views of b | a b y
    assert [size for _, size in live_bytes(made.graph)] == [80, 80, 80, 80, 120]
    assert activation_peak(made.graph)[0] == 120


def test_an_output_lives_to_the_end_and_a_dead_value_dies() -> None:
    made = model(
        "g (float[10] x) => (float[10] y, float[10] z) { y = Relu(x) d = Neg(x) z = Abs(x) }"
    )
    assert [size for _, size in live_bytes(made.graph)] == [80, 120, 120]


def test_shared_weights_count_once() -> None:
    made = model(
        "g (float[4,4] x) => (float[4,4] y) <float[4,4] w = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}> "
        "{ a = MatMul(x, w) y = MatMul(a, w) }"
    )
    cost = model_cost(made)
    assert cost.parameters == 16 and cost.weight_bytes == 64
    assert [n.parameters for n in cost.nodes] == [16, 16]


def test_a_dynamic_shape_is_told() -> None:
    made = model("g (float[N,4] x, float[4,4] w) => (float[N,4] y) { y = MatMul(x, w) }")
    assert not model_cost(made).nodes[0].known


def test_roofline() -> None:
    made = model(
        "g (float[64,64] x, float[64,64] w) => (float[64,64] y) { a = MatMul(x, w) y = Relu(a) }"
    )
    cost = model_cost(made)

    def number(value: float) -> Number:
        return Number(value, "datasheet", "made up")

    profile = HardwareProfile(
        name="p", title="p", vendor="v", backend="ort", triple="t", cores=2,
        memories=(Memory("L2", number(40e3), number(1e9), 1), Memory("DRAM", number(1e9), number(1e8))),
        peak={"float32": number(1e8)},
    )  # fmt: skip
    both, one = roofline(cost, profile), roofline(cost, profile, threads=1)
    assert both[0].bound == "compute" and both[0].seconds == pytest.approx(64**3 / 1e8)
    assert one[0].seconds == pytest.approx(2 * both[0].seconds)
    # 32 KiB fit into the L2 of both cores; 48 KiB do too
    assert both[1].seconds == pytest.approx(max(32768 / 1e9, 2048 / 1e8))
    bare = HardwareProfile(name="q", title="q", vendor="v", backend="ort", triple="t")
    assert roofline(cost, bare) == ()


@pytest.mark.parametrize("name", zoo.names())
def test_zoo(name: str) -> None:
    made = zoo.build(name)
    infer_shapes(made)
    cost = model_cost(made)
    if all(n.known for n in cost.nodes):
        assert cost.macs > 0 and cost.activation_peak_bytes > 0
    else:
        assert name == "tiny-dynamic"
    assert cost.parameters >= zoo.member(name).parameters
