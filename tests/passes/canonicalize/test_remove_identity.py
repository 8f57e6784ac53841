from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest


def graph(body: str, opset: int = 23, inputs: str = "float[2,3] x") -> str:
    return (
        f'<ir_version: 10, opset_import: ["": {opset}]> g ({inputs}) => (float[2,3] y) {{ {body} }}'
    )


def ops(model: ir.Model) -> list[str]:
    return [n.op_type for n in model.graph]


GONE = {
    "identity": "a = Identity(x)",
    "dropout at inference": "a = Dropout(x)",
    "dropout, told so": "r = Constant<value_float = 0.3>() t = Constant<value = bool {0}>() "
    "a = Dropout(x, r, t)",
    "cast to its own type": "a = Cast<to = 1>(x)",
    "cast there and back": "b = Cast<to = 11>(x) a = Cast<to = 1>(b)",
    "cast like itself": "a = CastLike(x, x)",
    "reshape to its own shape": "s = Constant<value_ints = [2, 3]>() a = Reshape(x, s)",
    "reshape of zeros": "s = Constant<value_ints = [0, 0]>() a = Reshape(x, s)",
    "expand by ones": "s = Constant<value_ints = [1, 1]>() a = Expand(x, s)",
    "transpose in place": "a = Transpose<perm = [0, 1]>(x)",
    "pad by nothing": "p = Constant<value_ints = [0, 0, 0, 0]>() a = Pad(x, p)",
    "slice of all": "s = Constant<value_ints = [0]>() e = Constant<value_ints = [9223372036854775807]>() "
    "a = Slice(x, s, e)",
    "tile once": "r = Constant<value_ints = [1, 1]>() a = Tile(x, r)",
    "concat of one": "a = Concat<axis = 1>(x)",
    "sum of one": "a = Sum(x)",
    "max of one": "a = Max(x)",
    "split in one": "a = Split<axis = 0, num_outputs = 1>(x)",
    "times 1": "c = Constant<value_float = 1.0>() a = Mul(c, x)",
    "times ones": "c = Constant<value = float[1,3] {1, 1, 1}>() a = Mul(x, c)",
    "divided by 1": "c = Constant<value_float = 1.0>() a = Div(x, c)",
    "to the power of 1": "c = Constant<value_float = 1.0>() a = Pow(x, c)",
    "minus 0": "c = Constant<value_float = 0.0>() a = Sub(x, c)",
    "plus -0": "c = Constant<value_float = -0.0>() a = Add(x, c)",
    "twice negated": "b = Neg(x) a = Neg(b)",
    "no reduction": "e = Constant<value = int64[0] {}>() a = ReduceSum<noop_with_empty_axes = 1>(x, e)",
    "always the first": "c = Constant<value = bool[1] {1}>() z = Neg(x) a = Where(c, x, z)",
}


@pytest.mark.parametrize("body", GONE.values(), ids=GONE)
def test_goes(apply, body: str) -> None:
    model = apply(
        "lift-constants,remove-identity,eliminate-dead-code", graph(f"{body} y = Tanh(a)")
    )
    assert ops(model) == ["Tanh"]


STAYS = {
    "plus 0 turns -0.0 into 0.0": ("c = Constant<value_float = 0.0>() a = Add(x, c)", "Add"),
    "0 minus x": ("c = Constant<value_float = 0.0>() a = Sub(c, x)", "Sub"),
    "1 over x": ("c = Constant<value_float = 1.0>() a = Div(c, x)", "Div"),
    "nearly 1": ("c = Constant<value_float = 1.0000001>() a = Mul(x, c)", "Mul"),
    "cast through a narrower type": ("b = Cast<to = 10>(x) a = Cast<to = 1>(b)", "Cast"),
    "reversed": (
        "s = Constant<value_ints = [-1]>() e = Constant<value_ints = [-9223372036854775807]>() "
        "q = Constant<value_ints = [1]>() t = Constant<value_ints = [-1]>() a = Slice(x, s, e, q, t)",
        "Slice",
    ),
    "transposed": ("b = Transpose(x) s = Constant<value_ints = [2, 3]>() a = Reshape(b, s)", "Transpose"),
    "dropout in training, ratio 0": (
        "r = Constant<value_float = 0.0>() t = Constant<value = bool {1}>() a = Dropout(x, r, t)",
        "Dropout",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("body", "op"), STAYS.values(), ids=STAYS)
def test_stays(apply, body: str, op: str) -> None:
    assert op in ops(apply("lift-constants,remove-identity", graph(f"{body} y = Tanh(a)")))


def test_a_neutral_constant_that_broadcasts_stays(apply) -> None:
    text = graph(
        "c = Constant<value = float[2,3] {1,1,1,1,1,1}>() y = Mul(x, c)", inputs="float[1,3] x"
    )
    assert ops(apply("lift-constants,remove-identity", text)) == ["Mul"]


def test_minus_zero_survives(apply) -> None:
    text = graph("c = Constant<value_float = 0.0>() a = Add(x, c) y = Reciprocal(a)")
    feeds = {"x": np.array([[-0.0, 0.0, 1.0]] * 2, np.float32)}
    model = apply("lift-constants,remove-identity", text, feeds=feeds)
    assert ops(model) == ["Add", "Reciprocal"]


def test_an_output_keeps_its_node_and_name(apply) -> None:
    assert ops(apply("remove-identity", graph("y = Identity(x)"))) == ["Identity"]
    model = apply("remove-identity", graph("a = Tanh(x) y = Identity(a)"))
    assert ops(model) == ["Tanh"]
    assert model.graph.outputs[0].name == "y"


def test_two_outputs_do_not_become_one(apply) -> None:
    text = """<ir_version: 10, opset_import: ["": 23]> g (float[2] x) => (float[2] y, float[2] z)
    { y = Tanh(x) z = Identity(y) }"""
    assert ops(apply("remove-identity", text)) == ["Tanh", "Identity"]


def test_what_a_subgraph_reads_is_rewired(apply) -> None:
    text = """<ir_version: 10, opset_import: ["": 23]> g (float[2] x, bool c) => (float[2] y) {
      a = Identity(x)
      y = If(c) <then_branch = t () => (float[2] p) { b = Identity(a) p = Neg(b) },
                 else_branch = e () => (float[2] q) { q = Identity(a) }>
    }"""
    model = apply("remove-identity", text)
    assert ops(model) == ["If"]
    branch = model.graph[0].attributes["then_branch"].as_graph()
    assert [n.op_type for n in branch] == ["Neg"]
    assert branch[0].inputs[0] is model.graph.inputs[0]


def test_empty_inputs_of_resize_are_absent(apply) -> None:
    text = """<ir_version: 10, opset_import: ["": 23]> g (float[1,1,2,2] x) => (float[1,1,4,4] y)
    <float[0] roi = {}, float[0] scales = {}, int64[4] sizes = {1, 1, 4, 4}>
    { y = Resize<mode = "nearest">(x, roi, scales, sizes) }"""
    model = apply("remove-identity,eliminate-dead-code", text)
    assert [v is None for v in model.graph[0].inputs] == [False, True, True, False]
    assert set(model.graph.initializers) == {"sizes"}


def test_resize_that_changes_nothing_goes(apply) -> None:
    text = """<ir_version: 10, opset_import: ["": 23]> g (float[1,1,2,2] x) => (float[1,1,2,2] y)
    <float[4] s = {1, 1, 1, 1}> { a = Resize<mode = "cubic">(x, , s) y = Tanh(a) }"""
    assert ops(apply("remove-identity", text)) == ["Tanh"]
