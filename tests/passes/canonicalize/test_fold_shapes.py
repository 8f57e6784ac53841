from __future__ import annotations

import onnx_ir as ir

PIPELINE = "lift-constants,fold-shapes,eliminate-dead-code"


def ops(model: ir.Model) -> list[str]:
    return [n.op_type for n in model.graph]


def graph(body: str, shape: str = "2,3,4", out: str = "float[a,b]") -> str:
    return (
        f'<ir_version: 10, opset_import: ["": 23]> g (float[{shape}] x) => ({out} y) {{ {body} }}'
    )


def target(model: ir.Model) -> list[int]:
    node = next(n for n in model.graph if n.op_type == "Reshape")
    assert node.inputs[1].const_value is not None
    return node.inputs[1].const_value.numpy().tolist()


FLATTEN = """s = Shape(x) i = Constant<value_int = 0>() n = Gather<axis = 0>(s, i)
  a = Constant<value_ints = [0]>() u = Unsqueeze(n, a) m = Constant<value_ints = [-1]>()
  t = Concat<axis = 0>(u, m) y = Reshape(x, t)"""


def test_static_shapes_become_numbers(apply) -> None:
    model = apply(PIPELINE, graph(FLATTEN))
    assert ops(model) == ["Reshape"]
    assert target(model) == [2, -1]


def test_a_dynamic_batch_is_copied(apply) -> None:
    model = apply(PIPELINE, graph(FLATTEN, "N,3,4"), N=5)
    assert ops(model) == ["Reshape"]
    assert target(model) == [0, -1]


def test_an_unnamed_batch_is_copied(apply) -> None:
    model = ir.from_onnx_text(graph(FLATTEN, "N,3,4"))
    model.graph.inputs[0].shape = ir.Shape([None, 3, 4])
    import numpy as np

    feeds = {"x": np.random.default_rng(0).random((5, 3, 4), np.float32)}
    assert target(apply(PIPELINE, model, feeds=feeds)) == [0, -1]


def test_one_unknown_element_is_inferred(apply) -> None:
    body = """s = Shape<start = 0, end = 1>(x) k = Constant<value_ints = [2]>() n = Mul(s, k)
      r = Constant<value_ints = [6]>() t = Concat<axis = 0>(n, r) y = Reshape(x, t)"""
    model = apply(PIPELINE, graph(body, "N,3,4"), N=5)
    assert ops(model) == ["Reshape"]
    assert target(model) == [-1, 6]


def test_two_unknown_elements_stay(apply) -> None:
    body = """s = Shape<start = 0, end = 2>(x) k = Constant<value_ints = [2, 2]>() n = Div(s, k)
      r = Constant<value_ints = [16]>() t = Concat<axis = 0>(n, r) y = Reshape(x, t)"""
    model = apply(PIPELINE, graph(body, "N,M,4", "float[a,b,c]"), N=4, M=6)
    assert ops(model) == ["Shape", "Div", "Concat", "Reshape"]


def test_the_arithmetic_of_exporters(apply) -> None:
    body = """s = Shape(x) i = Constant<value_ints = [1]>() j = Constant<value_ints = [3]>()
      b = Slice(s, i, j) c = Cast<to = 6>(b) d = Cast<to = 7>(c)
      two = Constant<value_ints = [2, 2]>() e = Mul(d, two) f = Sub(e, two) h = Div(f, two)
      one = Constant<value_ints = [1, 1]>() k = Add(h, one)
      z = Constant<value_ints = [2]>() t = Concat<axis = 0>(z, k) y = Reshape(x, t)"""
    model = apply(PIPELINE, graph(body, out="float[p,q,r]"))
    assert ops(model) == ["Reshape"]
    assert target(model) == [2, 3, 4]


def test_the_expand_pattern_of_torch(apply) -> None:
    body = """want = Constant<value_ints = [-1, 3, 4]>() s = Shape(x) m = Constant<value_ints = [-1]>()
      eq = Equal(want, m) t = Where(eq, s, want) y = Reshape(x, t)"""
    model = apply(PIPELINE, graph(body, "N,3,4", "float[p,q,r]"), N=2)
    assert ops(model) == ["Reshape"]
    assert target(model) == [0, 3, 4]


def test_size_and_what_follows_downstream(apply) -> None:
    body = """n = Size(x) a = Constant<value_ints = [0]>() u = Unsqueeze(n, a) b = Reshape(x, u)
      s = Shape(b) c = Tanh(b) q = Constant<value_ints = [4]>() r = Div(s, q)
      t = Concat<axis = 0>(r, q) y = Reshape(c, t)"""
    model = apply(PIPELINE, graph(body))
    assert ops(model) == ["Reshape", "Tanh", "Reshape"]
    assert model.graph.outputs[0].shape == ir.Shape([6, 4])


def test_a_shape_that_is_an_output_stays(apply) -> None:
    assert ops(apply(PIPELINE, graph("y = Shape(x)", out="int64[3]"))) == ["Shape"]


def test_in_a_subgraph(apply) -> None:
    text = """<ir_version: 10, opset_import: ["": 23]> g (float[2,3] x, bool c) => (float[k] y) {
      y = If(c) <then_branch = t () => (float[k] p) { n = Size(x) a = Constant<value_ints = [1]>()
                                                      u = Reshape(n, a) p = Reshape(x, u) },
                 else_branch = e () => (float[k] q) { m = Constant<value_ints = [-1]>() q = Reshape(x, m) }>
    }"""
    model = apply(PIPELINE, text)
    branch = model.graph[0].attributes["then_branch"].as_graph()
    assert [n.op_type for n in branch] == ["Reshape"]


def test_shapes_are_inferred_where_they_are_missing(apply) -> None:
    assert ops(apply(PIPELINE, graph(FLATTEN), infer=False)) == ["Reshape"]
