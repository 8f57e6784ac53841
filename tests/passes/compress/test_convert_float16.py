"""Half precision: within 1e-2 of float32, never an overflow, few casts, and a reason for what stays."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from effc.core.errors import ConfigError
from effc.core.passinfra import PassContext
from effc.core.reference import OnnxRuntimeRunner, random_feeds
from effc.core.shapes import infer_shapes
from effc.passes.compress.convert_float16 import ConvertFloat16
from effc.passes.compress.report import COMPRESSION

Run = Callable[..., ir.Model]


def parse(body: str, **arrays: np.ndarray) -> ir.Model:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 23]> {body}')
    for name, array in arrays.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = ir.from_proto(proto)
    infer_shapes(model)
    return model


def answer(model: ir.Model, feeds: dict[str, Any]) -> dict[str, np.ndarray]:
    with OnnxRuntimeRunner(model, optimize=False) as runner:
        return runner.infer(feeds)


def facts(model: ir.Model) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(model.metadata_props[COMPRESSION])["convert-float16"][-1]
    return found


def test_a_network_is_half_between_two_casts(model: ir.Model, run: Run, samples: Any) -> None:
    half = run(model, ConvertFloat16(), samples)
    kinds = [n.op_type for n in half.graph]
    assert kinds.count("Cast") == facts(half)["casts"] == 2
    assert facts(half)["half"] == len(model.graph)
    assert not facts(half)["kept"]
    assert all(o.dtype == ir.DataType.FLOAT for o in (*half.graph.inputs, *half.graph.outputs))
    assert all(v.dtype != ir.DataType.FLOAT for v in half.graph.initializers.values())
    feeds = next(iter(samples))
    right, found = answer(model, feeds)["y"], answer(half, feeds)["y"]
    assert 0 < np.abs(right - found).max() < 1e-2 * np.abs(right).max()


def test_inputs_and_outputs_in_half(model: ir.Model, run: Run, samples: Any) -> None:
    half = run(model, ConvertFloat16(io="half"), samples)
    assert "Cast" not in {n.op_type for n in half.graph}
    feeds = next(iter(samples))
    found = answer(half, {"x": feeds["x"].astype(np.float16)})["y"]
    assert found.dtype == np.float16
    right = answer(model, feeds)["y"]
    assert np.abs(right - found).max() < 1e-2 * np.abs(right).max()


OVERFLOWS = """g (float[1,8,6,6] x) => (float[1,8,6,6] y, float[1,8,6,6] z) {
  c = Conv<pads=[1,1,1,1]>(x, w)
  big = Mul(c, thousand)
  square = Pow(big, two)
  mean = ReduceMean<keepdims=1>(square, axes)
  safe = Add(mean, eps)
  root = Sqrt(safe)
  normal = Div(big, root)
  d = Conv<pads=[1,1,1,1]>(normal, w)
  y = Relu(d)
  z = Relu(c)
}"""


def overflowing() -> ir.Model:
    rng = np.random.default_rng(0)
    return parse(
        OVERFLOWS,
        w=(rng.standard_normal((8, 8, 3, 3)) / 8).astype(np.float32),
        thousand=np.array(1000, np.float32),
        two=np.array(2, np.float32),
        eps=np.array(1e-9, np.float32),
        axes=np.array([1], np.int64),
    )


def test_a_variance_that_overflows_stays_finite(run: Run) -> None:
    model = overflowing()
    feeds = random_feeds(model, 1)[0]
    naive = answer(model, feeds)
    half = run(model, ConvertFloat16())
    found = answer(half, feeds)
    for name, right in naive.items():
        assert np.isfinite(found[name]).all()
        assert np.abs(right - found[name]).max() < 1e-2 * np.abs(right).max()
    kept = facts(half)["kept"]
    assert {"square", "mean", "safe", "root"} <= {*kept, *facts(half)["followed"]}
    assert "reaches" in kept["square"]
    types = {str(o.name): o.dtype for n in half.graph for o in n.outputs}
    assert types["c"] == types["d"] == ir.DataType.FLOAT16  # convolutions are worth casts
    for name in ("square", "mean", "safe"):
        assert types[name] == ir.DataType.FLOAT


@pytest.mark.parametrize(
    ("body", "arrays", "reason"),
    [
        ("y = Softmax(x)", {}, "Softmax loses"),
        ("y = Add(x, e)", {"e": np.full(4, 1e-9, np.float32)}, "loses 1e"),
        ("y = Add(x, e)", {"e": np.full(4, 1e6, np.float32)}, "reaches 1e"),
        ("y = Mul(x, e)", {"e": np.full(4, 1e-5, np.float32)}, "few bits"),
        ("y = Mul(x, e)", {"e": np.full(4, 3e4, np.float32)}, "'y' reaches"),
        ("y = MatMul(x, w)", {"w": np.full((4, 4), 2e4, np.float32)}, "'y' reaches|sums may reach"),
        ("y = LayerNormalization(x, s)", {"s": np.ones(4, np.float32)}, "LayerNormalization loses"),
    ],
)
def test_reasons_to_stay(body: str, arrays: dict[str, np.ndarray], reason: str) -> None:
    import re

    model = parse(f"g (float[4,4] x) => (float[4,4] y) {{ {body} }}", **arrays)
    model.graph[0].name = "it"
    feeds = random_feeds(model, 1)[0]
    right = answer(model, feeds)["y"]
    assert ConvertFloat16().run(model, PassContext()) == 0
    assert re.search(reason, facts(model)["kept"]["it"])
    np.testing.assert_array_equal(answer(model, feeds)["y"], right)


def test_sums_inside_count_where_signs_hide_them() -> None:
    """The result is small, what it is the difference of is not."""
    w = np.concatenate([np.full((64, 8), 900.0), np.full((64, 8), -900.0)]).astype(np.float32)
    body = (
        "g (float[4,4] x) => (float[4,8] y) { r = Expand(x, s) f = Reshape(r, t) y = MatMul(f, w) }"
    )
    model = parse(body, w=w, s=np.array([32, 4, 4]), t=np.array([4, 128]))
    model.graph[2].name = "it"
    ConvertFloat16().run(model, PassContext())
    assert "sums may reach" in facts(model)["kept"]["it"]


def test_cheap_operators_follow(run: Run) -> None:
    """A Relu between two operators that stay costs two casts in half precision, and none in single."""
    body = "g (float[4,8] x) => (float[4,8] y) { a = Softmax(x) b = Relu(a) y = Softmax(b) }"
    made = run(parse(body), ConvertFloat16())
    assert [n.op_type for n in made.graph] == ["Softmax", "Relu", "Softmax"]
    assert facts(made)["followed"] == ["b"]


def test_resize_keeps_its_scales_in_float32(run: Run) -> None:
    body = """g (float[1,3,4,4] x) => (float[1,3,8,8] y) {
      c = Conv<pads=[1,1,1,1]>(x, w)
      y = Resize<mode="linear">(c, , scales)
    }"""
    w = np.random.default_rng(0).standard_normal((3, 3, 3, 3)).astype(np.float32)
    model = parse(body, w=w, scales=np.array([1, 1, 2, 2], np.float32))
    feeds = random_feeds(model, 1)[0]
    made = run(model, ConvertFloat16())
    assert facts(made)["half"] == 2
    right = answer(model, feeds)["y"]
    assert np.abs(answer(made, feeds)["y"] - right).max() < 1e-2 * np.abs(right).max()


@pytest.mark.parametrize(("dtype", "bound"), [("float16", 5e-4), ("bfloat16", 4e-3)])
def test_weights_alone(
    model: ir.Model, run: Run, weight_of: Callable[..., np.ndarray], dtype: str, bound: float
) -> None:
    made = run(model, ConvertFloat16(dtype=dtype, compute="single"))
    assert [n.op_type for n in made.graph].count("Cast") == 4
    for name in ("c1", "c2", "c3", "y"):
        before, after = weight_of(model, name), weight_of(made, name)
        assert not np.array_equal(before, after)
        np.testing.assert_allclose(after, before, rtol=bound, atol=1e-7)


def test_named_nodes_stay(model: ir.Model, run: Run, samples: Any) -> None:
    for node in model.graph:
        node.name = f"node_{node.outputs[0].name}"
    made = run(model, ConvertFloat16(keep=("node_c3",)), samples)
    types = {str(o.name): o.dtype for n in made.graph for o in n.outputs}
    assert types["c3"] == ir.DataType.FLOAT
    assert types["c2"] == ir.DataType.FLOAT16
    assert facts(made)["kept"] == {"node_c3": "it is named in keep"}


def test_other_copies_of_the_model_keep_their_types(model: ir.Model, samples: Any) -> None:
    copy = model.clone()
    ConvertFloat16(io="half").run(copy, PassContext(samples=samples))
    assert model.graph.inputs[0].dtype == model.graph.outputs[0].dtype == ir.DataType.FLOAT
    assert all(o.dtype == ir.DataType.FLOAT for n in model.graph for o in n.outputs)


@pytest.mark.parametrize(
    "options",
    [{"dtype": "fp8"}, {"io": "out"}, {"compute": "int8"}, {"margin": 0.5},
     {"dtype": "bfloat16", "io": "half"}],
)  # fmt: skip
def test_options_out_of_range(model: ir.Model, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="convert-float16"):
        ConvertFloat16(**options).run(model, PassContext())


def test_a_sum_between_quantized_values_is_half_where_their_casts_cost_nothing(run: Run) -> None:
    body = """g (int8[2,3] a, int8[2,3] b) => (int8[2,3] y)
        <float s = {0.02}, float t = {0.05}, int8 zero = {0}> {
            p = DequantizeLinear (a, s, zero)
            q = DequantizeLinear (b, t, zero)
            r = Add (p, q)
            m = Relu (r)
            y = QuantizeLinear (m, t, zero)
        }"""
    free = run(parse(body), ConvertFloat16(integers="free"))
    halves = [n.op_type for n in free.graph if n.outputs[0].dtype == ir.DataType.FLOAT16]
    assert halves == ["Cast", "Cast", "Add", "Relu"]
    infer_shapes(free)
    kept = run(parse(body), ConvertFloat16())
    assert all(n.outputs[0].dtype != ir.DataType.FLOAT16 for n in kept.graph)
    rng = np.random.default_rng(0)
    feeds = {k: rng.integers(-128, 128, (2, 3)).astype(np.int8) for k in "ab"}
    found, wanted = answer(free, feeds)["y"], answer(kept, feeds)["y"]
    assert np.abs(found.astype(int) - wanted.astype(int)).max() <= 1 and wanted.any()
    with pytest.raises(ConfigError, match="cast or free"):
        run(parse(body), ConvertFloat16(integers="no"))
