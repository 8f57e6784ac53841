from __future__ import annotations

import onnx_ir as ir

from effc import passes
from effc.core.passinfra import PassContext

PIPELINE = "eliminate-dead-code"


def ops(model: ir.Model) -> list[str]:
    return [n.op_type for n in model.graph]


def test_dead_chains_initializers_and_imports_go(apply) -> None:
    text = """<ir_version: 10, opset_import: ["": 23, "unused": 1]> g (float[2] x, float[2] z) => (float[2] y)
    <float[2] used = {1, 2}, float[2] unused = {3, 4}, float[2] behind = {5, 6}> {
      a = Exp(x) b = Mul(a, behind) c = Neg(b) y = Add(x, used) }"""
    model = apply(PIPELINE, text)
    assert ops(model) == ["Add"]
    assert set(model.graph.initializers) == {"used"}
    assert set(model.opset_imports) == {""}
    assert [v.name for v in model.graph.inputs] == ["x", "z"]


def test_what_only_a_subgraph_reads_lives(apply) -> None:
    text = """<ir_version: 10, opset_import: ["": 23]> g (float[2] x, bool c) => (float[2] y)
    <float[2] w = {1, 2}> {
      a = Exp(x) d = Neg(x) e = Abs(x)
      y = If(c) <then_branch = t () => (float[2] p) { dead = Tanh(e) p = Mul(a, w) },
                 else_branch = e () => (float[2] q) { q = Identity(d) }> }"""
    model = apply(PIPELINE, text)
    assert ops(model) == ["Exp", "Neg", "If"]
    assert set(model.graph.initializers) == {"w"}


def test_a_dead_if_frees_what_its_branches_read(apply) -> None:
    text = """<ir_version: 10, opset_import: ["": 23]> g (float[2] x, bool c) => (float[2] y)
    <float[2] w = {1, 2}> {
      a = Exp(x)
      z = If(c) <then_branch = t () => (float[2] p) { p = Mul(a, w) },
                 else_branch = e () => (float[2] q) { q = Identity(a) }>
      y = Neg(x) }"""
    model = apply(PIPELINE, text)
    assert ops(model) == ["Neg"]
    assert not model.graph.initializers


def test_unread_reports_go(apply) -> None:
    text = """<ir_version: 10, opset_import: ["": 23]> g (float[1,1,4,4] x) => (float[1,1,2,2] y) {
      y, i = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(x) }"""
    assert len(apply(PIPELINE, text).graph[0].outputs) == 1


def test_names_are_told_apart() -> None:
    text = """<ir_version: 10, opset_import: ["": 23]> g (float[2] x) => (float[2] y)
    <float[2] w = {1, 2}> { a = Mul(x, w) b = Add(a, w) y = Neg(b) }"""
    model = ir.from_onnx_text(text)
    model.graph[0].outputs[0].name = "y"  # as the output is called
    model.graph[1].outputs[0].name = "w"  # as the initializer is called
    passes.parse(PIPELINE).run(model, PassContext())
    names = [o.name for n in model.graph for o in n.outputs] + list(model.graph.initializers)
    assert len(set(names)) == 4
    assert model.graph.outputs[0].name == "y"
    assert model.graph[2].outputs[0].name == "y"
