"""Programs: kernels shared, names kept, refusals complete, and models computed right."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

pytest.importorskip("tvm")

from effc.backends.tvm.isa import host_isa  # noqa: E402
from effc.backends.tvm.lower import lower  # noqa: E402
from effc.backends.tvm.program import Program  # noqa: E402
from effc.core.errors import UnsupportedOpError  # noqa: E402

Make = Callable[..., Any]

Same = Callable[..., Program]


def test_equal_structures_share_a_kernel(model_of: Make, weights: Make) -> None:
    body, value = "", "x"
    for i in range(4):
        body += (
            f" c{i} = Conv<pads=[1,1,1,1]>({value}, w{i}) {'y' if i == 3 else f'r{i}'} = Relu(c{i})"
        )
        value = f"r{i}"
    shapes = {f"w{i}": (32, 32, 3, 3) for i in range(4)}
    model = model_of(
        f"g (float[1,32,8,8] x) => (float[1,32,8,8] y) {{ {body} }}",
        weights(**shapes),
    )
    program = lower(model, host_isa())
    convs = [c for c in program.calls if c.template == "conv"]
    assert len(convs) == 4
    # the first reads the caller's row-major input
    assert len({c.kernel for c in convs}) == 2


def test_calls_name_their_nodes(model_of: Make, weights: Make) -> None:
    model = model_of(
        "g (float[1,16,8,8] x) => (float[1,16,8,8] y) { a = Conv(x, w) y = Relu(a) }",
        weights(w=(16, 16, 1, 1)),
    )
    for node, name in zip(model.graph, ("stem", "act"), strict=True):
        node.name = name
    calls = lower(model, host_isa()).calls
    assert [c.nodes for c in calls if c.template == "conv"] == [("stem", "act")]


def test_the_model_is_left_alone(model_of: Make, weights: Make) -> None:
    model = model_of(
        "g (float[1,16,8,8] x) => (float[1,16,8,8] y) { y = Conv(x, w) }",
        weights(w=(16, 16, 1, 1)),
    )
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    lower(model, host_isa())
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_all_problems_are_listed_at_once(model_of: Make) -> None:
    model = model_of(
        """g (float[1,16,8,8] x, float[16,16,1,1] w, int64[2] s) => (float[1,16,8,8] y) {
            a = Conv(x, w)
            b = Relu(a)
            c = Det(b)
            d = Unsqueeze(c, ax)
            y = Add(b, d)
        }""",
        {"ax": np.array([2, 3])},
    )
    for i, node in enumerate(model.graph):
        node.name = f"n{i}"
    with pytest.raises(UnsupportedOpError) as error:
        lower(model, host_isa(), "host")
    problems = error.value.problems
    assert [(p.node, p.op) for p in problems] == [("n0", "Conv"), ("n2", "Det")]
    assert "run time" in problems[0].reason
    assert all(p.remedy for p in problems)
    assert "and 1 more" in str(error.value)


@pytest.mark.parametrize(
    "body",
    [
        "y = BatchNormalization(x, s, b, m, v)",
        "a = Clip(x, lo, hi) y = Mul(a, s4)",
        "f = Sigmoid(x) y = Mul(x, f)",
        "f = GlobalAveragePool(x) g = Sigmoid(f) y = Mul(x, g)",
        "f = Transpose<perm=[0,2,3,1]>(x) g = Add(f, s) y = Transpose<perm=[0,3,1,2]>(g)",
        "f = Conv<pads=[1,1,1,1]>(x, w) g = PRelu(f, s3) h = Conv(g, u) y = Sub(h, x)",
        "f = Conv(x, u) g = Softmax<axis=1>(f) y = Mul(g, x)",
    ],
)
def test_small_graphs(same: Same, body: str, model_of: Make, weights: Make) -> None:
    rng = np.random.default_rng(1)
    constants = {
        **weights(w=(20, 20, 3, 3), u=(20, 20, 1, 1), s=(20,), b=(20,), m=(20,)),
        "v": rng.uniform(0.5, 2, 20).astype(np.float32),
        "s3": rng.uniform(-1, 1, (20, 1, 1)).astype(np.float32),
        "s4": rng.uniform(-1, 1, (1, 20, 1, 1)).astype(np.float32),
        "lo": np.float32(-0.5),
        "hi": np.float32(0.5),
    }
    used = {k: constants[k] for k in re.findall(r"\w+", body) if k in constants}
    same(model_of(f"g (float[1,20,7,9] x) => (float[1,20,7,9] y) {{ {body} }}", used), threads=2)


@pytest.mark.parametrize(
    "body",
    [
        "y = Gemm<alpha=0.5, beta=2.0>(x, w, b)",
        "y = Gemm<transB=1>(x, t, r)",
        "y = Gemm(x, w, z)",
        "a = MatMul(x, w) c = Add(a, b) y = Relu(c)",
        "y = Gemm(x, w)",
    ],
)
def test_products(same: Same, body: str, model_of: Make, weights: Make) -> None:
    constants = weights(w=(12, 10), t=(10, 12), b=(10,), r=(5, 10))
    used = {k: constants[k] for k in re.findall(r"\w+", body) if k in constants}
    second = ", float[5,10] z" if " z)" in body else ""
    same(model_of(f"g (float[5,12] x{second}) => (float[5,10] y) {{ {body} }}", used))


def test_products_of_two_activations_and_of_vectors(same: Same, model_of: Make) -> None:
    model = model_of(
        """g (float[2,3,5,4] a, float[3,4,6] b, float[6] v) => (float[2,3,5] y) {
            c = MatMul(a, b)
            y = MatMul(c, v)
        }"""
    )
    same(model)


def test_ten_thousand_nodes_are_planned_in_linear_time() -> None:
    """Twice the nodes take about twice the time (kernels are shared, so code does not grow)."""

    def seconds(count: int) -> float:
        nodes, value = [], "x"
        for i in range(count):
            op, inputs = ("Conv", [value, "w"]) if i % 2 == 0 else ("Relu", [value])
            nodes.append(onnx.helper.make_node(op, inputs, [f"v{i}"], name=f"n{i}"))
            value = f"v{i}"
        info = onnx.helper.make_tensor_value_info
        weight = np.full((16, 16, 1, 1), 0.05, np.float32)
        graph = onnx.helper.make_graph(
            nodes,
            "g",
            [info("x", onnx.TensorProto.FLOAT, (1, 16, 4, 4))],
            [info(value, onnx.TensorProto.FLOAT, (1, 16, 4, 4))],
            [onnx.numpy_helper.from_array(weight, "w")],
        )
        proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
        model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
        start = time.perf_counter()
        program = lower(model, host_isa())
        assert len(program.kernels) <= 3
        return time.perf_counter() - start

    small, large = seconds(1000), seconds(4000)
    assert large < 8 * small
