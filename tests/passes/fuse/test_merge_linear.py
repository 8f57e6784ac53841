from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from effc.passes.fuse.linear import regroup
from effc.passes.fuse.merge_linear import MergeLinear

HYPOTHESIS = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
ALWAYS = MergeLinear(max_mac_ratio=1e9)


def numbers(seed: int, *shape: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.uniform(0.5, 2, shape) * rng.choice([-1, 1], shape)).astype(np.float32)


def two_convs(build, first: str, second: str, w1, w2, bias: bool = True):
    b = ", b1" if bias else ""
    text = f"""
    g (float[1,4,16,17] x) => (float[N,C,H,W] y) {{
      h = Conv{first}(x, w1{b})
      y = Conv{second}(h, w2, b2)
    }}"""
    arrays = {"b1": numbers(3, w1.shape[0])} if bias else {}
    return build(text, w1=w1, w2=w2, b2=numbers(4, w2.shape[0]), **arrays)


def test_pointwise_behind_a_conv(build, rewrite):
    m = two_convs(build, "<pads=[1,1,1,1]>", "", numbers(1, 8, 4, 3, 3), numbers(2, 4, 8, 1, 1))
    r = rewrite(m, MergeLinear())
    assert r.ops == ["Conv"]
    assert r.node("Conv").inputs[1].shape == (4, 4, 3, 3)


def test_strides_multiply(build, rewrite):
    m = two_convs(
        build, "<strides=[2,1]>", "<strides=[2,3]>", numbers(1, 8, 4, 2, 2), numbers(2, 4, 8, 1, 1)
    )
    r = rewrite(m, MergeLinear())
    assert list(r.node("Conv").attributes["strides"].value) == [4, 3]


def test_a_conv_behind_a_pointwise_one(build, rewrite):
    w1, w2 = numbers(1, 16, 4, 1, 1), numbers(2, 4, 16, 3, 3)
    assert rewrite(two_convs(build, "", "", w1, w2), MergeLinear()).ops == ["Conv"]
    padded = "<pads=[1,1,1,1]>"
    assert rewrite(two_convs(build, "", padded, w1, w2), MergeLinear()).count == 0
    assert rewrite(two_convs(build, "", padded, w1, w2, bias=False), MergeLinear()).ops == ["Conv"]


def test_depthwise_scale_behind_a_depthwise_conv(build, rewrite):
    m = two_convs(build, "<group=4>", "<group=4>", numbers(1, 4, 1, 3, 3), numbers(2, 4, 1, 1, 1))
    r = rewrite(m, MergeLinear())
    assert r.ops == ["Conv"] and r.node("Conv").attributes["group"].value == 4


@pytest.mark.parametrize(
    "first, second, w1, w2",
    [
        ("", "", (4, 4, 3, 3), (4, 4, 3, 3)),  # neither is pointwise
        ("", "", (2, 4, 1, 1), (8, 2, 1, 1)),  # a low-rank pair
        ("<group=4>", "", (4, 1, 3, 3), (8, 4, 1, 1)),  # depthwise, then pointwise
        ("<strides=[2,2]>", "", (8, 4, 1, 1), (4, 8, 3, 3)),
        ('<auto_pad="SAME_UPPER">', "<strides=[2,2]>", (8, 4, 3, 3), (4, 8, 1, 1)),
        ("", "<pads=[1,0,0,0]>", (8, 4, 3, 3), (4, 8, 1, 1)),
    ],
)
def test_declines(build, rewrite, first, second, w1, w2):
    m = two_convs(build, first, second, numbers(1, *w1), numbers(2, *w2))
    assert rewrite(m, MergeLinear()).count == 0


def test_declines_an_activation_between(build, rewrite):
    text = """
    g (float[1,4,16,17] x) => (float[N,C,H,W] y) {
      h = Conv(x, w1) a = Relu(h) y = Conv(a, w2)
    }"""
    m = build(text, w1=numbers(1, 8, 4, 1, 1), w2=numbers(2, 4, 8, 1, 1))
    assert rewrite(m, ALWAYS).count == 0


@HYPOTHESIS
@given(
    groups=st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4])),
    kernels=st.tuples(*[st.sampled_from([1, 1, 2, 3])] * 4),
    pads=st.tuples(*[st.integers(0, 1)] * 4),
    strides=st.tuples(*[st.integers(1, 2)] * 4),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
    first_padded=st.booleans(),
)
def test_any_pair(build, rewrite, groups, kernels, pads, strides, dilation, bias, first_padded):
    def window(i: int, padded: bool) -> str:
        p = list(pads) if padded else [0] * 4
        return (
            f"<group={groups[i]}, pads={p}, strides={list(strides[2 * i : 2 * i + 2])},"
            f" dilations=[{dilation},{dilation}]>"
        )

    w1 = numbers(1, 8, 4 // groups[0], *kernels[:2])
    w2 = numbers(2, 4, 8 // groups[1], *kernels[2:])
    rewrite(
        two_convs(build, window(0, first_padded), window(1, not first_padded), w1, w2, bias), ALWAYS
    )


@pytest.mark.parametrize("groups, fewer", [(4, 1), (4, 2), (6, 3), (3, 3)])
def test_regroup(groups, fewer):
    import onnx.reference

    w = numbers(0, 12, 2, 1, 1).astype(np.float64)
    x = numbers(1, 1, 2 * groups, 3, 3).astype(np.float64)

    def conv(weight: np.ndarray, g: int) -> np.ndarray:
        node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], group=g)
        return onnx.reference.ReferenceEvaluator(node).run(None, {"x": x, "w": weight})[0]

    np.testing.assert_allclose(conv(regroup(w, groups, fewer), fewer), conv(w, groups))


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
def test_gemms(build, rewrite, trans_a, trans_b):
    text = f"""
    g (float[4,4] x) => (float[4,3] y) {{
      h = Gemm<transA={trans_a}, transB={trans_b}, alpha=0.5, beta=2.0>(x, w1, b1)
      y = Gemm<transB={trans_b}, alpha=1.5, beta=0.5>(h, w2, b2)
    }}"""
    w1, w2 = numbers(1, 4, 16), numbers(2, 16, 3)
    if trans_b:
        w1, w2 = np.ascontiguousarray(w1.T), np.ascontiguousarray(w2.T)
    m = build(text, w1=w1, w2=w2, b1=numbers(3, 16), b2=numbers(4, 3))
    assert rewrite(m, MergeLinear()).ops == ["Gemm"]


def test_matmuls_of_higher_rank(build, rewrite):
    text = """
    g (float[2,5,4] x) => (float[2,5,3] y) {
      p = MatMul(x, w1)
      h = Add(p, b1)
      q = MatMul(h, w2)
      y = Add(q, b2)
    }"""
    arrays = {"w1": numbers(1, 4, 16), "w2": numbers(2, 16, 3)}
    r = rewrite(build(text, **arrays, b1=numbers(3, 16), b2=numbers(4, 3)), MergeLinear())
    assert r.ops == ["MatMul", "Add"]


def test_a_low_rank_pair_stays(build, rewrite):
    text = "g (float[5,8] x) => (float[5,8] y) { h = MatMul(x, w1) y = MatMul(h, w2) }"
    m = build(text, w1=numbers(1, 8, 2), w2=numbers(2, 2, 8))
    assert rewrite(m, MergeLinear()).count == 0


@pytest.mark.parametrize(
    "body, ops",
    [
        ("a = Add(x, k) y = Add(l, a)", ["Add"]),
        ("a = Sub(x, k) y = Sub(a, l)", ["Add"]),
        ("a = Mul(x, k) b = Div(a, l) y = Neg(b)", ["Mul"]),
        ("a = Add(x, k) y = Sub(l, a)", ["Sub"]),
        ("a = Add(x, k) y = Mul(a, l)", ["Add", "Mul"]),
        ("a = Sub(l, x) y = Sub(k, a)", ["Add"]),
    ],
)
def test_arithmetic(build, rewrite, body, ops):
    text = f"g (float[2,4,3] x) => (float[2,4,3] y) {{ {body} }}"
    m = build(text, k=numbers(0, 4, 1), l=numbers(1))
    assert rewrite(m, MergeLinear()).ops == ops


def test_arithmetic_does_not_blow_constants_up(build, rewrite):
    text = "g (float[2,4,3] x) => (float[2,4,3] y) { a = Add(x, k) y = Add(a, l) }"
    assert rewrite(build(text, k=numbers(0, 4, 1), l=numbers(1, 3)), MergeLinear()).count == 0


def test_integers_are_left_alone(build, rewrite):
    text = "g (int64[2] x) => (int64[2] y) { a = Mul(x, k) y = Mul(a, k) }"
    assert rewrite(build(text, k=np.array([3])), MergeLinear()).count == 0


def test_transposes_of_matrices(build, rewrite):
    text = """
    g (float[4,3] x, float[5,4] z) => (float[3,5] y) {
      a = Transpose(x)
      b = Transpose<perm=[1,0]>(z)
      y = MatMul(a, b)
    }"""
    r = rewrite(build(text), MergeLinear())
    assert r.ops == ["Gemm"]
    text = """
    g (float[4,3] x, float[4,5] z) => (float[3,5] y) {
      a = Transpose(x)
      t = Gemm<transB=1>(a, w)
      y = MatMul(t, z)
    }"""
    assert rewrite(build(text, w=numbers(0, 4, 4)), MergeLinear()).ops == ["Gemm", "MatMul"]
