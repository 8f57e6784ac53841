from __future__ import annotations

import re

import numpy as np
import pytest

from effc.passes.fuse.recognize_activations import RecognizeActivations

K = {
    "half": 0.5, "one": 1.0, "two": 2.0, "three": 3.0, "six": 6.0, "sixth": 1 / 6, "zero": 0.0,
    "sqrt2": 2**0.5, "rsqrt2": 0.5**0.5, "c": (2 / np.pi) ** 0.5, "k": 0.044715, "tenth": 0.1,
    "quick": 1.702,
}  # fmt: skip


def model(build, body: str, dtype: str = "float", opset: int = 23):
    kind = {"float": np.float32, "float16": np.float16}[dtype]
    words = re.findall(r"\w+", body)
    used = {n: np.array(v, kind) for n, v in K.items() if n in words}
    return build(f"g ({dtype}[2,3,5] x) => ({dtype}[2,3,5] y) {{ {body} }}", opset=opset, **used)


GELU = [
    "a = Div(x, sqrt2) e = Erf(a) p = Add(e, one) m = Mul(x, p) y = Mul(m, half)",
    "a = Mul(x, rsqrt2) e = Erf(a) p = Add(one, e) m = Mul(x, half) y = Mul(m, p)",
    "a = Div(x, sqrt2) e = Erf(a) p = Add(e, one) h = Mul(p, half) y = Mul(h, x)",
    "a = Mul(rsqrt2, x) e = Erf(a) h = Mul(e, half) p = Add(h, half) y = Mul(x, p)",
    "a = Div(x, sqrt2) e = Erf(a) p = Add(e, one) m = Mul(x, p) y = Div(m, two)",
    "h = Mul(half, x) a = Div(x, sqrt2) e = Erf(a) p = Add(e, one) y = Mul(p, h)",
]
TANH = "t = Tanh(u) p = Add(t, one) h = Mul(x, half) y = Mul(h, p)"
GELU_TANH = [
    f"q = Pow(x, three) m = Mul(k, q) s = Add(x, m) u = Mul(s, c) {TANH}",
    f"q = Mul(x, x) r = Mul(q, x) m = Mul(r, k) s = Add(m, x) u = Mul(c, s) {TANH}",
    f"q = Mul(x, x) m = Mul(q, k) s = Add(m, one) r = Mul(x, s) u = Mul(r, c) {TANH}",
    f"q = Pow(x, two) m = Mul(q, k) s = Add(m, one) v = Mul(x, c) u = Mul(v, s) {TANH}",
    "q = Mul(x, x) r = Mul(q, x) m = Mul(k, r) s = Add(m, x) u = Mul(c, s) t = Tanh(u)"
    " p = Add(one, t) h = Mul(p, half) y = Mul(x, h)",
]


@pytest.mark.parametrize("dtype", ["float", "float16"])
@pytest.mark.parametrize("body", GELU)
def test_gelu(build, rewrite, body, dtype):
    assert rewrite(model(build, body, dtype), RecognizeActivations()).ops == ["Gelu"]


@pytest.mark.parametrize("body", GELU_TANH)
def test_gelu_by_tanh(build, rewrite, body):
    r = rewrite(model(build, body), RecognizeActivations())
    assert r.ops == ["Gelu"] and r.node("Gelu").attributes["approximate"].value == "tanh"


def test_gelu_declines(build, rewrite):
    other = GELU[0].replace("sqrt2", "two")
    assert "Gelu" not in rewrite(model(build, other), RecognizeActivations()).ops
    old = rewrite(model(build, GELU[0], opset=17), RecognizeActivations())
    assert "Gelu" not in old.ops
    read = GELU[0] + " z = Neg(e)"
    m = build(
        f"g (float[2,3] x) => (float[2,3] y, float[2,3] z) {{ {read} }}",
        **{n: np.float32(K[n]) for n in ("sqrt2", "one", "half")},
    )
    assert "Gelu" not in rewrite(m, RecognizeActivations()).ops


@pytest.mark.parametrize(
    "body, op",
    [
        ("a = Add(x, three) b = Clip(a, zero, six) y = Div(b, six)", "HardSigmoid"),
        ("a = Add(three, x) b = Relu(a) d = Min(b, six) y = Mul(d, sixth)", "HardSigmoid"),
        ("a = Mul(x, sixth) b = Add(a, half) y = Clip(b, zero, one)", "HardSigmoid"),
        ("a = Add(x, three) b = Clip(a, zero, six) d = Div(b, six) y = Mul(x, d)", "HardSwish"),
        ("a = Add(x, three) b = Clip(a, zero, six) d = Mul(x, b) y = Div(d, six)", "HardSwish"),
        ("a = Add(x, three) b = Clip(a, zero, six) d = Mul(x, sixth) y = Mul(d, b)", "HardSwish"),
        ("a = HardSigmoid<alpha=0.16666667, beta=0.5>(x) y = Mul(a, x)", "HardSwish"),
        ("a = Neg(x) b = Exp(a) d = Add(b, one) y = Div(one, d)", "Sigmoid"),
        ("a = Neg(x) b = Exp(a) d = Add(one, b) y = Reciprocal(d)", "Sigmoid"),
        ("a = Div(x, two) b = Tanh(a) d = Mul(b, half) y = Add(d, half)", "Sigmoid"),
        ("a = Mul(x, half) b = Tanh(a) d = Add(b, one) y = Mul(half, d)", "Sigmoid"),
        ("a = Exp(x) b = Add(a, one) y = Log(b)", "Softplus"),
        ("a = Softplus(x) b = Tanh(a) y = Mul(b, x)", "Mish"),
        ("e = Exp(x) p = Add(one, e) a = Log(p) b = Tanh(a) y = Mul(x, b)", "Mish"),
        ("a = Mul(x, tenth) y = Max(x, a)", "LeakyRelu"),
        ("p = Greater(x, zero) a = Mul(tenth, x) y = Where(p, x, a)", "LeakyRelu"),
        ("p = Less(x, zero) a = Mul(x, tenth) y = Where(p, a, x)", "LeakyRelu"),
        ("y = Max(x, zero)", "Relu"),
        ("y = Clip(x, zero)", "Relu"),
        ("a = Relu(x) y = Relu(a)", "Relu"),
        ("a = Relu(x) y = Min(six, a)", "Clip"),
        ("a = Max(x, zero) y = Min(a, six)", "Clip"),
        ("a = Min(x, six) y = Max(a, zero)", "Clip"),
        ("a = Clip(x, half, six) y = Clip(a, zero, two)", "Clip"),
    ],
)
def test_one_operator(build, rewrite, body, op):
    assert rewrite(model(build, body), RecognizeActivations()).ops == [op]


@pytest.mark.parametrize(
    "body",
    [
        "a = Sigmoid(x) y = Mul(a, x)",
        "a = Neg(x) b = Exp(a) d = Add(b, one) y = Div(x, d)",
        "a = Sigmoid(x) y = Mul(x, a)",
    ],
)
def test_silu_has_one_spelling(build, rewrite, body):
    r = rewrite(model(build, body), RecognizeActivations())
    assert r.ops == ["Sigmoid", "Mul"]
    mul = r.node("Mul")
    assert [v.name for v in mul.inputs][0] == "x"


def test_quick_gelu_keeps_its_scale(build, rewrite):
    r = rewrite(
        model(build, "a = Mul(quick, x) b = Sigmoid(a) y = Mul(b, x)"), RecognizeActivations()
    )
    assert r.ops == ["Mul", "Sigmoid", "Mul"]
    assert r.model.graph[-1].inputs[0].name == "x"


def test_swish_from_opset_24(build):
    m = model(build, "a = Sigmoid(x) y = Mul(a, x)", opset=24)
    assert RecognizeActivations().run(m, None) == 1
    assert [n.op_type for n in m.graph] == ["Swish"]


@pytest.mark.parametrize(
    "body",
    [
        "a = Add(x, three) b = Clip(a, zero, six) y = Div(b, two)",
        "a = Softplus(x) b = Tanh(a) d = Relu(x) y = Mul(b, d)",
        "y = Clip(x, zero, one)",
        "a = Add(x, two) b = Clip(a, half, six) y = Div(b, six)",
        "y = Div(one, x)",
    ],
)
def test_declines(build, rewrite, body):
    assert rewrite(model(build, body), RecognizeActivations()).count == 0


def test_integers_are_left_alone(build, rewrite):
    m = build(
        "g (int64[3] x) => (int64[3] y) { a = Max(x, l) y = Min(a, h) }",
        l=np.array(0),
        h=np.array(6),
    )
    assert rewrite(m, RecognizeActivations()).count == 0
