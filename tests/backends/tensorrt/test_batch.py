"""A static model gets an open batch, or a reason why it can't."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import onnx_ir as ir
import pytest

from effc.backends.tensorrt.batch import open_batch
from effc.backends.tensorrt.engine import opened
from effc.backends.tensorrt.options import Options, read_profiles
from effc.core.errors import ConfigError, LoweringError
from effc.core.reference import OnnxRuntimeRunner, random_feeds
from effc.core.shapes import infer_shapes
from effc.sources import load


def tiny(name: str) -> ir.Model:
    model = load(f"zoo:{name}", {}).model
    infer_shapes(model)
    return model


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-resnet", "tiny-swin"])
def test_any_batch_gives_the_answers_of_single_samples(name: str) -> None:
    from effc import passes
    from effc.core.passinfra import PassContext

    model = tiny(name)
    text = f"{passes.CANONICALIZE},{passes.FUSE},decompose-attention"
    passes.parse(text).run(model, PassContext())
    (image,) = model.graph.inputs
    many = open_batch(model, [str(image.name)], 2)
    assert str(list(many.graph.inputs[0].shape or ())[0]) == "batch"
    assert list(image.shape or ())[0] == 1  # the model itself is left alone
    (feeds,) = random_feeds(model, 1, seed=1)
    five = {n: np.concatenate([a * k for k in (1, 2, 0, -1, 3)]) for n, a in feeds.items()}
    with OnnxRuntimeRunner(many) as one, OnnxRuntimeRunner(model) as other:
        together = one.infer(five)
        for at, k in enumerate((1, 2, 0, -1, 3)):
            alone = other.infer({n: np.float32(k) * a for n, a in feeds.items()})
            for output, array in alone.items():
                np.testing.assert_allclose(
                    together[output][at : at + 1], array, rtol=1e-3, atol=1e-4
                )


def test_what_mixes_samples_is_refused(graphs: ModuleType) -> None:
    node, model = graphs.node, graphs.model
    one = graphs.const("one", np.array([1, 8]))
    x, y = ("x", graphs.F, [1, 8]), ("y", graphs.F, [1, 8])
    mean = model([node("ReduceMean", ["x", "axes"], ["m"], keepdims=1), node("Sub", ["x", "m"], ["y"])],
                 [x], [y], [graphs.const("axes", np.array([0]))])  # fmt: skip
    with pytest.raises(LoweringError, match="depends on the others"):
        open_batch(mean, ["x"], 2)
    table = graphs.const("t", graphs.weight(1, 8))
    joined = model(
        [node("Concat", ["x", "t"], ["y"], axis=0)], [x], [("y", graphs.F, [2, 8])], [table]
    )
    with pytest.raises(LoweringError, match="its output 'y'"):
        open_batch(joined, ["x"], 2)
    folded = model([node("Reshape", ["x", "one"], ["r"]), node("ReduceSum", ["r"], ["y"], keepdims=0)],
                   [x], [("y", graphs.F, [])], [one])  # fmt: skip
    with pytest.raises(LoweringError, match="its output 'y'"):
        open_batch(folded, ["x"], 2)


def test_profiles_say_how_far_the_batch_opens(graphs: ModuleType) -> None:
    model = graphs.conv()
    same = opened(model, Options(profiles=read_profiles("x=1x8x16x16:1x8x16x16:1x8x16x16")))
    assert same is model
    wide = opened(model, Options(profiles=read_profiles("x=1x8x16x16:2x8x16x16:9x8x16x16")))
    assert str(list(wide.graph.outputs[0].shape or ())[0]) == "batch"
    two = graphs.model(
        [graphs.node("Add", ["a", "b"], ["y"])],
        [("a", graphs.F, [1, 3]), ("b", graphs.F, [1, 3])], [("y", graphs.F, [1, 3])], [],
    )  # fmt: skip
    with pytest.raises(ConfigError, match="different batches"):
        opened(two, Options(profiles=read_profiles("a=1x3:2x3:4x3,b=1x3:2x3:8x3")))
    assert opened(two, Options(profiles=read_profiles("a=1x3:2x3:4x3,b=1x3:2x3:4x3"))) is not two


def test_a_build_with_an_open_batch(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    from effc.artifacts import load_artifact
    from effc.build import build
    from effc.choices import BuildOptions

    profile = {"profile": "image=1x3x32x32:4x3x32x32:16x3x32x32"}
    options = BuildOptions(precision="fp16", backend_options=profile)
    build("zoo:tiny-resnet", "rtx-3060", tmp_path / "e", options)
    details = load_artifact(tmp_path / "e").manifest.details
    assert details["profiles"]["image"][2] == [16, 3, 32, 32]
    wrong = {"profile": "image=1x3x16x16:4x3x32x32:16x3x32x32"}
    with pytest.raises(ConfigError, match="fixes 'image'"):
        build("zoo:tiny-resnet", "rtx-3060", tmp_path / "f", BuildOptions(backend_options=wrong))
