from __future__ import annotations

import time

import onnx_ir as ir
import pytest

from effc.core.errors import ConfigError, FrontendError
from effc.core.shapes import fix_shapes, infer_shapes


def graph(body: str, shape: str = "N,3,4", out: str = "float[a,b]") -> ir.Model:
    return ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["": 18]> g (float[{shape}] x) => ({out} y) {{ {body} }}'
    )


def made(model: ir.Model, name: str) -> list[int | str | None]:
    value = next(o for n in model.graph.all_nodes() for o in n.outputs if o.name == name)
    assert value.shape is not None
    return [d if isinstance(d, int) else d.value for d in value.shape]


def test_types_and_shapes_of_every_value() -> None:
    model = graph(
        "a = Transpose<perm = [0, 2, 1]>(x) b = Shape(a) c = Cast<to = 1>(b) y = Flatten(a)"
    )
    infer_shapes(model)
    assert made(model, "a") == ["N", 4, 3]
    assert made(model, "b") == [3]
    assert model.graph[1].outputs[0].dtype == ir.DataType.INT64
    assert model.graph[2].outputs[0].dtype == ir.DataType.FLOAT


def test_through_shape_arithmetic() -> None:
    body = """s = Shape(x) i = Constant<value_int = 0>() n = Gather(s, i) z = Constant<value_ints = [0]>()
      u = Unsqueeze(n, z) m = Constant<value_ints = [-1]>() t = Concat<axis = 0>(u, m)
      r = Reshape(x, t) e = Exp(r) y = Neg(e)"""
    model = graph(body)
    infer_shapes(model)
    assert made(model, "r")[1] == 12
    assert made(model, "e")[1] == 12
    model = graph(body, "5,3,4")
    infer_shapes(model)
    assert made(model, "e") == [5, 12]


def test_expand_to_a_shape_that_is_known_in_part() -> None:
    model = graph("s = Shape(x) o = Constant<value_float = 1.0>() e = Expand(o, s) y = Flatten(e)")
    infer_shapes(model)
    assert made(model, "e") == ["N", 3, 4]


def test_inside_subgraphs() -> None:
    model = ir.from_onnx_text("""<ir_version: 10, opset_import: ["": 18]>
    g (float[2,3] x, bool c) => (float[a,b] y) {
      z = Transpose(x)
      y = If(c) <then_branch = t () => (float[a,b] p) { q = Transpose(z) p = Exp(q) },
                 else_branch = e () => (float[a,b] r) { r = Identity(x) }> }""")
    infer_shapes(model)
    assert made(model, "q") == [2, 3]


def test_claims_of_the_model_are_replaced() -> None:
    model = graph("a = Exp(x) y = Flatten(a)")
    model.graph[0].outputs[0].shape = ir.Shape([7, 7])
    infer_shapes(model)
    assert made(model, "a") == ["N", 3, 4]


def test_a_contradiction_is_named() -> None:
    model = graph("a = Flatten(x) y = MatMul(a, a)", "2,3,4")
    with pytest.raises(FrontendError, match="MatMul"):
        infer_shapes(model)


@pytest.mark.parametrize(
    "bomb",
    [
        "c = ConstantOfShape<value = int64[1] {3}>(n)",
        "c = Expand(one, n)",
        "c = Tile(one, n)",
        "c = Range(zero, many, step)",
        "square = Mul(many, many) c = Range(zero, square, step)",
        "c0 = Identity(n)" + "".join(f" c{i + 1} = Concat<axis = 0>(c{i}, c{i})" for i in range(32))
        + " c = Identity(c32)",
    ],
    ids=["ConstantOfShape", "Expand", "Tile", "Range", "computed Range", "Concat"],
)  # fmt: skip
def test_integers_are_not_propagated_without_bound(bomb: str) -> None:
    model = graph(f"""n = Constant<value_ints = [3000000000]>() one = Constant<value_ints = [1]>()
      zero = Constant<value_int = 0>() many = Constant<value_int = 3000000000>()
      step = Constant<value_int = 1>() {bomb} d = Cast<to = 1>(c) m = ReduceMax<keepdims = 0>(d)
      f = Flatten(x) y = Mul(f, m)""")
    start = time.perf_counter()
    with pytest.raises(FrontendError, match=r"over 2\^31 elements"):
        infer_shapes(model)
    assert time.perf_counter() - start < 1


def test_fix_shapes() -> None:
    model = graph("y = Flatten(x)")
    fix_shapes(model, {"x": (7, 3, 4)})
    infer_shapes(model)
    assert made(model, "y") == [7, 12]
    with pytest.raises(ConfigError, match="contradicts"):
        fix_shapes(model, {"x": (8, 3, 4)})
    with pytest.raises(ConfigError, match="no input"):
        fix_shapes(model, {"z": (1,)})
