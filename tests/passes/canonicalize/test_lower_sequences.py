from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

HEADER = '<ir_version: 10, opset_import: ["": 23]>'


def model(text: str, **arrays) -> ir.Model:
    proto = onnx.parser.parse_model(f"{HEADER} {text}")
    for name, array in arrays.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    return ir.from_proto(proto)


def ops(m: ir.Model) -> list[str]:
    return [n.op_type for n in m.graph]


PARTS = """
g (float[2,7,3] x) => (float[N,A,B] y, float[C,D,E] z) {
  s = SplitToSequence<axis=1>(x, sizes)
  a = SequenceAt(s, i)
  y = Relu(a)
  z = SequenceAt(s, j)
}"""


@pytest.mark.parametrize("sizes", [[2, 2, 3], 3, 7, [7]])
def test_split(apply, sizes):
    last = 0 if sizes in (7, [7]) else 2
    m = apply("lower-sequences", model(PARTS, sizes=sizes, i=0, j=last - (0 if last == 0 else 3)))
    assert "SequenceAt" not in ops(m) and "SplitToSequence" not in ops(m)
    assert ops(m)[0] == "Split"
    assert m.graph[0].outputs[0].shape is not None


def test_shapes_are_known_behind_it(apply):
    text = """
    g (float[1,6,4,4] x) => (float[A,B,C,D] y) {
      s = SplitToSequence<axis=1>(x, size)
      a = SequenceAt(s, zero)  b = SequenceAt(s, one)
      t = SplitToSequence<axis=3>(b, size)
      c = SequenceAt(t, zero)
      d = ReduceSum<keepdims=1>(a)
      y = Add(c, d)
    }"""
    m = apply("lower-sequences", model(text, size=3, zero=0, one=1))
    assert ops(m) == ["Split", "Split", "ReduceSum", "Add"]
    assert m.graph.outputs[0].shape == (1, 3, 4, 3)


def test_the_same_part_twice(apply):
    text = """
    g (float[4,2] x) => (float[A,B] y, float[C,D] z) {
      s = SplitToSequence(x, sizes)
      y = SequenceAt(s, i)
      z = SequenceAt(s, i)
    }"""
    m = apply("lower-sequences", model(text, sizes=[1, 3], i=1))
    assert ops(m) == ["Split", "Identity"]


def test_construct(apply):
    text = """
    g (float[4,2] x, float[4,2] w) => (float[A,B] y, float[C,D] z) {
      a = Relu(x) s = SequenceConstruct(a, w, x)
      b = SequenceAt(s, i)
      y = Neg(b)
      z = ConcatFromSequence<axis=1>(s)
    }"""
    assert ops(apply("lower-sequences", model(text, i=-2))) == ["Relu", "Neg", "Concat"]


@pytest.mark.parametrize(
    "text",
    [
        PARTS.replace("g (float[2,7,3] x)", "g (float[2,7,3] x, int64 j)"),
        PARTS.replace(
            "z = SequenceAt(s, j)", "l = SequenceLength(s) f = Cast<to=1>(l) z = Expand(f, j)"
        ),
        PARTS.replace("(x, sizes)", "(x)")
        .replace("axis=1", "axis=1, keepdims=0")
        .replace("A,B] y, float[C,D,E]", "A] y, float[C,D]"),
    ],
)
def test_declines(apply, text):
    arrays = {"sizes": 3, "i": 0}
    if "int64 j" not in text:
        arrays["j"] = [1, 1, 1] if "Expand" in text else 1
    if "keepdims" in text:
        del arrays["sizes"]
    m = apply("lower-sequences", model(text, **arrays), feeds=_feeds(text))
    assert "SplitToSequence" in ops(m)


def _feeds(text: str) -> dict[str, np.ndarray]:
    feeds = {"x": np.random.default_rng(0).normal(size=(2, 7, 3)).astype(np.float32)}
    if "int64 j" in text:
        feeds["j"] = np.array(1)
    return feeds
