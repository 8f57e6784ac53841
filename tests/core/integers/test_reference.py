"""The executor: values by name, every kind of node, errors that name the node."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from effc.core.errors import FrontendError
from effc.core.integers import DOMAIN
from effc.core.integers.reference import run


def value(name: str, dtype: ir.DataType, shape: list[int]) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))


def constant(name: str, array: np.ndarray) -> ir.Value:
    made = ir.Value(
        name=name,
        const_value=ir.tensor(array, name=name),
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
    )
    return made


def model() -> ir.Model:
    """x float [1, 2, 4, 4] -> Q -> MaxPool of bytes -> Requantize -> DQ, Relu."""
    x = value("x", ir.DataType.FLOAT, [1, 2, 4, 4])
    scale, zero = constant("s", np.float32(0.5).reshape(())), constant("z", np.uint8(8).reshape(()))
    q = ir.node("QuantizeLinear", [x, scale, zero], name="q")
    pool = ir.node("MaxPool", [q.outputs[0]], {"kernel_shape": [2, 2], "strides": [2, 2]}, name="p")
    again = ir.node(
        "Requantize",
        [pool.outputs[0]],
        {"multiplier": 2.0, "x_zero_point": 8, "y_zero_point": 1, "low": 1, "high": 9, "to": 2},
        domain=DOMAIN,
        name="r",
    )
    real = ir.node("DequantizeLinear", [again.outputs[0], scale], name="d")
    nodes = [q, pool, again, real]
    for node in nodes:
        node.outputs[0].name = f"{node.name}_out"
    graph = ir.Graph(
        [x], [real.outputs[0]], nodes=nodes, initializers=[scale, zero],
        opset_imports={"": 23, DOMAIN: 1}, name="g",
    )  # fmt: skip
    return ir.Model(graph, ir_version=10)


def test_run() -> None:
    made = model()
    x = np.zeros((1, 2, 4, 4), np.float32)
    x[0, 0, 0, 0], x[0, 1, 3, 3] = 1.5, 40.0
    found = run(made, {"x": x}, values=["x", "p_out", "r_out"])
    assert sorted(found) == ["d_out", "p_out", "r_out", "x"]
    assert found["p_out"].dtype == np.uint8
    np.testing.assert_array_equal(found["p_out"][0, :, [0, 1], [0, 1]], [[11, 8], [8, 88]])
    np.testing.assert_array_equal(found["r_out"][0, :, [0, 1], [0, 1]], [[7, 1], [1, 9]])
    np.testing.assert_array_equal(found["d_out"], found["r_out"] * np.float32(0.5))
    np.testing.assert_array_equal(found["x"], x)


def test_any_batch_through_the_same_kernels() -> None:
    made = model()
    x = np.random.default_rng(0).normal(0, 3, (3, 2, 4, 4)).astype(np.float32)
    whole = run(made, {"x": x})["d_out"]
    parts = [run(made, {"x": x[i : i + 1]})["d_out"] for i in range(3)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_errors_name_the_node() -> None:
    made = model()
    with pytest.raises(FrontendError, match="input 'x' is not fed"):
        run(made, {})
    with pytest.raises(FrontendError, match="no node makes nothing"):
        run(made, {"x": np.zeros((1, 2, 4, 4), np.float32)}, values=["nothing"])
    with pytest.raises(FrontendError, match="node 'q'"):
        run(made, {"x": np.zeros((1, 2, 4, 4), np.complex64)})
    next(n for n in made.graph if n.name == "r").attributes.pop("multiplier")
    with pytest.raises(FrontendError, match="node 'r'"):
        run(made, {"x": np.zeros((1, 2, 4, 4), np.float32)})
