"""The table names the node that was made bad, and why."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from effc import passes
from effc.core.data import SyntheticSamples
from effc.core.ir import add_const, const
from effc.core.passinfra import PassContext
from effc.core.specs import static_specs
from effc.passes.quantize.synthetic import ScaledNoise
from effc.precision.blame import BlameRow, blame
from effc.precision.contract import measure_groups
from effc.precision.score import Judge
from effc.zoo import build


def float_model() -> ir.Model:
    model = build("tiny-resnet")
    passes.parse(f"{passes.CANONICALIZE},{passes.FUSE}").run(model, PassContext())
    return model


def change(model: ir.Model, name: str, edit: object) -> None:
    (node,) = [n for n in model.graph if n.name == name]
    weight = np.array(const(node.inputs[1]))
    edit(weight)  # type: ignore[operator]
    node.replace_input_with(1, add_const(model.graph, f"{name}.edited", weight))


def table(model: ir.Model, text: str = "quantize{scheme=vnni}") -> list[BlameRow]:
    samples = ScaledNoise(SyntheticSamples(static_specs(model.graph.inputs), count=4), {})
    quantized = model.clone()
    passes.parse(text).run(quantized, PassContext(samples=samples))
    judge = Judge.record(model, samples)
    groups = measure_groups(model, quantized, judge, None, lambda what, share: None)
    return blame(quantized, groups, judge.feeds)


def row(rows: list[BlameRow], node: str) -> BlameRow:
    (found,) = [r for r in rows if node in r.nodes]
    return found


def test_the_shares_are_of_the_whole() -> None:
    rows = table(float_model())
    assert sum(r.share for r in rows) == pytest.approx(1)
    assert [r.share for r in rows] == sorted((r.share for r in rows), reverse=True)
    assert row(rows, "conv_1").saved_bytes > 0 and row(rows, "conv_1").gain_seconds is None


def test_an_outlier_channel_is_found() -> None:
    model = float_model()

    def widen(weight: np.ndarray) -> None:
        weight[5] *= 60

    change(model, "conv_1", widen)  # conv_2 reads what it makes
    before, after = row(table(float_model()), "conv_2"), row(table(model), "conv_2")
    assert "outlier channel 5 of activation" in after.cause and after.share > before.share


def test_an_outlier_weight_is_found() -> None:
    model = float_model()

    def stretch(weight: np.ndarray) -> None:
        weight[:, 0, 0, 0] = 50 * weight.std()

    change(model, "conv_3", stretch)
    found = row(table(model), "conv_3")
    assert "outlier in weight" in found.cause
    assert any(r.kind == "weight" and sum(r.histogram) > 0 for r in found.ranges)


def test_saturation_is_found() -> None:
    rows = table(float_model(), "quantize{scheme=vnni,calibrator=percentile,percentile=90}")
    assert any("saturating activation" in r.cause for r in rows)
