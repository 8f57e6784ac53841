from __future__ import annotations

import onnx_ir as ir
import pytest

PIPELINE = "lift-constants,simplify-layout-ops,eliminate-dead-code"


def ops(model: ir.Model) -> list[str]:
    return [n.op_type for n in model.graph]


def graph(body: str, shape: str = "2,3,4,5", out: str = "float[a,b,c,d]") -> str:
    return (
        f'<ir_version: 10, opset_import: ["": 23]> g (float[{shape}] x) => ({out} y) {{ {body} }}'
    )


def targets(model: ir.Model) -> list[list[int]]:
    return [n.inputs[1].const_value.numpy().tolist() for n in model.graph if n.op_type == "Reshape"]


@pytest.mark.parametrize(
    ("body", "shape", "out", "target"),
    [
        ("y = Flatten<axis = 1>(x)", "2,3,4,5", "float[a,b]", [2, 60]),
        ("y = Flatten<axis = -1>(x)", "2,3,4,5", "float[a,b]", [24, 5]),
        ("y = Flatten<axis = 1>(x)", "N,3,4,5", "float[a,b]", [-1, 60]),
        ("a = Constant<value_ints = [0, 2]>() y = Squeeze(x, a)", "1,3,1,5", "float[a,b]", [3, 5]),
        ("y = Squeeze(x)", "1,3,1,5", "float[a,b]", [3, 5]),
        (
            "a = Constant<value_ints = [-1, 0]>() y = Unsqueeze(x, a)",
            "3,5",
            "float[a,b,c,d]",
            [1, 3, 5, 1],
        ),
        ("s = Constant<value_ints = [0, -1]>() y = Reshape(x, s)", "4,3,5", "float[a,b]", [4, 15]),
        ("y = Transpose<perm = [0, 2, 3, 1]>(x)", "2,3,1,1", "float[a,b,c,d]", [2, 1, 1, 3]),
    ],
)
def test_one_form_in_numbers(apply, body: str, shape: str, out: str, target: list[int]) -> None:
    model = apply(PIPELINE, graph(body, shape, out), N=3)
    assert ops(model) == ["Reshape"]
    assert targets(model) == [target]


def test_two_dynamic_extents_stay(apply) -> None:
    model = apply(PIPELINE, graph("y = Flatten<axis = 2>(x)", "N,M,4,5", "float[a,b]"), N=2, M=3)
    assert ops(model) == ["Reshape"]  # [-1, 20]: one of the two is known
    body = "a = Constant<value_ints = [0]>() y = Unsqueeze(x, a)"
    assert ops(apply(PIPELINE, graph(body, "N,M", "float[a,b,c]"), N=2, M=3)) == ["Unsqueeze"]


def test_an_empty_tensor_stays(apply) -> None:
    body = "y = Flatten<axis = 1>(x)"
    assert ops(apply(PIPELINE, graph(body, "0,3,4,5", "float[a,b]"))) == ["Flatten"]


def test_reshapes_compose_and_vanish(apply) -> None:
    body = """s = Constant<value_ints = [6, 20]>() a = Reshape(x, s) b = Flatten<axis = 0>(a)
      t = Constant<value_ints = [2, 3, 4, 5]>() c = Reshape(b, t) y = Tanh(c)"""
    assert ops(apply(PIPELINE, graph(body))) == ["Tanh"]


def test_a_reshape_read_twice_is_kept_for_the_other(apply) -> None:
    text = """<ir_version: 10, opset_import: ["": 23]> g (float[2,6] x) => (float[12] y, float[4,3] z) {
      s = Constant<value_ints = [12]>() y = Reshape(x, s)
      t = Constant<value_ints = [4, 3]>() z = Reshape(y, t) }"""
    model = apply(PIPELINE, text)
    assert ops(model) == ["Reshape", "Reshape"]
    assert all(n.inputs[0] is model.graph.inputs[0] for n in model.graph)


def test_squeeze_of_unsqueeze_with_dynamic_extents(apply) -> None:
    body = """a = Constant<value_ints = [1]>() b = Unsqueeze(x, a) c = Squeeze(b, a) y = Tanh(c)"""
    assert ops(apply(PIPELINE, graph(body, "N,M", "float[a,b]"), N=2, M=3)) == ["Tanh"]


def test_transposes_compose(apply) -> None:
    body = """a = Transpose<perm = [0, 2, 3, 1]>(x) y = Transpose<perm = [3, 0, 1, 2]>(a)"""
    model = apply(PIPELINE, graph(body))
    assert ops(model) == ["Transpose"]
    assert model.graph[0].attributes["perm"].as_ints() == (1, 0, 2, 3)


def test_transposes_cancel(apply) -> None:
    body = "a = Transpose<perm = [0, 2, 3, 1]>(x) b = Transpose<perm = [0, 3, 1, 2]>(a) y = Tanh(b)"
    assert ops(apply(PIPELINE, graph(body))) == ["Tanh"]


def test_transposes_cancel_through_elementwise(apply) -> None:
    body = """k = Constant<value = float[5,3] {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15}>()
      half = Constant<value_float = 0.5>()
      a = Transpose<perm = [0, 2, 3, 1]>(x) b = Relu(a) c = Mul(b, k) d = Add(c, half) e = Add(d, b)
      f = Softmax<axis = -1>(e) h = Concat<axis = 3>(f, e) y = Transpose<perm = [0, 3, 1, 2]>(h)"""
    model = apply(PIPELINE, graph(body), exact=False)
    assert ops(model) == ["Relu", "Mul", "Add", "Add", "Softmax", "Concat"]
    assert model.graph[4].attributes["axis"].as_int() == 1
    assert model.graph[5].attributes["axis"].as_int() == 1
    assert model.graph.outputs[0].shape == ir.Shape([2, 6, 4, 5])


def test_a_transpose_that_something_else_reads_is_kept(apply) -> None:
    text = """<ir_version: 10, opset_import: ["": 23]> g (float[2,3,4] x)
      => (float[2,3,4] y, float[2,4,3] z) {
      a = Transpose<perm = [0, 2, 1]>(x) b = Relu(a) y = Transpose<perm = [0, 2, 1]>(b) z = Tanh(a) }"""
    assert sorted(ops(apply(PIPELINE, text))) == ["Relu", "Tanh", "Transpose"]


def test_a_region_that_is_read_from_outside_stays(apply) -> None:
    text = """<ir_version: 10, opset_import: ["": 23]> g (float[2,3,4] x)
      => (float[2,3,4] y, float[2,4,3] z) {
      a = Transpose<perm = [0, 2, 1]>(x) z = Relu(a) y = Transpose<perm = [0, 2, 1]>(z) }"""
    assert ops(apply(PIPELINE, text)) == ["Transpose", "Relu", "Transpose"]


def test_transposes_that_do_not_meet_stay(apply) -> None:
    body = "a = Transpose<perm = [0, 2, 3, 1]>(x) b = Relu(a) y = Transpose<perm = [0, 2, 3, 1]>(b)"
    assert ops(apply(PIPELINE, graph(body))) == ["Transpose", "Relu", "Transpose"]


def test_transposes_of_both_operands_become_one(apply) -> None:
    text = """<ir_version: 10, opset_import: ["": 23]> g (float[2,3,4] x, float[2,3,4] w)
      => (float[2,4,3] y) {
      a = Transpose<perm = [0, 2, 1]>(x) b = Transpose<perm = [0, 2, 1]>(w) y = Add(a, b) }"""
    assert ops(apply(PIPELINE, text)) == ["Add", "Transpose"]


def test_expand_before_broadcasting_goes(apply) -> None:
    body = """b = Constant<value = float[3,1,1] {1, 2, 3}>() s = Constant<value_ints = [2, 3, 4, 5]>()
      e = Expand(b, s) y = Add(x, e)"""
    assert ops(apply(PIPELINE, graph(body))) == ["Add"]


def test_expand_to_a_dynamic_shape_goes(apply) -> None:
    body = """b = Constant<value = float[3,1,1] {1, 2, 3}>() s = Shape(x) e = Expand(b, s) y = Add(x, e)"""
    assert ops(apply(PIPELINE, graph(body, "N,3,4,5"), N=2)) == ["Add"]


def test_expand_that_makes_the_shape_stays(apply) -> None:
    body = """b = Constant<value = float[1,1,1,1] {1}>() s = Constant<value_ints = [2, 3, 4, 5]>()
      e = Expand(b, s) y = Add(x, e)"""
    assert ops(apply(PIPELINE, graph(body, "1,3,4,5"))) == ["Expand", "Add"]


def test_concat_of_split_and_nested_concat(apply) -> None:
    body = "a, b = Split<axis = 1, num_outputs = 2>(x) c = Concat<axis = 1>(a, b) y = Tanh(c)"
    assert ops(apply(PIPELINE, graph(body))) == ["Tanh"]
    body = "a, b = Split<axis = 1, num_outputs = 2>(x) y = Concat<axis = 1>(b, a)"
    assert ops(apply(PIPELINE, graph(body))) == ["Split", "Concat"]
    body = """a = Tanh(x) b = Relu(x) c = Concat<axis = 1>(a, b) y = Concat<axis = -3>(x, c, a)"""
    model = apply(PIPELINE, graph(body))
    assert ops(model) == ["Tanh", "Relu", "Concat"]
    assert len(model.graph[2].inputs) == 4
