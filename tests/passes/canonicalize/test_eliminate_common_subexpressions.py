from __future__ import annotations

import numpy as np
import onnx_ir as ir

from effc import passes
from effc.core.ir import add_const
from effc.core.passinfra import PassContext

PIPELINE = "lift-constants,eliminate-common-subexpressions"


def ops(model: ir.Model) -> list[str]:
    return [n.op_type for n in model.graph]


def graph(body: str) -> str:
    return (
        f'<ir_version: 10, opset_import: ["": 23]> g (float[2,3] x) => (float[2,3] y) {{ {body} }}'
    )


def test_a_chain_collapses(apply) -> None:
    body = "a = Exp(x) b = Exp(x) c = Neg(a) d = Neg(b) y = Add(c, d)"
    assert ops(apply(PIPELINE, graph(body))) == ["Exp", "Neg", "Add"]


def test_attributes_tell_apart(apply) -> None:
    body = (
        "a = Elu<alpha = 1.0>(x) b = Elu<alpha = 1.5>(x) c = Elu<alpha = 1.0>(x) y = Sum(a, b, c)"
    )
    assert ops(apply(PIPELINE, graph(body), exact=False)) == ["Elu", "Elu", "Sum"]


def test_inputs_are_not_commuted(apply) -> None:
    body = "n = Neg(x) a = Sub(x, n) b = Sub(n, x) y = Mul(a, b)"
    assert ops(apply(PIPELINE, graph(body))) == ["Neg", "Sub", "Sub", "Mul"]


def test_outputs_stay_apart(apply) -> None:
    text = """<ir_version: 10, opset_import: ["": 23]> g (float[2] x) => (float[2] y, float[2] z)
      { y = Exp(x) z = Exp(x) }"""
    assert ops(apply(PIPELINE, text)) == ["Exp", "Exp"]


def test_an_output_and_an_inner_value_share(apply) -> None:
    text = """<ir_version: 10, opset_import: ["": 23]> g (float[2] x) => (float[2] y, float[2] z)
      { a = Exp(x) z = Neg(a) y = Exp(x) }"""
    model = apply(PIPELINE, text)
    assert ops(model) == ["Exp", "Neg"]
    assert [v.name for v in model.graph.outputs] == ["y", "z"]


def test_random_and_subgraphs_stay() -> None:

    model = ir.from_onnx_text(
        graph("a = RandomNormalLike(x) b = RandomNormalLike(x) y = Add(a, b)")
    )
    passes.parse(PIPELINE).run(model, PassContext())
    assert ops(model) == ["RandomNormalLike", "RandomNormalLike", "Add"]


def test_equal_initializers_are_shared(apply) -> None:
    body = """a = Constant<value_floats = [1.0, 2.0, 3.0]>() b = Constant<value_floats = [1.0, 2.0, 3.0]>()
      c = Constant<value_floats = [1.0, 2.0, 4.0]>() p = Add(x, a) q = Add(p, b) y = Add(q, c)"""
    assert len(apply(PIPELINE, graph(body)).graph.initializers) == 2


def test_zeros_of_both_signs_and_types_stay_apart(apply) -> None:
    body = """a = Constant<value_floats = [0.0, 0.0, 0.0]>() b = Constant<value_floats = [-0.0, -0.0, -0.0]>()
      c = Constant<value = int32[3] {0, 0, 0}>() d = Cast<to = 1>(c)
      p = Div(x, a) q = Div(x, b) r = Add(p, d) y = Mul(r, q)"""
    assert len(apply(PIPELINE, graph(body)).graph.initializers) == 3


def test_large_initializers_that_differ_between_the_samples() -> None:

    model = ir.from_onnx_text(graph("y = Tanh(x)"))
    zeros = np.zeros(100_000, np.float32)
    other = zeros.copy()
    other[5_000] = 1
    values = [add_const(model.graph, "w", a) for a in (zeros, other, zeros.copy())]
    total = ir.node("Sum", values)
    model.graph.append(total)
    model.graph.outputs.append(total.outputs[0])
    passes.parse(PIPELINE).run(model, PassContext())
    assert len(model.graph.initializers) == 2
    assert total.inputs[0] is total.inputs[2] is not total.inputs[1]


def test_lazy_weights_stay_lazy() -> None:

    loaded: list[str] = []

    def lazy(name: str, size: int) -> ir.LazyTensor:
        def make() -> ir.Tensor:
            loaded.append(name)
            return ir.Tensor(np.full(size, len(name), np.float32))

        return ir.LazyTensor(make, ir.DataType.FLOAT, ir.Shape([size]), name=name, cache=False)

    model = ir.from_onnx_text(graph("y = Tanh(x)"))
    for name, size in (("a", 1000), ("bb", 2000)):
        tensor = lazy(name, size)
        value = ir.Value(
            name=name, const_value=tensor, shape=tensor.shape, type=ir.TensorType(tensor.dtype)
        )
        model.graph.register_initializer(value)
        node = ir.node("Exp", [value])
        model.graph.append(node)
        model.graph.outputs.append(node.outputs[0])
    passes.parse(PIPELINE).run(model, PassContext())
    assert loaded == []
