from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from effc.core.passinfra import PassContext
from effc.passes.fuse.fold_batch_norm import FoldBatchNorm

HYPOTHESIS = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def norm(rng: np.random.Generator, channels: int, dtype: type = np.float32) -> dict:
    return {
        "gamma": rng.uniform(-1.5, 1.5, channels).astype(dtype),
        "beta": rng.normal(size=channels).astype(dtype),
        "mean": rng.normal(size=channels).astype(dtype),
        "var": rng.uniform(0.2, 2, channels).astype(dtype),
    }


def weights(rng: np.random.Generator, *shape: int, dtype: type = np.float32) -> np.ndarray:
    return rng.normal(size=shape).astype(dtype)


AFTER = """
g (float[1,4,8,8] x) => (float[1,6,8,8] y) {
  c = Conv<pads=[1,1,1,1]>(x, conv_weight)
  y = BatchNormalization(c, gamma, beta, mean, var)
}"""


def test_conv_without_bias(build, rewrite, rng):
    r = rewrite(build(AFTER, conv_weight=weights(rng, 6, 4, 3, 3), **norm(rng, 6)), FoldBatchNorm())
    assert r.ops == ["Conv"] and r.count == 1
    assert len(r.model.graph.initializers) == 2  # conv_weight, overwritten, and the new bias
    assert "conv_weight" in r.model.graph.initializers


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_types_and_epsilon(build, rewrite, rng, dtype):
    kind = {np.float32: "float", np.float16: "float16"}[dtype]
    text = f"""
    g ({kind}[2,4,5,5] x) => ({kind}[2,6,3,3] y) {{
      c = Conv(x, w, b)
      y = BatchNormalization<epsilon=0.01>(c, gamma, beta, mean, var)
    }}"""
    model = build(
        text,
        w=weights(rng, 6, 4, 3, 3, dtype=dtype) * dtype(0.3),
        b=weights(rng, 6, dtype=dtype),
        **norm(rng, 6, dtype),
    )
    r = rewrite(model, FoldBatchNorm())
    assert r.ops == ["Conv"]
    assert r.model.graph.initializers["w"].dtype.numpy() == dtype


def test_double(build, rewrite, rng):
    text = """
    g (double[3,4] x) => (double[3,6] y) {
      c = Gemm(x, w)
      y = BatchNormalization(c, gamma, beta, mean, var)
    }"""
    numbers = norm(rng, 6, np.float64)
    r = rewrite(build(text, w=weights(rng, 4, 6, dtype=np.float64), **numbers), FoldBatchNorm())
    assert r.model.graph.initializers["w"].dtype.numpy() == np.float64


def test_bias_behind_expand_of_castlike(build, rewrite, rng):
    text = """
    g (float[1,4,8,8] x) => (float[1,6,6,6] y) {
      n = Shape<start=0, end=1>(w)
      zero = Constant<value_float=0.5>()
      like = CastLike(zero, x)
      bias = Expand(like, n)
      c = Conv(x, w, bias)
      y = BatchNormalization(c, gamma, beta, mean, var)
    }"""
    r = rewrite(build(text, w=weights(rng, 6, 4, 3, 3), **norm(rng, 6)), FoldBatchNorm())
    assert r.ops == ["Conv"]


def test_shared_weight_is_copied_and_names_do_not_collide(build, rewrite, rng):
    text = """
    g (float[1,4,8,8] x) => (float[1,4,8,8] y, float[1,4,8,8] z) {
      a = Conv<pads=[1,1,1,1]>(x, conv_weight, conv_weight_bias)
      a2 = BatchNormalization(a, gamma, beta, mean, var)
      b = Conv<pads=[1,1,1,1]>(a2, conv_weight)
      y = BatchNormalization(b, beta, gamma, mean, var)
      z = Conv<pads=[1,1,1,1]>(x, conv_weight, conv_weight_bias)
    }"""
    arrays = {"conv_weight": weights(rng, 4, 4, 3, 3), "conv_weight_bias": weights(rng, 4)}
    kept = {k: v.copy() for k, v in arrays.items()}
    r = rewrite(build(text, **arrays, **norm(rng, 4)), FoldBatchNorm())
    assert r.ops == ["Conv"] * 3
    z = r.model.graph.outputs[1].producer()
    np.testing.assert_array_equal(z.inputs[1].const_value.numpy(), kept["conv_weight"])
    np.testing.assert_array_equal(z.inputs[2].const_value.numpy(), kept["conv_weight_bias"])


def test_new_names_avoid_those_of_values(build, rewrite, rng):
    model = build(AFTER, conv_weight=weights(rng, 6, 4, 3, 3), **norm(rng, 6))
    conv = model.graph[0]
    conv.name = "conv"
    text_name = "conv.bias"
    conv.outputs[0].name = text_name  # what the new bias would be called
    r = rewrite(model, FoldBatchNorm())
    assert r.ops == ["Conv"]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_conv_transpose(build, rewrite, rng, groups):
    text = f"""
    g (float[1,4,5,5] x) => (float[1,8,11,11] y) {{
      c = ConvTranspose<strides=[2,2], group={groups}>(x, w, b)
      y = BatchNormalization(c, gamma, beta, mean, var)
    }}"""
    arrays = {"w": weights(rng, 4, 8 // groups, 3, 3), "b": weights(rng, 8)}
    assert rewrite(build(text, **arrays, **norm(rng, 8)), FoldBatchNorm()).ops == ["ConvTranspose"]


@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("bias", ["", ", b"])
def test_gemm(build, rewrite, rng, trans_b, bias):
    text = f"""
    g (float[3,4] x) => (float[3,6] y) {{
      c = Gemm<alpha=0.5, beta=2.0, transB={trans_b}>(x, w{bias})
      y = BatchNormalization(c, gamma, beta, mean, var)
    }}"""
    w = weights(rng, 6, 4) if trans_b else weights(rng, 4, 6)
    r = rewrite(
        build(text, w=w, **({"b": weights(rng, 6)} if bias else {}), **norm(rng, 6)),
        FoldBatchNorm(),
    )
    assert r.ops == ["Gemm"]


def test_matmul_becomes_gemm(build, rewrite, rng):
    text = """
    g (float[3,4] x) => (float[3,6] y) {
      c = MatMul(x, w)
      y = BatchNormalization(c, gamma, beta, mean, var)
    }"""
    assert rewrite(build(text, w=weights(rng, 4, 6), **norm(rng, 6)), FoldBatchNorm()).ops == [
        "Gemm"
    ]


@pytest.mark.parametrize("bias", [False, True])
def test_through_reshape_and_transpose(build, rewrite, rng, bias):
    add = "m = Add(p, b)" if bias else "m = Identity(p)"
    text = f"""
    g (float[2,5,4] x) => (float[2,6,5] y) {{
      p = MatMul(x, w)
      {add}
      t = Transpose<perm=[0,2,1]>(m)
      f = Reshape(t, s)
      n = BatchNormalization(f, gamma, beta, mean, var)
      y = Reshape(n, s2)
    }}"""
    arrays = {"w": weights(rng, 4, 6), "s": np.array([2, 6, 5, 1]), "s2": np.array([2, 6, 5])}
    if bias:
        arrays["b"] = weights(rng, 6)
    else:
        text = text.replace("m = Identity(p)\n", "").replace("(m)", "(p)")
    r = rewrite(build(text, **arrays, **norm(rng, 6)), FoldBatchNorm())
    assert r.ops == ["MatMul", "Add", "Transpose", "Reshape", "Reshape"]


def test_through_a_concat_of_channels(build, rewrite, rng):
    text = """
    g (float[1,4,8,8] x) => (float[1,7,8,8] y) {
      a = Conv<pads=[1,1,1,1]>(x, w)
      b = Conv(x, v)
      c = Concat<axis=1>(a, b)
      y = BatchNormalization(c, gamma, beta, mean, var)
    }"""
    arrays = {"w": weights(rng, 4, 4, 3, 3), "v": weights(rng, 3, 4, 1, 1)}
    r = rewrite(build(text, **arrays, **norm(rng, 7)), FoldBatchNorm())
    assert r.ops == ["Conv", "Conv", "Concat"]
    mixed = text.replace("Conv(x, v)", "Relu(x)").replace("[1,7", "[1,8")
    r = rewrite(build(mixed, w=arrays["w"], **norm(rng, 8)), FoldBatchNorm())
    assert r.count == 0


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_before_an_unpadded_conv(build, rewrite, rng, groups):
    text = f"""
    g (float[1,4,8,8] x) => (float[1,8,6,6] y) {{
      n = BatchNormalization(x, gamma, beta, mean, var)
      y = Conv<group={groups}>(n, w)
    }}"""
    r = rewrite(build(text, w=weights(rng, 8, 4 // groups, 3, 3), **norm(rng, 4)), FoldBatchNorm())
    assert r.ops == ["Conv"]


def test_before_a_gemm(build, rewrite, rng):
    text = """
    g (float[3,4] x) => (float[3,6] y) {
      n = BatchNormalization(x, gamma, beta, mean, var)
      y = Gemm<alpha=0.25, transB=1>(n, w, b)
    }"""
    r = rewrite(
        build(text, w=weights(rng, 6, 4), b=weights(rng, 6), **norm(rng, 4)), FoldBatchNorm()
    )
    assert r.ops == ["Gemm"]


def test_before_the_mean_and_the_classifier(build, rewrite, rng):
    text = """
    g (float[2,4,5,5] x) => (float[2,6] y) {
      a = Relu(x)
      n = BatchNormalization(a, gamma, beta, mean, var)
      m = GlobalAveragePool(n)
      f = Flatten(m)
      y = Gemm(f, w)
    }"""
    r = rewrite(build(text, w=weights(rng, 4, 6), **norm(rng, 4)), FoldBatchNorm())
    assert r.ops == ["Relu", "GlobalAveragePool", "Flatten", "Gemm"]


def test_before_a_padded_conv_only_a_pure_scale(build, rewrite, rng):
    text = """
    g (float[1,4,8,8] x) => (float[1,6,8,8] y) {
      n = BatchNormalization(x, gamma, beta, mean, var)
      y = Conv<pads=[1,1,1,1]>(n, w)
    }"""
    arrays = {"w": weights(rng, 6, 4, 3, 3)}
    assert rewrite(build(text, **arrays, **norm(rng, 4)), FoldBatchNorm()).count == 0
    centred = {**norm(rng, 4), "beta": np.zeros(4, np.float32), "mean": np.zeros(4, np.float32)}
    assert rewrite(build(text, **arrays, **centred), FoldBatchNorm()).ops == ["Conv"]


def test_declines_when_the_result_is_read_elsewhere(build, rewrite, rng):
    text = AFTER.replace("(float[1,6,8,8] y)", "(float[1,6,8,8] y, float[1,6,8,8] c)")
    r = rewrite(build(text, conv_weight=weights(rng, 6, 4, 3, 3), **norm(rng, 6)), FoldBatchNorm())
    assert r.count == 0 and r.ops == ["Conv", "BatchNormalization"]


def test_declines_training_mode(build, rewrite, rng):
    text = """
    g (float[1,4,8,8] x) => (float[1,6,6,6] y, float[6] m, float[6] v) {
      c = Conv(x, w)
      y, m, v = BatchNormalization<training_mode=1>(c, gamma, beta, mean, var)
    }"""
    assert (
        rewrite(build(text, w=weights(rng, 6, 4, 3, 3), **norm(rng, 6)), FoldBatchNorm()).count == 0
    )


def test_an_infinite_variance_is_a_scale_of_zero(build, rewrite, rng):
    numbers = norm(rng, 6)
    numbers["var"][2] = np.inf
    r = rewrite(build(AFTER, conv_weight=weights(rng, 6, 4, 3, 3), **numbers), FoldBatchNorm())
    assert r.ops == ["Conv"]


@pytest.mark.parametrize("bad", [-1.0, np.nan])
def test_declines_a_bad_variance(build, rng, bad):
    numbers = norm(rng, 6)
    model = build(AFTER, conv_weight=weights(rng, 6, 4, 3, 3), **numbers)
    numbers["var"][2] = bad  # behind the verifier's back, which refuses such a model
    model.graph.initializers["var"].const_value = ir.tensor(numbers["var"], name="var")
    assert FoldBatchNorm().run(model, PassContext()) == 0


def test_zero_variance_folds(build, rewrite, rng):
    numbers = norm(rng, 6)
    numbers["var"][:] = 0
    r = rewrite(build(AFTER, conv_weight=weights(rng, 6, 4, 3, 3), **numbers), FoldBatchNorm())
    assert r.ops == ["Conv"]


def test_declines_when_the_folded_weight_overflows_half(build, rewrite, rng):
    text = AFTER.replace("float[", "float16[")
    numbers = norm(rng, 6, np.float16)
    numbers["gamma"][:] = 60000
    numbers["var"][:] = 0.0001
    model = build(text, conv_weight=weights(rng, 6, 4, 3, 3, dtype=np.float16), **numbers)
    before = model.graph.initializers["conv_weight"].const_value.numpy().copy()
    assert FoldBatchNorm().run(model, PassContext()) == 0
    np.testing.assert_array_equal(
        model.graph.initializers["conv_weight"].const_value.numpy(), before
    )


def test_declines_computed_weights(build, rewrite, rng):
    text = """
    g (float[1,4,8,8] x, float[6,4,3,3] w) => (float[1,6,6,6] y) {
      c = Conv(x, w)
      y = BatchNormalization(c, gamma, beta, mean, var)
    }"""
    assert rewrite(build(text, **norm(rng, 6)), FoldBatchNorm()).count == 0


def test_inside_a_subgraph(build, rewrite, rng):
    text = """
    g (float[1,4,8,8] x, bool p) => (float[1,6,6,6] y) {
      y = If(p) <then_branch = t () => (float[1,6,6,6] a) {
        c = Conv(x, w)
        a = BatchNormalization(c, gamma, beta, mean, var)
      }, else_branch = e () => (float[1,6,6,6] b) { b = Conv(x, w) }>
    }"""
    r = rewrite(build(text, w=weights(rng, 6, 4, 3, 3), **norm(rng, 6)), FoldBatchNorm())
    assert r.count == 1


@HYPOTHESIS
@given(
    groups=st.sampled_from([1, 2, 4]),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    strides=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    before=st.booleans(),
    bias=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_conv(build, rewrite, groups, kernel, pads, strides, before, bias, seed):
    rng = np.random.default_rng(seed)
    conv = f"Conv<group={groups}, pads={list(pads)}, strides={list(strides)}>"
    b = ", b" if bias else ""
    if before:
        body = f"n = BatchNormalization(x, gamma, beta, mean, var) y = {conv}(n, w{b})"
    else:
        body = f"n = {conv}(x, w{b}) y = BatchNormalization(n, gamma, beta, mean, var)"
    text = f"g (float[1,4,6,7] x) => (float[N,8,H,W] y) {{ {body} }}"
    arrays = {"w": weights(rng, 8, 4 // groups, *kernel), **norm(rng, 4 if before else 8)}
    if bias:
        arrays["b"] = weights(rng, 8)
    r = rewrite(build(text, **arrays), FoldBatchNorm())
    assert r.count == (0 if before and any(pads) else 1)
