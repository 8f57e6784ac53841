"""The verifier on models in the IR, as passes and frontends hand them over.

What a file can do wrong stands in tests/frontend/test_bad_inputs.py.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from effc import zoo
from effc.core.check import MAX_DEPTH, check_model, normalize
from effc.core.check_graph import check_shapes
from effc.core.errors import FrontendError
from effc.core.schema import opset_range, schema_of
from effc.core.shapes import infer_shapes
from effc.core.source import fingerprint
from effc.zoo.builder import Builder


def refuse(model: ir.Model, **options: bool) -> str:
    with pytest.raises(FrontendError) as caught:
        check_model(model, **options)  # type: ignore[arg-type]
    return str(caught.value)


def text(body: str, declared: str = "float[N,3] x", made: str = "float[N,3] y") -> ir.Model:
    return ir.from_onnx_text(
        f'<ir_version: 9, opset_import: ["" : 18]> g ({declared}) => ({made}) {{ {body} }}'
    )


@pytest.mark.parametrize("name", zoo.names())
def test_checking_changes_nothing(name: str) -> None:
    model = zoo.build(name)
    before = fingerprint(model)
    check_model(model)
    assert fingerprint(model) == before


def test_two_values_of_one_name() -> None:
    model = text("a = Relu(x) y = Relu(a)")
    model.graph[0].outputs[0].name = "x"
    assert "'x' is defined twice, again by an output of node #0 (Relu)" in refuse(model)


def test_value_of_a_removed_node() -> None:
    model = text("a = Relu(x) y = Relu(a)")
    model.graph.remove(model.graph[0])
    assert "'a'" in refuse(model)


def test_value_from_inside_a_subgraph() -> None:
    model = text(
        """c = Constant<value_int = 1>() b = Cast<to = 9>(c)
        s = If(b) <then_branch = t () => (float[N,3] p) { q = Relu(x) p = Neg(q) },
                   else_branch = e () => (float[N,3] r) { r = Neg(x) }>
        y = Relu(s)"""
    )
    check_model(model)
    branch = model.graph[2].attributes["then_branch"].as_graph()
    model.graph[3].replace_input_with(0, branch[0].outputs[0])
    assert "made inside another subgraph" in refuse(model)


def test_cycle_through_a_subgraph() -> None:
    """The branch reads what the If itself makes possible: no order of the outer nodes works."""
    model = text(
        """c = Constant<value_int = 1>() b = Cast<to = 9>(c)
        s = If(b) <then_branch = t () => (float[N,3] p) { p = Neg(x) },
                   else_branch = e () => (float[N,3] r) { r = Neg(x) }>
        y = Relu(s)"""
    )
    inner = model.graph[2].attributes["then_branch"].as_graph()[0]
    inner.replace_input_with(0, model.graph[3].outputs[0])
    message = refuse(model)
    assert "cycle of 2 nodes" in message and "If" in message and "Relu" in message


def test_subgraphs_too_deep() -> None:
    model = text("c = Constant<value_int = 1>() b = Cast<to = 9>(c) y = Relu(x)")
    condition = model.graph[1].outputs[0]

    def leaf() -> ir.Graph:
        node = ir.node("Neg", [model.graph.inputs[0]])
        node.outputs[0].name = "o"
        return ir.Graph([], [node.outputs[0]], nodes=[node], name="leaf")

    inner = leaf()
    for _ in range(MAX_DEPTH):
        node = ir.node("If", [condition], {"then_branch": inner, "else_branch": leaf()})
        node.outputs[0].name = "o"
        inner = ir.Graph([], [node.outputs[0]], nodes=[node], name="g")
    outer = ir.node("If", [condition], {"then_branch": inner, "else_branch": leaf()})
    model.graph.append(outer)
    assert f"more than {MAX_DEPTH} deep" in refuse(model)


def test_an_unsorted_graph_is_no_fault_and_normalize_sorts_it() -> None:
    model = text("a = Relu(x) y = Neg(a)")
    first, second = model.graph
    model.graph.remove(first)
    model.graph.insert_after(second, first)
    check_model(model)
    normalize(model)
    assert [n.op_type for n in model.graph] == ["Relu", "Neg"]


def test_normalize_keeps_names_that_are_unique() -> None:
    model = text("a = Relu(x) b = Relu(a) c = Relu(b) y = Relu(c)")
    for node, name in zip(model.graph, ("Relu_0", "", "Relu_0", "last"), strict=True):
        node.name = name
    normalize(model)
    assert [n.name for n in model.graph] == ["Relu_0", "Relu_1", "Relu_0_0", "last"]


def test_functions_are_checked_too() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 9, opset_import: ["" : 18, "local" : 1]>
        g (float[3] x) => (float[3] y) { y = local.F(x) }
        <domain: "local", opset_import: ["" : 18]> F (a) => (b) { b = Relu(a) }"""
    )
    check_model(model)
    (function,) = model.functions.values()
    function[0].op_type = "Rellu"
    assert "node #0 (Rellu) in function 'F': ONNX has no operator of that name" in refuse(model)


def test_weights_that_are_not_finite_by_permission() -> None:
    model = zoo.build("tiny-mlp")
    value = model.graph.initializers["weight_0"]
    array = value.const_value.numpy().copy()  # type: ignore[union-attr]
    array.flat[7] = np.nan
    value.const_value = ir.tensor(array, name=value.name)
    assert "the weight 'weight_0' holds nan at [0, 7]" in refuse(model)
    check_model(model, allow_nonfinite=True)


def test_empty_inputs_by_permission() -> None:
    model = text("y = Relu(x)", "float[0,3] x", "float[0,3] y")
    assert "holds no elements" in refuse(model)
    check_model(model, allow_empty=True)


def test_denormal_weights_dead_channels_and_groups_are_fine() -> None:
    net = Builder("odd")
    x = net.input("x", (1, 6, 8, 8))
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    weight[0] = 0
    weight[1] *= np.float32(1e-40)
    y = net.op("Conv", x, net.constant(weight), group=2)
    ones = net.constant(np.ones(4, np.float32))
    zeros = net.constant(np.zeros(4, np.float32))
    net.output(net.op("BatchNormalization", y, ones, zeros, zeros, zeros), "y")
    model = net.model()
    check_model(model)
    infer_shapes(model)


def test_channels_and_windows_once_their_shapes_are_known() -> None:
    weight = ", ".join(["0.5"] * 20)
    convs = text(
        f"a = Relu(x) c = Constant<value = float[4,5,1,1] {{{weight}}}>() y = Conv(a, c)",
        "float[1,3,4,4] x",
        "float[A,B,C,D] y",
    )
    check_model(convs)
    with pytest.raises(FrontendError, match="made for 5 channels, but its input has 3"):
        infer_shapes(convs)
    pool = text("y = MaxPool<kernel_shape = [9, 9]>(x)", "float[1,3,4,4] x", "float[A,B,C,D] y")
    check_model(pool)
    with pytest.raises(FrontendError, match="negative dimension"):
        infer_shapes(pool)


def test_operands_that_can_not_be_broadcast() -> None:
    model = text("y = Where(c, x, z)", "bool[1] c, float[N,3] x, float[N,M] z", "float[N,K] y")
    check_shapes(model)
    model.graph.inputs[2].shape = ir.Shape(["N", 4])
    with pytest.raises(FrontendError, match="can't be broadcast"):
        check_shapes(model)
    model.graph.inputs[2].shape = ir.Shape([7, 1])
    check_shapes(model)


def test_impossible_branches_are_left_alone() -> None:
    """A branch that is never taken may be impossible: exporters write such."""
    model = text(
        """c = Constant<value_int = 1>() b = Cast<to = 9>(c)
        y = If(b) <then_branch = t () => (float[A,B,C,D] p) { p = MaxPool<kernel_shape = [9, 9]>(x) },
                   else_branch = e () => (float[A,B,C,D] r) { r = Neg(x) }>""",
        "float[1,3,4,4] x",
        "float[A,B,C,D] y",
    )
    check_model(model)
    infer_shapes(model)
    check_shapes(model)


def test_schemas() -> None:
    conv = schema_of("Conv", 18, "")
    assert conv is not None and (conv.min_inputs, conv.max_inputs) == (2, 3)
    assert conv.attributes["group"].type == "INT" and not conv.inputs[2].required
    assert schema_of("Upsample", 18, "") is None and schema_of("Gelu", 19, "") is None
    assert opset_range("com.microsoft") is None
    low, high = opset_range("") or (0, 0)
    assert low == 1 and high >= 23
