from __future__ import annotations

import numpy as np
import onnx_ir as ir


def ops(model: ir.Model) -> list[str]:
    return [n.op_type for n in model.graph]


def test_constants_of_every_kind_become_initializers(apply) -> None:
    text = """<ir_version: 10, opset_import: ["": 18]> g (float[2] x, int64[2] i)
      => (float[2] y, int64[2] j) {
      a = Constant<value = float[2] {1.5, 2.5}>()
      b = Constant<value_float = 0.5>()
      c = Constant<value_floats = [1.0, 2.0]>()
      d = Constant<value_int = 3>()
      e = Constant<value_ints = [4, 5]>()
      p = Add(x, a) q = Mul(p, b) y = Sub(q, c)
      r = Add(i, d) j = Mul(r, e)
    }"""
    model = apply("lift-constants", text)
    assert ops(model) == ["Add", "Mul", "Sub", "Add", "Mul"]
    assert set(model.graph.initializers) == {"a", "b", "c", "d", "e"}
    assert model.graph.initializers["b"].shape == ir.Shape([])


def test_inside_subgraphs(apply) -> None:
    text = """<ir_version: 10, opset_import: ["": 18]> g (float[1] x, bool c) => (float[1] y) {
      y = If(c) <then_branch = t () => (float[1] p) { k = Constant<value = float[1] {2.0}>() p = Add(x, k) },
                 else_branch = e () => (float[1] q) {
                   k2 = Constant<value = float[1] {3.0}>() q = Add(x, k2) }>
    }"""
    model = apply("lift-constants", text)
    for name in ("then_branch", "else_branch"):
        branch = model.graph[0].attributes[name].as_graph()
        assert [n.op_type for n in branch] == ["Add"]
        assert len(branch.initializers) == 1


def test_a_constant_output_keeps_its_node(apply) -> None:
    text = """<ir_version: 10, opset_import: ["": 18]> g (float[1] x) => (float[1] y, float[1] z) {
      y = Tanh(x) z = Constant<value = float[1] {2.0}>()
    }"""
    assert ops(apply("lift-constants", text)) == ["Tanh", "Constant"]


def test_initializers_leave_the_inputs(apply) -> None:
    text = """<ir_version: 3, opset_import: ["": 8]> g (float[2] x, float[2] w) => (float[2] y)
    <float[2] w = {1.0, 2.0}> { y = Mul(x, w) }"""
    model = ir.from_onnx_text(text)
    assert [v.name for v in model.graph.inputs] == ["x", "w"]
    x = np.array([3, 4], np.float32)
    model = apply("lift-constants", model, feeds={"x": x}, infer=False)
    assert [v.name for v in model.graph.inputs] == ["x"]
    assert model.ir_version >= 4
