from __future__ import annotations

import re

import numpy as np
import pytest

from effc.passes.fuse.decompose_attention import DecomposeAttention
from effc.passes.fuse.fold_bias import FoldBias
from effc.passes.fuse.recognize_attention import RecognizeAttention

B, H, L, D = 2, 3, 5, 4
CORE = "t = Transpose<perm=[0,1,3,2]>(k) a = MatMul(q, t) s = Mul(a, scale) p = Softmax(s) y = MatMul(p, v)"


def numbers(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def model(build, body: str, keys: int = L, opset: int = 23, **arrays):
    if re.search(r"\bscale\b", body):
        arrays.setdefault("scale", np.float32(0.37))
    kv = f"float[{B},{H},{keys},{D}]"
    text = (
        f"g (float[{B},{H},{L},{D}] q, {kv} k, {kv} v) => (float[{B},{H},{L},{D}] y) {{ {body} }}"
    )
    return build(text, opset=opset, **arrays)


@pytest.mark.parametrize(
    "body",
    [
        CORE,
        CORE.replace("Mul(a, scale)", "Div(a, scale)"),
        CORE.replace("Mul(a, scale)", "Mul(scale, a)").replace("Softmax", "Softmax<axis=3>"),
        "r = Mul(q, scale) t = Transpose<perm=[0,1,3,2]>(k) u = Mul(t, scale) a = MatMul(r, u)"
        " p = Softmax(a) y = MatMul(p, v)",
        "t = Transpose<perm=[0,1,3,2]>(k) a = MatMul(q, t) p = Softmax(a) y = MatMul(p, v)",
        "f = Reshape(k, flat) t = Transpose<perm=[0,2,1]>(f) u = Reshape(t, back) a = MatMul(q, u)"
        " p = Softmax(a) y = MatMul(p, v)",
    ],
)
@pytest.mark.parametrize("keys", [L, 7])
def test_core(build, rewrite, body, keys):
    arrays = {}
    if "flat" in body:
        arrays = {"flat": np.array([B * H, keys, D]), "back": np.array([B, H, D, keys])}
    r = rewrite(model(build, body, keys, **arrays), RecognizeAttention())
    assert r.ops == ["Attention"]


@pytest.mark.parametrize("shape", [(L, 7), (1, 1, L, 7), (1, H, L, 7), (B, 1, L, 7), (H, L, 7)])
@pytest.mark.parametrize("swapped", [False, True])
def test_mask(build, rewrite, shape, swapped):
    add = "Add(mask, s)" if swapped else "Add(s, mask)"
    body = CORE.replace("Softmax(s)", "Softmax(m)").replace("p =", f"m = {add} p =")
    r = rewrite(model(build, body, 7, mask=numbers(3, *shape)), RecognizeAttention())
    assert r.ops == ["Attention"]


def test_keys_that_come_transposed(build, rewrite):
    text = f"""
    g (float[{B},{H},{L},{D}] q, float[{B},{L},{H},{D}] x, float[{B},{H},{L},{D}] v)
      => (float[{B},{H},{L},{D}] y) {{
      t = Transpose<perm=[0,2,3,1]>(x) a = MatMul(q, t) p = Softmax(a) y = MatMul(p, v)
    }}"""
    assert rewrite(build(text), RecognizeAttention()).ops == ["Transpose", "Attention"]


def test_rank_3_is_one_head(build, rewrite):
    text = f"""
    g (float[6,{L},{D}] q, float[6,7,{D}] k, float[6,7,{D}] v) => (float[6,{L},{D}] y) {{
      t = Transpose<perm=[0,2,1]>(k) a = MatMul(q, t) s = Mul(a, scale) p = Softmax(s) y = MatMul(p, v)
    }}"""
    assert rewrite(build(text, scale=np.float32(0.5)), RecognizeAttention()).ops == ["Attention"]


BLOCK = f"""
g (float[{B},{L},{H * D}] x, float[{B},7,{H * D}] z) => (float[{B},{L},{H * D}] y) {{
  q1 = MatMul(x, wq) q2 = Reshape(q1, hq) q = Transpose<perm=[0,2,1,3]>(q2)
  k1 = MatMul(z, wk) k2 = Reshape(k1, hk) k = Transpose<perm=[0,2,1,3]>(k2)
  v1 = MatMul(z, wv) v2 = Reshape(v1, hk) v = Transpose<perm=[0,2,1,3]>(v2)
  {CORE.replace("y =", "o =").replace("Mul(a, scale)", "Div(a, scale)")}
  o2 = Transpose<perm=[0,2,1,3]>(o)
  y = Reshape(o2, flat)
}}"""


def block(build):
    return build(
        BLOCK, scale=np.float32(2), hq=np.array([B, L, H, D]), hk=np.array([B, 7, H, D]),
        flat=np.array([0, 0, H * D]), **{f"w{n}": numbers(i, H * D, H * D) for i, n in enumerate("qkv")},
    )  # fmt: skip


def test_heads(build, rewrite):
    r = rewrite(block(build), RecognizeAttention())
    assert sorted(r.ops) == ["Attention", "MatMul", "MatMul", "MatMul"]
    assert r.node("Attention").attributes["q_num_heads"].value == H
    r = rewrite(block(build), RecognizeAttention(heads=False))
    assert r.ops.count("Transpose") == 4


def test_round_trip(build, rewrite):
    once = rewrite(block(build), RecognizeAttention())
    assert "Attention" not in rewrite(once.model, DecomposeAttention()).ops
    again = rewrite(once.model, FoldBias(), RecognizeAttention())
    assert sorted(again.ops) == ["Attention", "MatMul", "MatMul", "MatMul"]


@pytest.mark.parametrize(
    "body",
    [
        CORE.replace("Softmax(s)", "Softmax<axis=2>(s)"),
        CORE.replace("Mul(a, scale)", "Sub(a, scale)"),
        CORE.replace("t = Transpose<perm=[0,1,3,2]>(k)", "").replace("(q, t)", "(q, k)"),
        CORE.replace("y = MatMul(p, v)", "o = MatMul(p, v) r = ReduceSum(p) y = Add(o, r)"),
        CORE.replace("Softmax(s)", "Softmax(m)").replace("p =", "m = Add(s, mask) p ="),
    ],
)
def test_declines(build, rewrite, body):
    arrays = {"mask": numbers(0, 1, 1, 1, L)} if "mask" in body else {}
    if "(q, k)" in body:
        text = f"""
        g (float[{B},{H},{L},{D}] q, float[{B},{H},{D},{L}] k, float[{B},{H},{L},{D}] v)
          => (float[{B},{H},{L},{D}] y) {{ {body} }}"""
        m = build(text, scale=np.float32(0.5))
    else:
        m = model(build, body, **arrays)
    assert rewrite(m, RecognizeAttention()).count == 0


def test_declines_negative_scales_broadcast_and_old_opsets(build, rewrite):
    m = model(build, CORE, scale=np.float32(-1))
    assert rewrite(m, RecognizeAttention()).count == 0
    assert rewrite(model(build, CORE, opset=22), RecognizeAttention()).count == 0
    text = f"""
    g (float[{B},{H},{L},{D}] q, float[{B},1,{L},{D}] k, float[{B},1,{L},{D}] v)
      => (float[{B},{H},{L},{D}] y) {{ {CORE} }}"""
    assert rewrite(build(text, scale=np.float32(1)), RecognizeAttention()).count == 0


@pytest.mark.parametrize(
    "attributes, mask",
    [
        ("", None),
        ("<scale=0.3>", "float"),
        ("<is_causal=1>", None),
        ("<softcap=1.5>", None),
        ("<is_causal=1, scale=2.0>", "float"),
        ("", "bool"),
    ],
)
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("kv", [2, 1])
def test_decompose(build, rewrite, attributes, mask, flat, kv):
    if flat:
        heads = f"q_num_heads=2, kv_num_heads={kv}"
        attributes = f"<{heads}, {attributes[1:]}" if attributes else f"<{heads}>"
        dims = f"float[2,5,8] q, float[2,5,{4 * kv}] k, float[2,5,{4 * kv}] v"
        out = "float[2,5,8] y"
    else:
        dims = f"float[2,2,5,4] q, float[2,{kv},5,4] k, float[2,{kv},5,4] v"
        out = "float[2,2,5,4] y"
    held = numbers(1, 5, 5) if mask == "float" else np.tril(np.ones((5, 5), bool))
    operands = "q, k, v, mask" if mask else "q, k, v"
    m = build(
        f"g ({dims}) => ({out}) {{ y = Attention{attributes}({operands}) }}",
        **({"mask": held} if mask else {}),
    )
    r = rewrite(m, DecomposeAttention())
    assert "Attention" not in r.ops and "Softmax" in r.ops
