"""Fewer bits for chosen nodes only; a bias keeps its value; what is restored is the original."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from effc import passes
from effc.core.data import SyntheticSamples
from effc.core.errors import ConfigError
from effc.core.ir import const
from effc.core.passinfra import PassContext
from effc.core.quant import quant_params
from effc.core.reference import record_goldens
from effc.core.specs import static_specs
from effc.core.verify import compare_outputs
from effc.passes.quantize.narrow_weights import NarrowWeights
from effc.passes.quantize.restore_float import RestoreFloat
from effc.passes.quantize.synthetic import ScaledNoise
from effc.zoo import build


@pytest.fixture
def quantized() -> ir.Model:
    model = build("tiny-resnet")
    # not made-up ones by their type, which quantize would replace
    samples = ScaledNoise(SyntheticSamples(static_specs(model.graph.inputs), count=4), {})
    text = f"{passes.CANONICALIZE},{passes.FUSE},quantize{{scheme=vnni}}"
    passes.parse(text).run(model, PassContext(samples=samples))
    return model


def weights(model: ir.Model, name: str) -> tuple[ir.DataType, np.ndarray, np.ndarray]:
    (node,) = [n for n in model.graph if n.name == name]
    pair, bias = node.inputs[1].producer(), node.inputs[2].producer()
    params, of_bias = quant_params(pair), quant_params(bias)
    stored = const(bias.inputs[0]).astype(np.float64)
    return params.dtype, const(pair.inputs[0]).astype(int), stored * of_bias.scale


@pytest.mark.parametrize(("bits", "top"), [(4, 7), (2, 1)])
def test_only_the_named_node_is_narrowed(quantized: ir.Model, bits: int, top: int) -> None:
    before = weights(quantized, "conv_2")
    bias = weights(quantized, "conv_1")[2]
    assert NarrowWeights(bits, ("conv_1",)).run(quantized, PassContext()) == 1
    dtype, integers, narrowed = weights(quantized, "conv_1")
    assert dtype == ir.DataType.INT4 and np.abs(integers).max() == top
    np.testing.assert_allclose(narrowed, bias, atol=0.02)  # its unit grew too
    assert weights(quantized, "conv_2")[0] == before[0] == ir.DataType.INT8
    np.testing.assert_array_equal(weights(quantized, "conv_2")[1], before[1])


def test_noise_grows_with_every_bit_taken(quantized: ir.Model) -> None:
    feeds = list(SyntheticSamples(static_specs(quantized.graph.inputs), count=4))
    original = build("tiny-resnet")
    goldens = record_goldens(original, feeds)
    sqnr = []
    for bits in (8, 4, 2):
        model = quantized.clone()
        model.meta.update(quantized.meta)
        if bits < 8:
            NarrowWeights(bits, ("conv_1", "conv_2")).run(model, PassContext())
        sqnr.append(compare_outputs(goldens, record_goldens(model, feeds))[0].sqnr_db)
    assert sqnr[0] > sqnr[1] + 3 and sqnr[1] > sqnr[2] + 3


def test_restoring_brings_the_original_back(quantized: ir.Model) -> None:
    (node,) = [n for n in build("tiny-resnet").graph if n.name == "conv_1"]
    NarrowWeights(4, ("conv_1",)).run(quantized, PassContext())
    RestoreFloat(("conv_1",)).run(quantized, PassContext())
    (now,) = [n for n in quantized.graph if n.name == "conv_1"]
    assert const(now.inputs[1]).dtype == np.float32 and const(now.inputs[2]).dtype == np.float32
    assert const(now.inputs[1]).shape == const(node.inputs[1]).shape


def test_a_name_without_weights_is_refused(quantized: ir.Model) -> None:
    with pytest.raises(ConfigError, match="add_0"):
        NarrowWeights(4, ("add_0",)).run(quantized, PassContext())
