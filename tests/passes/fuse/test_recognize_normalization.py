from __future__ import annotations

import re

import numpy as np
import pytest

from effc.passes.fuse.recognize_normalization import RecognizeNormalization

SCALARS = {"two": 2.0, "half": 0.5, "minus": -0.5, "one": 1.0, "eps": 1e-5}


def numbers(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def model(build, body: str, shape: str = "2,3,8", opset: int = 23, **arrays):
    words = re.findall(r"\w+", body)
    arrays |= {n: np.float32(v) for n, v in SCALARS.items() if n in words}
    arrays.setdefault("axes", np.array([-1]))
    if "axes" not in words:
        del arrays["axes"]
    return build(f"g (float[{shape}] x) => (float[{shape}] y) {{ {body} }}", opset=opset, **arrays)


CENTRE = "m = ReduceMean(x, axes) d = Sub(x, m)"
SPELLINGS = [
    f"{CENTRE} q = Pow(d, two) v = ReduceMean(q, axes) a = Add(v, eps) s = Sqrt(a) n = Div(d, s)",
    f"{CENTRE} q = Mul(d, d) v = ReduceMean(q, axes) a = Add(eps, v) s = Sqrt(a) n = Div(d, s)",
    f"{CENTRE} q = Mul(d, d) v = ReduceMean(q, axes) a = Add(v, eps) s = Pow(a, half) n = Div(d, s)",
    f"{CENTRE} q = Mul(d, d) v = ReduceMean(q, axes) a = Add(v, eps) s = Pow(a, minus) n = Mul(d, s)",
    f"{CENTRE} q = Mul(d, d) v = ReduceMean(q, axes) a = Add(v, eps) s = Sqrt(a) r = Reciprocal(s)"
    " n = Mul(r, d)",
    f"{CENTRE} q = Mul(d, d) v = ReduceMean(q, axes) a = Add(v, eps) s = Sqrt(a) r = Div(one, s)"
    " n = Mul(d, r)",
    f"{CENTRE} e = Sub(x, m) q = Pow(e, two) v = ReduceMean(q, axes) a = Add(v, eps) s = Sqrt(a)"
    " n = Div(d, s)",
]


@pytest.mark.parametrize("body", SPELLINGS)
def test_layer_norm(build, rewrite, body):
    affine = "p = Mul(n, g) y = Add(p, b)"
    m = model(build, f"{body} {affine}", g=numbers(1, 8), b=numbers(2, 8))
    r = rewrite(m, RecognizeNormalization())
    assert r.ops == ["LayerNormalization"]
    assert rewrite(model(build, body.replace("n = ", "y = ")), RecognizeNormalization()).ops == [
        "LayerNormalization"
    ]


def test_axes_as_an_attribute(build, rewrite):
    body = SPELLINGS[0].replace("(x, axes)", "<axes=[-1]>(x)").replace("(q, axes)", "<axes=[2]>(q)")
    r = rewrite(model(build, body.replace("n = ", "y = "), opset=17), RecognizeNormalization())
    assert r.ops == ["LayerNormalization"]


def test_over_two_axes(build, rewrite):
    body = f"{SPELLINGS[1]} p = Mul(g, n) y = Add(p, b)"
    arrays = {"axes": np.array([1, 2]), "g": numbers(1, 3, 8), "b": numbers(2, 8)}
    # rank 3: the last two axes
    r = rewrite(model(build, body, "2,3,8", **arrays), RecognizeNormalization())
    assert (
        r.ops == ["LayerNormalization"]
        and r.node("LayerNormalization").attributes["axis"].value == -2
    )


def test_instance_norm(build, rewrite):
    body = f"{SPELLINGS[1]} p = Mul(g, n) y = Add(p, b)"
    arrays = {"axes": np.array([2, 3]), "g": numbers(1, 4, 1, 1), "b": numbers(2, 1, 4, 1, 1)}
    r = rewrite(model(build, body, "2,4,5,6", **arrays), RecognizeNormalization())
    assert r.ops == ["InstanceNormalization"]


RMS = "q = Pow(x, two) v = ReduceMean(q, axes) a = Add(v, eps) s = Sqrt(a)"


@pytest.mark.parametrize("tail", ["n = Div(x, s)", "r = Reciprocal(s) n = Mul(x, r)"])
def test_rms_norm(build, rewrite, tail):
    m = model(build, f"{RMS} {tail} y = Mul(g, n)", g=numbers(1, 8))
    assert rewrite(m, RecognizeNormalization()).ops == ["RMSNormalization"]
    m = model(build, f"{RMS} {tail} y = Mul(g, n)", g=numbers(1, 8), opset=20)
    assert rewrite(m, RecognizeNormalization()).count == 0


@pytest.mark.parametrize(
    "body",
    [
        SPELLINGS[0].replace("n = Div(d, s)", "y = Div(x, s)"),  # not centred above
        SPELLINGS[0].replace("(q, axes)", "(q, other)").replace("n = ", "y = "),
        SPELLINGS[0].replace("n = Div(d, s)", "n = Div(d, s) y = Add(n, q)"),
        SPELLINGS[0].replace("(x, axes)", "<keepdims=0>(x, axes)").replace("n = ", "y = "),
    ],
)
def test_declines(build, rewrite, body):
    arrays = {"other": np.array([1])} if "other" in body else {}
    shape = "8,8,8" if "keepdims" in body else "2,3,8"
    m = model(build, body, shape, **arrays)
    assert "LayerNormalization" not in rewrite(m, RecognizeNormalization()).ops


def test_declines_channels_of_pictures(build, rewrite):
    m = model(build, SPELLINGS[0].replace("n = ", "y = "), "2,4,5,6", axes=np.array([1]))
    assert rewrite(m, RecognizeNormalization()).count == 0


def test_affine_behind_a_norm(build, rewrite):
    body = "n = LayerNormalization(x, g, b) p = Mul(n, s) y = Add(t, p)"
    arrays = {k: numbers(i, 8) for i, k in enumerate("gbst")}
    r = rewrite(model(build, body, **arrays), RecognizeNormalization())
    assert r.ops == ["LayerNormalization"] and r.count == 2
    arrays["s"] = numbers(9, 3, 1)  # along the tokens
    assert rewrite(model(build, body, **arrays), RecognizeNormalization()).count == 0


def test_group_norm(build, rewrite):
    body = """
      a = Reshape(x, into) n = InstanceNormalization(a, one2, zero2) r = Reshape(n, back)
      p = Mul(r, g) y = Add(p, b)
    """
    arrays = {
        "into": np.array([0, 2, -1]), "back": np.array([2, 6, 4, 5]), "one2": np.ones(2, np.float32),
        "zero2": np.zeros(2, np.float32), "g": numbers(1, 6, 1, 1), "b": numbers(2, 6, 1, 1),
    }  # fmt: skip
    r = rewrite(model(build, body, "2,6,4,5", **arrays), RecognizeNormalization())
    assert r.ops == ["GroupNormalization"]
    m = model(build, body, "2,6,4,5", opset=20, **arrays)
    assert "GroupNormalization" not in rewrite(m, RecognizeNormalization()).ops


def test_group_norm_of_another_view(build, rewrite):
    text = """
    g (float[2,24,5] x) => (float[2,6,4,5] y) {
      a = Reshape(x, into) n = InstanceNormalization(a, one2, zero2) r = Reshape(n, back)
      y = Mul(r, g)
    }"""
    arrays = {
        "into": np.array([0, 2, -1]), "back": np.array([2, 6, 4, 5]), "one2": np.ones(2, np.float32),
        "zero2": np.zeros(2, np.float32), "g": numbers(1, 6, 1, 1),
    }  # fmt: skip
    r = rewrite(build(text, **arrays), RecognizeNormalization())
    assert r.ops == ["Reshape", "GroupNormalization"]
