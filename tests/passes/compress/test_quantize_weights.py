"""Weights as integers and scales: what is stored means what it should, and errors are within half a unit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from effc import passes
from effc.core.errors import ConfigError
from effc.core.grids import find_groups
from effc.core.ir import const
from effc.core.passinfra import PassContext
from effc.core.quant import quant_params
from effc.passes.compress.quantize_weights import QuantizeWeights

Run = Callable[..., ir.Model]
Weights = Callable[[ir.Model, str], np.ndarray]
LAYERS = ("c1", "c2", "c3")


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "block"), [(8, 0), (4, 0), (4, 8), (4, 16), (3, 32), (6, 16)])
def test_stored_integers_stand_for_the_weights(
    model: ir.Model, run: Run, weight_of: Weights, bits: int, block: int, symmetric: bool
) -> None:
    made = run(model, QuantizeWeights(bits=bits, block=block, symmetric=symmetric, fit=0))
    nodes = [n for n in made.graph if n.op_type == "DequantizeLinear"]
    assert len(nodes) == 3
    for name, node in zip(LAYERS, nodes, strict=True):
        params, stored = quant_params(node), const(node.inputs[0])
        assert params is not None and stored is not None
        before, after = weight_of(model, name), weight_of(made, name)
        np.testing.assert_array_equal(params.dequantize(stored), after)
        low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if symmetric else (0, (1 << bits) - 1)
        assert low <= stored.astype(int).min() and stored.astype(int).max() <= high
        assert params.symmetric == symmetric or not params.zero_point.any()
        fits = [d for d in range(8, block + 1) if before.shape[1] % d == 0]
        assert params.block == (max(fits) if fits else 0)
        scale, _ = params._spread(stored)
        inside = (stored.astype(int) > low) & (stored.astype(int) < high)
        off = np.abs(before - after) / scale
        assert off[inside].max() <= 0.5 + 1e-3
        # two bytes hold a scale
        assert not (params.scale.view(np.uint32) & 0xFFFF).any()


def test_cutting_the_range_costs_less_than_keeping_it(
    model: ir.Model, run: Run, weight_of: Weights
) -> None:
    made = run(model, QuantizeWeights(bits=3, fit=0))
    for name in LAYERS:
        before, after = weight_of(model, name), weight_of(made, name)
        rows = before.reshape(len(before), -1)
        scale = np.abs(rows).max(axis=1, keepdims=True) / 3
        whole = np.clip(np.rint(rows / scale), -4, 3) * scale
        assert np.square(before - after).sum() < np.square(rows - whole).sum()


def test_smaller_blocks_and_fitting_help(
    model: ir.Model, run: Run, samples: Any, quality: Callable[[ir.Model], float]
) -> None:
    plain = quality(run(model, QuantizeWeights(bits=3, fit=0)))
    assert quality(run(model, QuantizeWeights(bits=3, block=8, fit=0))) > plain
    assert quality(run(model, QuantizeWeights(bits=3), samples)) > plain + 2
    assert quality(run(model, QuantizeWeights(bits=8, fit=0))) > 35


def test_who_stores_constants_finds_the_integers_again(
    model: ir.Model, run: Run, weight_of: Weights
) -> None:
    for options in ({"bits": 8}, {"bits": 4, "block": 16}, {"bits": 4, "symmetric": False}):
        made = run(model, QuantizeWeights(fit=0, **options))
        found = find_groups(weight_of(made, "c3"))
        assert found is not None and found.levels is not None and found.scales is not None
        real = found.levels.astype(np.float32) * found.scales[found.groups]
        np.testing.assert_array_equal(real, weight_of(made, "c3"))


@pytest.mark.parametrize("text", ["MatMul(x, w)", "Gemm(x, w)", "Gemm<transB=1>(x, v)"])
def test_products_have_a_scale_for_each_output(text: str, run: Run, weight_of: Weights) -> None:
    import onnx

    rng = np.random.default_rng(0)
    w = rng.standard_normal((32, 12)).astype(np.float32) * np.linspace(1, 30, 12, dtype=np.float32)
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 23]> g (float[2,32] x) => (float[2,12] y) {{ y = {text} }}'
    )
    for name, array in (("w", w), ("v", np.ascontiguousarray(w.T))):
        if f"{name})" in text:
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    made = run(ir.from_proto(proto), QuantizeWeights(bits=8))
    after = weight_of(made, "y")
    after = after if after.shape == w.shape else after.T
    assert (np.abs(after - w).max(axis=0) <= np.abs(w).max(axis=0) / 127 * 0.52).all()
    blocked = run(ir.from_proto(proto), QuantizeWeights(bits=4, block=16))
    (node,) = [n for n in blocked.graph if n.op_type == "DequantizeLinear"]
    params = quant_params(node)
    assert params is not None and params.block == 16 and params.scale.size == 24


def test_embedding_tables_are_quantized_by_rows(run: Run) -> None:
    import onnx

    rng = np.random.default_rng(0)
    table = rng.standard_normal((20, 32)).astype(np.float32)
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 23]> g (int64[5] i) => (float[5,32] y) { y = Gather(t, i) }'
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(table, "t"))
    made = run(ir.from_proto(proto), QuantizeWeights())
    (node,) = [n for n in made.graph if n.op_type == "DequantizeLinear"]
    params, stored = quant_params(node), const(node.inputs[0])
    assert params is not None and stored is not None
    assert params.scale.shape == (20,)
    np.testing.assert_allclose(params.dequantize(stored), table, atol=0.03)


@pytest.mark.parametrize("options", [{"bits": 1}, {"bits": 9}, {"block": 4}])
def test_options_out_of_range(model: ir.Model, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="quantize-weights"):
        QuantizeWeights(**options).run(model, PassContext())


def test_the_backends_folding_gives_the_floats_back(
    model: ir.Model, run: Run, weight_of: Weights
) -> None:
    pytest.importorskip("tvm")
    made = run(model, QuantizeWeights(bits=4, block=16, fit=0))
    wanted = {name: weight_of(made, name) for name in LAYERS}
    step = "effc.backends.tvm.ops.dequantize:DequantizeWeights"
    passes.parse(step).run(made, PassContext())
    for name, array in wanted.items():
        np.testing.assert_array_equal(weight_of(made, name), array)
