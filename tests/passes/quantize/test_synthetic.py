"""Made-up calibration: noise of the scale that the model was trained on."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest

from effc import passes, zoo
from effc.core.channel_statistics import recall, remember
from effc.core.data import SyntheticSamples
from effc.core.ir import add_const
from effc.core.passinfra import PassContext
from effc.core.preprocess import Preprocess
from effc.core.quant import quant_params
from effc.core.specs import static_specs
from effc.passes.quantize.quantize import CALIBRATION, Quantize
from effc.passes.quantize.synthetic import (
    SmoothPictures,
    calibration_samples,
    input_factors,
    smooth_noise,
)

RNG = np.random.default_rng(0)


def trained_on(scale: float) -> ir.Model:
    """Conv and batch norm of a model whose inputs deviated by `scale` in training, folded."""
    model = ir.from_onnx_text("""<ir_version: 10, opset_import: ["": 23]>
        g (float[1,3,32,32] x) => (float[1,8,30,30] y) {
            c = Conv (x, w)
            n = BatchNormalization (c, gamma, beta, mean, variance)
            y = Relu (n)
        }""")
    w = RNG.standard_normal((8, 3, 3, 3)).astype(np.float32)
    arrays = {
        "w": w,
        "gamma": RNG.uniform(0.5, 2, 8).astype(np.float32) * np.array([1, -1] * 4, np.float32),
        "beta": RNG.standard_normal(8).astype(np.float32),
        "mean": np.zeros(8, np.float32),
        "variance": (w.reshape(8, -1) ** 2).sum(1) * np.float32(scale**2),
    }
    values = {name: add_const(model.graph, name, array) for name, array in arrays.items()}
    for node in model.graph:
        for index, old in enumerate(node.inputs):
            if old is not None and old.name in values:
                node.replace_input_with(index, values[old.name])
    passes.parse(f"{passes.CANONICALIZE},{passes.FUSE}").run(model, PassContext())
    assert [n.op_type for n in model.graph] == ["Conv", "Relu"]
    return model


@pytest.mark.parametrize("scale", [0.01, 1.0, 73.0])
def test_noise_gets_the_scale_of_the_training(scale: float) -> None:
    model = trained_on(scale)
    noise = SyntheticSamples(static_specs(model.graph.inputs), count=8)
    assert input_factors(model, noise)["x"] == pytest.approx(scale, rel=0.1)
    samples = list(calibration_samples(None, model, 0))
    assert np.std([f["x"] for f in samples]) == pytest.approx(scale, rel=0.1)
    Quantize().run(model, PassContext())
    params = quant_params(next(n for n in model.graph if n.op_type == "QuantizeLinear"))
    assert params is not None and params.scale * 255 == pytest.approx(9 * scale, rel=0.3)
    assert json.loads(model.metadata_props[CALIBRATION])["synthetic"]


def test_statistics_survive_a_clone_and_are_forgotten_with_the_weights() -> None:
    model = trained_on(2.0)
    known = recall(model.clone().graph[0].outputs[0])
    assert known is not None and (known.deviation > 0).all() and known.mean.shape == (8,)
    conv = model.graph[0]
    other = add_const(model.graph, "other", np.ones((8, 3, 3, 3), np.float32))
    conv.replace_input_with(1, other)
    assert recall(conv.outputs[0]) is None
    remember(conv.outputs[0], known.mean, known.deviation)
    assert recall(conv.outputs[0]) is not None


def test_the_users_samples_stay() -> None:
    model = zoo.build("tiny-resnet")
    given = SmoothPictures(static_specs(model.graph.inputs), Preprocess.parse("unit"))
    assert calibration_samples(given, model, 0) is given


@pytest.mark.parametrize("how", ["imagenet", "raw"])
def test_pictures_where_the_preprocessing_is_known(how: str) -> None:
    model = zoo.build("tiny-resnet")
    inputs = static_specs(model.graph.inputs)
    made_up = SyntheticSamples(inputs, count=4, preprocess=Preprocess.parse(how))
    samples = calibration_samples(made_up, model, 7)
    arrays = [f["image"] for f in samples]
    assert len(arrays) == len(samples) == 32 and samples.synthetic
    assert all((a == b["image"]).all() for a, b in zip(arrays, samples, strict=True))
    levels = Preprocess.parse(how).reals(np.arange(256))
    assert np.isin(np.stack(arrays), levels).all()
    passes.parse(f"{passes.CANONICALIZE},{passes.FUSE}").run(model, PassContext())
    Quantize().run(model, PassContext(samples=made_up))
    params = quant_params(next(n for n in model.graph if n.op_type == "QuantizeLinear"))
    span = float(levels.max() - min(levels.min(), 0))
    assert params is not None and params.scale * 255 == pytest.approx(span, rel=0.05)


def test_noise_is_smooth_and_its_channels_alike() -> None:
    x = smooth_noise(np.random.default_rng(1), 64, 48, 3).astype(np.float64)
    assert x.shape == (64, 48, 3)
    assert np.abs(np.diff(x, axis=0)).mean() < 0.8 * x.std()
    assert np.corrcoef(x[..., 0].ravel(), x[..., 1].ravel())[0, 1] > 0.5
