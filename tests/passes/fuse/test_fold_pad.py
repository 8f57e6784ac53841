from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from effc.passes.fuse.fold_pad import FoldPad

HYPOTHESIS = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def model(build, body: str, pads: list[int], value: float | None = 0.0, **arrays):
    if value is not None:
        arrays["v"] = np.float32(value)
    text = f"g (float[1,4,6,7] x) => (float[N,C,H,W] y) {{ {body} }}"
    return build(text, p=np.array(pads), **arrays)


def kernel(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(3, 4, 3, 3)).astype(np.float32)


TF_SAME = [0, 0, 0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    "attributes", ["", "<pads=[1,0,0,1]>", '<auto_pad="VALID">', "<strides=[2,2]>"]
)
@pytest.mark.parametrize("value", [None, 0.0])
def test_into_conv(build, rewrite, attributes, value):
    v = ", v" if value is not None else ""
    body = f"a = Pad(x, p{v}) y = Conv{attributes}(a, w)"
    r = rewrite(model(build, body, TF_SAME, value, w=kernel()), FoldPad())
    assert r.ops == ["Conv"]


def test_with_axes(build, rewrite):
    body = "a = Pad(x, p, v, axes) y = Conv(a, w)"
    r = rewrite(model(build, body, [1, 0, 2, 1], w=kernel(), axes=np.array([-1, 2])), FoldPad())
    assert r.ops == ["Conv"]
    assert list(r.node("Conv").attributes["pads"].value) == [0, 1, 1, 2]


@pytest.mark.parametrize(
    "body, pads, value",
    [
        ("a = Pad(x, p, v) y = Conv(a, w)", TF_SAME, 1.0),
        ('a = Pad<mode="reflect">(x, p) y = Conv(a, w)', TF_SAME, None),
        ("a = Pad(x, p, v) y = Conv(a, w)", [0, 0, 0, 0, 0, 0, 1, -1], 0.0),
        ('a = Pad(x, p, v) y = Conv<auto_pad="SAME_UPPER">(a, w)', TF_SAME, 0.0),
        ("a = Pad(x, p, v) y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(a)", TF_SAME, 0.0),
        ("a = Pad(x, p, v) y = AveragePool<kernel_shape=[2,2], ceil_mode=1>(a)", TF_SAME, 0.0),
        ("a = Pad(x, p, v) y = MaxPool<kernel_shape=[3,3]>(a)", TF_SAME, 0.0),
        ("a = Pad(x, p, v) y = MaxPool<kernel_shape=[1,1]>(a)", TF_SAME, -np.inf),
        ("a = Pad(x, p, v) b = Relu(a) y = Add(a, b)", TF_SAME, 0.0),
    ],
)
def test_declines(build, rewrite, body, pads, value):
    arrays = {"w": kernel()} if "w)" in body else {}
    assert rewrite(model(build, body, pads, value, **arrays), FoldPad()).count == 0


def test_declines_padded_channels(build, rewrite):
    w = np.random.default_rng(0).normal(size=(3, 5, 3, 3)).astype(np.float32)
    m = model(build, "a = Pad(x, p, v) y = Conv(a, w)", [0, 1, 0, 0, 0, 0, 0, 0], w=w)
    assert rewrite(m, FoldPad()).count == 0


@pytest.mark.parametrize(
    "body, value",
    [
        ("a = Pad(x, p, v) y = AveragePool<kernel_shape=[3,3]>(a)", 0.0),
        (
            "a = Pad(x, p, v) y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(a)",
            0.0,
        ),
        ("a = Pad(x, p, v) y = MaxPool<kernel_shape=[3,3], strides=[2,2]>(a)", -np.inf),
        (
            "a = Pad(x, p, v) y = MaxPool<kernel_shape=[3,3], pads=[0,0,1,1]>(a)",
            np.finfo(np.float32).min,
        ),
        ("r = Relu(x) a = Pad(r, p, v) y = MaxPool<kernel_shape=[3,3], strides=[2,2]>(a)", 0.0),
    ],
)
def test_into_pools(build, rewrite, body, value):
    assert "Pad" not in rewrite(model(build, body, TF_SAME, value), FoldPad()).ops


def test_merges_pads(build, rewrite):
    body = "a = Pad(x, p, v) b = Pad(a, q, v) y = Relu(b)"
    r = rewrite(model(build, body, TF_SAME, 2.0, q=np.array([0, 1, 2, 0, 0, 0, 0, 0])), FoldPad())
    assert r.ops == ["Pad", "Relu"]


@HYPOTHESIS
@given(
    op=st.sampled_from(["Conv", "AveragePool", "MaxPool"]),
    relu=st.booleans(),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    own=st.tuples(*[st.integers(0, 1)] * 4),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    include=st.integers(0, 1),
    ceil=st.integers(0, 1),
    value=st.sampled_from([0.0, -np.inf]),
)
def test_any_window(build, rewrite, op, relu, pads, own, strides, include, ceil, value):
    if op != "MaxPool":
        value = 0.0
    common = f"pads={list(own)}, strides={list(strides)}"
    pool = f"kernel_shape=[3,3], {common}, ceil_mode={ceil}"
    window = {
        "Conv": f"Conv<{common}>(a, w)",
        "AveragePool": f"AveragePool<{pool}, count_include_pad={include}>(a)",
        "MaxPool": f"MaxPool<{pool}>(a)",
    }[op]
    body = f"{'r = Relu(x)' if relu else 'r = Neg(x)'} a = Pad(r, p, v) y = {window}"
    full = [0, 0, *pads[:2], 0, 0, *pads[2:]]
    arrays = {"w": kernel()} if op == "Conv" else {}
    rewrite(model(build, body, full, value, **arrays), FoldPad())
