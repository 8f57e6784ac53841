from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from effc.passes.fuse.fold_bias import FoldBias

HYPOTHESIS = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def numbers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return (rng.uniform(0.5, 2, shape) * rng.choice([-1, 1], shape)).astype(np.float32)


CONV = """
g (float[1,4,6,6] x) => (float[1,6,6,6] y) {{
  c = Conv<pads=[1,1,1,1]>(x, w)
  y = {op}
}}"""


@pytest.mark.parametrize(
    "op",
    ["Add(c, k)", "Add(k, c)", "Sub(c, k)", "Sub(k, c)", "Mul(c, k)", "Mul(k, c)", "Div(c, k)"],
)
@pytest.mark.parametrize("shape", [(), (1,), (6, 1, 1), (1, 6, 1, 1), (1, 1, 1, 1)])
def test_behind_a_conv(build, rewrite, rng, op, shape):
    model = build(CONV.format(op=op), w=numbers(rng, 6, 4, 3, 3), k=numbers(rng, *shape))
    assert rewrite(model, FoldBias()).ops == ["Conv"]


def test_neg_behind_a_conv(build, rewrite, rng):
    assert rewrite(build(CONV.format(op="Neg(c)"), w=numbers(rng, 6, 4, 3, 3)), FoldBias()).ops == [
        "Conv"
    ]


@pytest.mark.parametrize(
    "op, shape",
    [
        ("Add(c, k)", (6,)),  # along the width, which is 6 too
        ("Add(c, k)", (1, 6, 6, 6)),
        ("Mul(c, k)", (6, 1)),
        ("Div(k, c)", ()),
    ],
)
def test_declines_other_axes(build, rewrite, rng, op, shape):
    model = build(CONV.format(op=op), w=numbers(rng, 6, 4, 3, 3), k=numbers(rng, *shape))
    assert rewrite(model, FoldBias()).count == 0


def test_declines_what_broadcasts_the_value(build, rewrite, rng):
    text = """
    g (float[1,4,6,6] x) => (float[5,6,4,4] y, float[1,6,4,4] z) {
      c = Conv(x, w)
      y = Add(c, k)
      d = Conv(x, v)
      z = Mul(d, l)
    }"""
    arrays = {"w": numbers(rng, 6, 4, 3, 3), "k": numbers(rng, 5, 6, 1, 1)}
    arrays |= {"v": numbers(rng, 1, 4, 3, 3), "l": numbers(rng, 6, 1, 1)}
    assert rewrite(build(text, **arrays), FoldBias()).count == 0


def test_declines_division_by_zero_and_other_readers(build, rewrite, rng):
    k = numbers(rng, 6, 1, 1)
    k[2] = 0
    w = numbers(rng, 6, 4, 3, 3)
    assert rewrite(build(CONV.format(op="Div(c, k)"), w=w, k=k), FoldBias()).count == 0
    text = CONV.format(op="Add(c, k)").replace("[1,6,6,6] y", "[1,6,6,6] y, float[1,6,6,6] c")
    assert rewrite(build(text, w=w, k=k), FoldBias()).count == 0


@pytest.mark.parametrize("groups", [1, 2])
def test_chain_behind_a_conv_transpose(build, rewrite, rng, groups):
    text = f"""
    g (float[1,4,5,5] x) => (float[1,6,7,7] y) {{
      c = ConvTranspose<group={groups}>(x, w, b)
      d = Mul(c, k)
      e = Sub(l, d)
      y = Div(e, k)
    }}"""
    arrays = {"w": numbers(rng, 4, 6 // groups, 3, 3), "b": numbers(rng, 6)}
    arrays |= {"k": numbers(rng, 6, 1, 1), "l": numbers(rng, 1)}
    assert rewrite(build(text, **arrays), FoldBias()).ops == ["ConvTranspose"]


def test_matmul_on_matrices_becomes_gemm(build, rewrite, rng):
    text = """
    g (float[3,4] x) => (float[3,6] y) {
      c = MatMul(x, w)
      d = Add(b, c)
      y = Mul(d, k)
    }"""
    arrays = {"w": numbers(rng, 4, 6), "b": numbers(rng, 6), "k": numbers(rng, 1, 6)}
    assert rewrite(build(text, **arrays), FoldBias()).ops == ["Gemm"]


def test_matmul_of_two_computed_matrices(build, rewrite, rng):
    text = """
    g (float[3,4] x, float[4,6] w) => (float[3,6] y) {
      c = MatMul(x, w)
      y = Add(c, b)
    }"""
    assert rewrite(build(text, b=numbers(rng, 6)), FoldBias()).ops == ["Gemm"]
    assert rewrite(build(text, b=numbers(rng, 3, 1)), FoldBias()).ops == ["MatMul", "Add"]


def test_matmul_of_halves_and_of_integers(build, rewrite, rng):
    text = "g (@[3,4] x) => (@[3,6] y) { c = MatMul(x, w) y = Add(c, b) }"
    half = {"w": numbers(rng, 4, 6).astype(np.float16), "b": numbers(rng, 6).astype(np.float16)}
    assert rewrite(build(text.replace("@", "float16"), **half), FoldBias()).ops == ["Gemm"]
    whole = {"w": np.arange(24, dtype=np.int32).reshape(4, 6), "b": np.arange(6, dtype=np.int32)}
    assert rewrite(build(text.replace("@", "int32"), **whole), FoldBias()).count == 0


def test_matmul_of_higher_rank_keeps_its_add(build, rewrite, rng):
    text = """
    g (float[2,3,4] x) => (float[2,3,6] y) {
      c = MatMul(x, w)
      y = Add(c, b)
    }"""
    model = build(text, w=numbers(rng, 4, 6), b=numbers(rng, 6))
    r = rewrite(model, FoldBias())
    assert r.ops == ["MatMul", "Add"] and r.count == 0


def test_scale_and_shift_behind_a_biased_matmul(build, rewrite, rng):
    text = """
    g (float[2,3,4] x) => (float[2,6,3] y) {
      c = MatMul(x, w)
      d = Add(c, b)
      e = Transpose<perm=[0,2,1]>(d)
      f = Mul(e, gamma)
      y = Add(f, t)
    }"""
    arrays = {"w": numbers(rng, 4, 6), "b": numbers(rng, 6), "gamma": numbers(rng, 1, 6, 1)}
    r = rewrite(build(text, **arrays, t=numbers(rng, 6, 1)), FoldBias())
    assert r.ops == ["MatMul", "Add", "Transpose"]


def test_attention_scale_goes_into_the_query_projection(build, rewrite, rng):
    text = """
    g (float[1,3,4] x) => (float[1,2,3,3] y) {
      c = MatMul(x, w)
      d = Add(c, b)
      e = Reshape(d, s)
      q = Transpose<perm=[0,2,1,3]>(e)
      p = Mul(q, half)
      kt = Transpose<perm=[0,1,3,2]>(p)
      y = MatMul(p, kt)
    }"""
    arrays = {"w": numbers(rng, 4, 8), "b": numbers(rng, 8), "s": np.array([1, 3, 2, 4])}
    r = rewrite(build(text, **arrays, half=np.float32(0.5)), FoldBias())
    assert "Mul" not in r.ops


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("pad", [0, 1])
def test_normalisation_before_a_conv(build, rewrite, rng, groups, pad):
    text = f"""
    g (float[1,4,6,6] x) => (float[N,8,H,W] y) {{
      c = Sub(x, mean)
      d = Div(c, std)
      y = Conv<pads=[{pad},{pad},{pad},{pad}], group={groups}>(d, w, b)
    }}"""
    arrays = {"w": numbers(rng, 8, 4 // groups, 3, 3), "b": numbers(rng, 8)}
    arrays |= {"mean": numbers(rng, 1, 4, 1, 1), "std": numbers(rng, 4, 1, 1)}
    # padding is 0 after the subtraction, not before it
    assert rewrite(build(text, **arrays), FoldBias()).ops == (["Sub", "Conv"] if pad else ["Conv"])


def test_before_a_matmul(build, rewrite, rng):
    text = """
    g (float[2,3,4] x) => (float[2,3,6] y) {
      c = Mul(x, k)
      d = MatMul(c, w)
      y = Relu(d)
    }"""
    model = build(text, w=numbers(rng, 4, 6), k=numbers(rng, 4))
    assert rewrite(model, FoldBias()).ops == ["MatMul", "Relu"]
    model = build(text, w=numbers(rng, 4, 6), k=numbers(rng, 3, 1))
    assert rewrite(model, FoldBias()).count == 0


def test_declines_a_constant_that_makes_the_channels(build, rewrite, rng):
    text = """
    g (float[2,1,5,5] x, float[3,1] z) => (float[2,6,5,5] y, float[3,2] o) {
      c = Mul(x, k)
      y = Conv(c, w)
      d = Mul(l, z)
      o = MatMul(d, v)
    }"""
    arrays = {"k": numbers(rng, 4, 1, 1), "w": numbers(rng, 6, 4, 1, 1)}
    arrays |= {"l": numbers(rng, 4), "v": numbers(rng, 4, 2)}
    assert rewrite(build(text, **arrays), FoldBias()).count == 0


@pytest.mark.parametrize(
    "mean, shape",
    [
        ("m = GlobalAveragePool(c) f = Flatten(m)", "2,4,5,5"),
        ("m = ReduceMean(c, axes) f = Flatten(m)", "2,4,5,5"),
        ("f = ReduceMean<keepdims=0>(c, axes)", "2,4,5,5"),
        ("t = Transpose<perm=[0,2,3,1]>(c) f = ReduceMean<keepdims=0>(t, last)", "2,4,5,5"),
    ],
)
def test_through_a_mean_into_the_classifier(build, rewrite, rng, mean, shape):
    text = f"""
    g (float[{shape}] x) => (float[2,3] y) {{
      a = Relu(x)
      b = Mul(a, k)
      c = Add(b, t0)
      {mean}
      y = Gemm<transB=1>(f, w, b0)
    }}"""
    arrays = {"k": numbers(rng, 4, 1, 1), "t0": numbers(rng, 4, 1, 1), "w": numbers(rng, 3, 4)}
    arrays |= {"b0": numbers(rng, 3)}
    arrays |= {"axes": np.array([2, 3])} if "axes" in mean else {}
    arrays |= {"last": np.array([1, 2])} if "last" in mean else {}
    r = rewrite(build(text, **arrays), FoldBias())
    assert "Mul" not in r.ops and "Add" not in r.ops


def test_shared_weights_and_constants(build, rewrite, rng):
    text = """
    g (float[1,4,6,6] x) => (float[1,4,6,6] y, float[1,4,6,6] z) {
      a = Conv<pads=[1,1,1,1]>(x, w, b)
      y = Mul(a, k)
      c = Conv<pads=[1,1,1,1]>(x, w, b)
      z = Add(c, k)
    }"""
    arrays = {"w": numbers(rng, 4, 4, 3, 3), "b": numbers(rng, 4), "k": numbers(rng, 4, 1, 1)}
    assert rewrite(build(text, **arrays), FoldBias()).ops == ["Conv", "Conv"]


@HYPOTHESIS
@given(
    chain=st.lists(
        st.tuples(st.sampled_from(["Add", "Sub", "Mul", "Div"]), st.booleans(), st.booleans()),
        min_size=1,
        max_size=4,
    ),
    kind=st.sampled_from(["conv", "depthwise", "gemm", "matmul2", "matmul3"]),
    before=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_chains(build, rewrite, chain, kind, before, seed):
    rng = np.random.default_rng(seed)
    shape, linear, w, channel = {
        "conv": ("1,4,5,5", "Conv(@, w)", (4, 4, 2, 2), (4, 1, 1)),
        "depthwise": ("1,4,5,5", "Conv<group=4, pads=[1,0,0,1]>(@, w)", (4, 1, 2, 2), (4, 1, 1)),
        "gemm": ("3,4", "Gemm<transB=1, alpha=0.5>(@, w)", (4, 4), (4,)),
        "matmul2": ("3,4", "MatMul(@, w)", (4, 4), (4,)),
        "matmul3": ("2,3,4", "MatMul(@, w)", (4, 4), (4,)),
    }[kind]
    arrays = {"w": numbers(rng, *w)}
    lines, last = [], "x"
    if not before:
        lines.append(f"v = {linear.replace('@', 'x')}")
        last = "v"
    for i, (op, swap, scalar) in enumerate(chain):
        arrays[f"k{i}"] = numbers(rng, *(() if scalar else channel))
        a, b = (f"k{i}", last) if swap and op != "Div" else (last, f"k{i}")
        lines.append(f"t{i} = {op}({a}, {b})")
        last = f"t{i}"
    if before:
        lines.append(f"y = {linear.replace('@', last)}")
    else:
        lines.append(f"y = Identity({last})")
    dims = ",".join("NABC"[: len(shape.split(","))])
    text = f"g (float[{shape}] x) => (float[{dims}] y) {{ {' '.join(lines)} }}"
    r = rewrite(build(text, **arrays), FoldBias())
    if kind in ("conv", "gemm", "matmul2") or (kind == "depthwise" and not before):
        assert [op for op in r.ops if op != "Identity"] in (["Conv"], ["Gemm"], ["MatMul"])


@pytest.mark.parametrize("op", ["Add(c, k)", "Sub(c, k)"])
def test_a_weight_stays_as_it_is_where_the_bias_moves(build, rewrite, rng, op):
    """Not read, not copied: it may be a gigabyte in a mapped file."""
    model = build(CONV.format(op=op), w=numbers(rng, 6, 4, 3, 3), k=numbers(rng, 6, 1, 1))
    before = model.graph.initializers["w"].const_value
    assert rewrite(model, FoldBias()).ops == ["Conv"]
    (conv,) = model.graph
    assert conv.inputs[1].const_value is before
