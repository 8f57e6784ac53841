"""What is quantized survives the standard passes: no parameter lost, no bit of the answers changed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from effc import passes, zoo
from effc.core.ir import const, is_op
from effc.core.passinfra import PassContext
from effc.core.quant import quant_params
from effc.core.reference import OnnxRuntimeRunner, random_feeds
from effc.core.shapes import fix_shapes, infer_shapes

TINY = [n for n in zoo.names() if n.startswith("tiny-")]
SCHEMES = ("vnni", "ort", "integer", "coreml", "tensorrt")
STANDARD = f"{passes.CANONICALIZE},{passes.FUSE}"


def quantizers(model: ir.Model) -> Counter[tuple[Any, ...]]:
    """Every Q and DQ: its parameters and, of constants, the integers in any order."""
    found: Counter[tuple[Any, ...]] = Counter()
    for node in model.graph:
        if is_op(node, "QuantizeLinear", "DequantizeLinear"):
            p = quant_params(node)
            assert p is not None
            held = const(node.inputs[0])
            integers = b"" if held is None else np.sort(held, axis=None).tobytes()
            key = (node.op_type, p.dtype, p.scale.tobytes(), p.zero_point.tobytes(), integers)
            found[key] += 1
    return found


def survives(model: ir.Model, feeds: list[dict[str, np.ndarray]]) -> None:
    before = quantizers(model)
    assert before
    with OnnxRuntimeRunner(model, optimize=False) as runner:
        expected = [runner.infer(f) for f in feeds]
    passes.parse(STANDARD).run(model, PassContext())
    infer_shapes(model)
    after = quantizers(model)
    assert set(after) == set(before)  # equal ones may have become one
    assert all(after[k] <= before[k] for k in before)
    with OnnxRuntimeRunner(model, optimize=False) as runner:
        for f, answers in zip(feeds, expected, strict=True):
            for name, array in runner.infer(f).items():
                np.testing.assert_array_equal(array, answers[name])


@pytest.mark.parametrize("name", TINY)
def test_tiny_models(name: str) -> None:
    """Quantized before anything is fused, so that every pass meets its pattern with Q/DQ inside."""
    model = zoo.build(name)
    fix_shapes(model, {str(model.graph.inputs[0].name): zoo.member(name).input_shape})
    infer_shapes(model)
    scheme = SCHEMES[TINY.index(name) % len(SCHEMES)]
    passes.parse(f"quantize{{scheme={scheme}}}").run(model, PassContext())
    infer_shapes(model)
    survives(model, random_feeds(model, 1))


# what folds or moves where weights are plain constants: batch norm, bias, pad, parallel branches,
# transposes, a chain of products, activations on both sides of Q
PATTERNS = """(float[1,3,6,6] x) => (float[1,4,6,6] y, float[1,4] z) {
  q = QuantizeLinear(x, s, z8) d = DequantizeLinear(q, s, z8)
  p = Pad(d, pads)
  w1 = DequantizeLinear<axis=0>(a, sw, zw) w2 = DequantizeLinear<axis=0>(b, sw, zw)
  c1 = Conv(p, w1) c2 = Conv(p, w2)
  n = BatchNormalization(c1, gamma, beta, mean, var)
  m = Add(c2, bias) k = Mul(m, factor)
  r = Relu(n) q1 = QuantizeLinear(r, s, z8) d1 = DequantizeLinear(q1, s, z8) r1 = Relu(d1)
  q2 = QuantizeLinear(k, s, z8) d2 = DequantizeLinear(q2, s, z8)
  t = Transpose<perm=[0,2,3,1]>(d2) q3 = QuantizeLinear(t, s, z8) d3 = DequantizeLinear(q3, s, z8)
  u = Transpose<perm=[0,3,1,2]>(d3)
  y = Add(r1, u)
  g = GlobalAveragePool(y) f = Flatten(g)
  v1 = DequantizeLinear(e, s, zi) v2 = DequantizeLinear(h, s, zi)
  f1 = MatMul(f, v1) z = MatMul(f1, v2) }"""


def test_patterns() -> None:
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model('<ir_version: 10, opset_import: ["": 23]>\ng ' + PATTERNS)
    channels = {
        n: rng.uniform(0.5, 1.5, 4).astype(np.float32) for n in ("gamma", "beta", "mean", "var")
    }
    arrays = {
        "s": np.float32(0.05), "z8": np.uint8(120), "zi": np.int8(3),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "a": rng.integers(-128, 128, (4, 3, 3, 3)).astype(np.int8),
        "b": rng.integers(-128, 128, (4, 3, 3, 3)).astype(np.int8),
        "sw": rng.uniform(0.01, 0.02, 4).astype(np.float32), "zw": np.zeros(4, np.int8),
        "bias": rng.normal(0, 1, (4, 1, 1)).astype(np.float32), "factor": np.float32(1.7),
        "e": rng.integers(-128, 128, (4, 5)).astype(np.int8),
        "h": rng.integers(-128, 128, (5, 4)).astype(np.int8), **channels,
    }  # fmt: skip
    for name, array in arrays.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    model = ir.from_proto(proto)
    infer_shapes(model)
    survives(model, random_feeds(model, 3))


def test_constants_behind_a_quantizer_are_not_folded() -> None:
    """Q of a float weight, as some tools write it, stays Q and DQ, also where two are the same."""
    text = """(float[2,3] x) => (float[2,3] y) {
      q = QuantizeLinear(w, s, z) d = DequantizeLinear(q, s, z) a = MatMul(x, d)
      q2 = QuantizeLinear(w, s, z) d2 = DequantizeLinear(q2, s, z) y = MatMul(a, d2) }"""
    proto = onnx.parser.parse_model('<ir_version: 10, opset_import: ["": 23]>\ng ' + text)
    w = np.random.default_rng(0).normal(0, 1, (3, 3)).astype(np.float32)
    for name, array in (("w", w), ("s", np.float32(0.02)), ("z", np.int8(0))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    model = ir.from_proto(proto)
    infer_shapes(model)
    survives(model, random_feeds(model, 2))
    assert [n.op_type for n in model.graph] == [
        "QuantizeLinear", "DequantizeLinear", "MatMul", "MatMul"
    ]  # fmt: skip
