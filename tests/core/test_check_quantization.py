"""The linter: what schemes allow passes, and every rule refuses its own kind of wrong placement by node."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from effc.core.check_quantization import check_quantization
from effc.core.errors import UnsupportedOpError
from effc.core.ir import add_const
from effc.core.passinfra import PassContext
from effc.core.quant import dequantized_constant, insert_pair, make_params
from effc.core.schemes import scheme
from effc.core.shapes import infer_shapes
from effc.passes.quantize.lint_quantization import LintQuantization

RNG = np.random.default_rng(0)
UINT8, INT8, INT32, INT16 = (getattr(ir.DataType, n) for n in ("UINT8", "INT8", "INT32", "INT16"))


def block() -> ir.Model:
    """x -> conv -> relu -> pool -> add(., conv2(pool)) -> y; conv has a bias."""
    model = ir.from_onnx_text("""<ir_version: 10, opset_import: ["": 23]>
        g (float[1,4,8,8] x) => (float[1,4,4,4] y) {
            c = Conv (x, w, b)
            r = Relu (c)
            p = MaxPool <kernel_shape=[2,2], strides=[2,2]> (r)
            k = Concat <axis=1> (p)
            d = Conv (k, v)
            y = Add (d, p)
        }""")
    for name, shape in {"w": (4, 4, 1, 1), "b": (4,), "v": (4, 4, 1, 1)}.items():
        value = add_const(model.graph, name, RNG.standard_normal(shape).astype(np.float32))
        for node in model.graph:
            for index, old in enumerate(node.inputs):
                if old is not None and old.name == name and old is not value:
                    node.replace_input_with(index, value)
    for node in model.graph:
        node.name = f"node_{node.outputs[0].name}"
    infer_shapes(model)
    return model


class Wrong:
    """Puts quantizers into `block()`."""

    def __init__(self) -> None:
        self.model = block()
        self.graph = self.model.graph
        self.nodes = {str(n.name): n for n in self.graph}

    def value(self, name: str) -> ir.Value:
        found = [*self.graph.inputs, *self.graph.initializers.values()]
        found += [o for n in self.graph for o in n.outputs]
        return next(v for v in found if v.name == name)

    def pair(
        self, name: str, *users: str, dtype: ir.DataType = INT8, scale: float = 0.1, zero: int = 0
    ) -> Wrong:
        chosen = [self.nodes[f"node_{u}"] for u in users] or None
        insert_pair(self.value(name), make_params(dtype, scale, zero), users=chosen)
        return self

    def constant(self, name: str, user: str, dtype: ir.DataType = INT8, axis: int = 0, scale: object = None,
                 zero: int = 0) -> Wrong:  # fmt: skip
        value = self.value(name)
        array = value.const_value.numpy()  # type: ignore[union-attr]
        scales = np.full(array.shape[axis], 0.05, np.float32) if scale is None else scale
        params = make_params(dtype, scales, zero, axis=axis)
        dequantized_constant(
            self.graph, name, params.quantize(array), params, users=[self.nodes[f"node_{user}"]], old=value
        )  # fmt: skip
        return self

    def conv(self) -> Wrong:
        return self.pair("x", "c").constant("w", "c")


CASES: list[tuple[str, Callable[[Wrong], Wrong], str, str]] = [
    (
        "tensorrt",
        lambda m: m.pair("x", "c", dtype=UINT8).constant("w", "c"),
        "x/quantized",
        "to INT8",
    ),
    (
        "tensorrt",
        lambda m: m.pair("x", "c", zero=3).constant("w", "c"),
        "x/quantized",
        "symmetrically",
    ),
    (
        "coreml",
        lambda m: m.pair("x", "c", zero=3).constant("w", "c"),
        "x/dequantized",
        "symmetrically",
    ),
    (
        "integer",
        lambda m: m.pair("x", "c", dtype=UINT8).constant("w", "c"),
        "x/quantized",
        "to INT8",
    ),
    (
        "vnni",
        lambda m: m.pair("x", "c", dtype=INT16).constant("w", "c"),
        "x/quantized",
        "UINT8 or INT8",
    ),
    (
        "vnni",
        lambda m: m.pair("x", "c").constant("w", "c", UINT8, zero=128),
        "w/dequantized",
        "weights",
    ),
    (
        "vnni",
        lambda m: m.pair("x", "c").constant("w", "c", zero=3),
        "w/dequantized",
        "symmetrically",
    ),
    ("tensorrt", lambda m: m.pair("x", "c").constant("w", "c", axis=1), "node_c", "axis 1"),
    ("vnni", lambda m: m.pair("x", "c").constant("w", "c", axis=1), "node_c", "axis 1"),
    ("tensorrt", lambda m: m.pair("x", "c"), "node_c", "its weight is float"),
    (
        "tensorrt",
        lambda m: m.conv().constant("b", "c", INT32, scale=np.full(4, 0.005)),
        "node_c",
        "bias",
    ),
    (
        "coreml",
        lambda m: m.conv().constant("b", "c", INT32, scale=np.full(4, 0.005)),
        "node_c",
        "bias",
    ),
    (
        "vnni",
        lambda m: m.conv().constant("b", "c", INT32, scale=np.full(4, 0.006)),
        "node_c",
        "sx * sw",
    ),
    (
        "vnni",
        lambda m: m.conv().constant("b", "c", INT8, scale=np.full(4, 0.005)),
        "node_c",
        "int32",
    ),
    (
        "vnni",
        lambda m: m.conv().constant("b", "c", INT32, scale=np.full(4, 0.005), zero=1),
        "node_c",
        "int32",
    ),
    ("tensorrt", lambda m: m.conv().pair("c", "r"), "node_r", "between a node and the Relu"),
    ("tensorrt", lambda m: m.pair("d", "y").pair("p", "y"), "node_y", "residual"),
    ("coreml", lambda m: m.pair("r", "p").pair("p", scale=0.2), "node_p", "only moves"),
    ("integer", lambda m: m.pair("r", "p").pair("p", zero=5), "node_p", "only moves"),
    ("vnni", lambda m: m.pair("p", "k").pair("k", scale=0.2), "node_k", "Concat"),
    ("tensorrt", lambda m: m.pair("p", "k").pair("k", scale=0.2), "node_k", "Concat"),
    ("integer", lambda m: m.conv(), "node_y", "inputs and outputs of the model"),
    (
        "vnni",
        lambda m: m.pair("x", "c", scale=0.0).constant("w", "c"),
        "x/quantized",
        "not positive",
    ),
    (
        "vnni",
        lambda m: m.pair("x", "c", scale=float("nan")).constant("w", "c"),
        "x/quantized",
        "not positive",
    ),
]


@pytest.mark.parametrize(("name", "make", "node", "words"), CASES)
def test_a_wrong_placement_is_refused_with_node_and_rule(
    name: str, make: Callable[[Wrong], Wrong], node: str, words: str
) -> None:
    wrong = make(Wrong())
    problems = check_quantization(wrong.graph, scheme(name))
    assert any(p.node == node and words in p.reason and p.remedy for p in problems), problems
    with pytest.raises(UnsupportedOpError, match=f"scheme {name} can't take node"):
        LintQuantization(scheme=name).run(wrong.model, PassContext())


RIGHT: list[tuple[str, Callable[[Wrong], Wrong]]] = [
    ("tensorrt", lambda m: m.conv().pair("k", "d").constant("v", "d").pair("p", "y")),
    ("tensorrt", lambda m: m.constant("w", "c")),  # weight only
    ("vnni", lambda m: m.pair("x", "c", dtype=UINT8, zero=7).constant("w", "c").constant(
        "b", "c", INT32, scale=np.full(4, 0.005))),
    ("vnni", lambda m: m.conv()),  # int8 activations, as onnxruntime's quantize_static writes them
    ("ort", lambda m: m.pair("p", "k").pair("k", scale=0.2)),  # its Concat requantizes
    ("coreml", lambda m: m.conv().pair("r", "p", scale=0.2).pair("p", scale=0.2)),
    ("coreml", lambda m: m.constant("w", "c", scale=np.float32(0.1))),  # one scale for a weight
]  # fmt: skip


@pytest.mark.parametrize(("name", "make"), RIGHT)
def test_what_a_scheme_allows_passes(name: str, make: Callable[[Wrong], Wrong]) -> None:
    right = make(Wrong())
    assert not check_quantization(right.graph, scheme(name))
    assert LintQuantization(scheme=name).run(right.model, PassContext()) == 0


def test_parameters_computed_at_run_time_are_refused() -> None:
    model = ir.from_onnx_text("""<ir_version: 10, opset_import: ["": 23]>
        g (float[4] x, float s) => (float[4] y) { q = QuantizeLinear (x, s)  y = DequantizeLinear (q, s) }""")
    model.graph[0].name = "q"
    problems = check_quantization(model.graph, scheme("vnni"))
    assert problems[0].node == "q" and "computed" in problems[0].reason


def test_a_float_model_is_clean_but_where_all_is_integer() -> None:
    for name in ("vnni", "ort", "tensorrt", "coreml"):
        assert not check_quantization(block().graph, scheme(name))
    nodes = [p.node for p in check_quantization(block().graph, scheme("integer"))]
    assert nodes == ["node_c", "node_y"]
