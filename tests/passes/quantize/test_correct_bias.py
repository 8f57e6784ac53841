"""Channel means come back; what restore-float undoes is undone as a whole."""

from __future__ import annotations

import numpy as np
import pytest

from effc import passes
from effc.core.data import SyntheticSamples
from effc.core.passinfra import PassContext
from effc.core.quant_units import quantized_nodes
from effc.core.reference import record_goldens
from effc.core.specs import static_specs
from effc.passes.quantize.calibrate import with_outputs
from effc.passes.quantize.correct_bias import CorrectBias
from effc.passes.quantize.restore_float import RestoreFloat
from effc.zoo import build

FEW_BITS = "quantize{scheme=%s,weight-bits=2}"  # so that the means move visibly


@pytest.mark.parametrize("scheme", ["vnni", "tensorrt"])  # int32 biases, and float ones
def test_channel_means_come_back(scheme: str) -> None:
    model = build("tiny-resnet")
    passes.parse(f"{passes.CANONICALIZE},{passes.FUSE}").run(model, PassContext())
    samples = SyntheticSamples(static_specs(model.graph.inputs), count=8)
    context = PassContext(samples=samples)
    feeds = list(samples)
    real = model.clone()
    goldens = record_goldens(real, feeds)
    passes.parse(FEW_BITS % scheme).run(model, context)
    names = [
        str(n.outputs[0].name) for n in quantized_nodes(model) if n.op_type in ("Conv", "Gemm")
    ]
    assert len(names) == 10

    def shift() -> float:
        """How far the means of all channels are off, as a share of their deviation."""
        off = []
        ours, theirs = (record_goldens(with_outputs(m, names), feeds) for m in (model, real))
        for name in names:
            a, b = (np.concatenate([o[name] for o in outs]) for outs in (ours, theirs))
            axes = tuple(i for i in range(a.ndim) if i != 1)
            off.append(np.abs(a.mean(axes) - b.mean(axes)).mean() / b.std())
        return float(np.mean(off))

    before = shift()
    assert CorrectBias().run(model, context) == len(names)
    assert shift() < 0.1 * before

    everything = tuple(str(n.name) for n in quantized_nodes(model))
    RestoreFloat(everything).run(model, context)
    for golden, answer in zip(goldens, record_goldens(model, feeds), strict=True):
        np.testing.assert_allclose(answer["logits"], golden["logits"], rtol=1e-4, atol=1e-4)


def test_a_float_model_is_left_alone() -> None:
    model = build("tiny-resnet")
    before = [n.op_type for n in model.graph]
    assert CorrectBias().run(model, PassContext()) == 0
    assert [n.op_type for n in model.graph] == before
