"""Lessons: what a pupil's error is, whatever the batch that its graph allows, and variations of pictures."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")

from effc.core.torch_module.batches import batchable, run_batch  # noqa: E402
from effc.core.torch_module.distillation import Lesson  # noqa: E402
from effc.core.torch_module.module import TorchModule  # noqa: E402
from effc.core.torch_module.variations import is_picture, varied  # noqa: E402

# the second graph mixes up the samples of a larger batch: it folds all rows into one
FREE = "net (float[1,4] x) => (float[1,4] y) { y = Mul(x, k) }"
FOLDED = """net (float[1,4] x) => (float[1,4] y) <int64[2] whole = {4, -1}, int64[2] rows = {1, 4}> {
    a = Mul(x, k)
    b = Reshape(a, whole)
    s = ReduceSum <keepdims = 1> (b)
    c = Add(b, s)
    y = Reshape(c, rows)
}"""


def module(text: str, factor: float) -> TorchModule:
    made = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 21]> {text}')
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(factor), "k"))
    return TorchModule.from_ir(ir.from_proto(made))


def samples(count: int) -> list[dict[str, torch.Tensor]]:
    rng = np.random.default_rng(0)
    return [
        {"x": torch.from_numpy(rng.standard_normal((1, 4)).astype(np.float32))}
        for _ in range(count)
    ]


@pytest.mark.parametrize(("text", "together"), [(FREE, True), (FOLDED, False)])
def test_a_batch_is_what_its_samples_are(text: str, together: bool) -> None:
    net, feeds = module(text, 0.5), samples(5)
    assert batchable(net, feeds, ["y"]) is together
    found = run_batch(net, feeds, ["y"], together=together)["y"]
    torch.testing.assert_close(found, torch.cat([net(f)["y"] for f in feeds]))


@pytest.mark.parametrize("text", [FREE, FOLDED])
def test_the_error_is_squared_over_the_variance_of_the_answers(text: str) -> None:
    pupil, teacher, feeds = module(text, 0.4), module(text, 0.5), samples(6)
    lesson = Lesson(pupil, teacher, feeds, 0, vary=True)
    assert not lesson.vary  # vectors have no parts
    y, w = (torch.cat([m(f)["y"] for f in feeds]).double() for m in (pupil, teacher))
    want = float(((y - w).square().mean() / w.var()).detach())
    assert lesson.mean_error(4) == pytest.approx(want, rel=1e-4)
    assert float(lesson.error([1, 3]).detach()) == pytest.approx(
        float(lesson.error_of_variations([1, 3]).detach()), rel=1e-6
    )
    assert Lesson(teacher, teacher, feeds, 0, vary=False).mean_error(2) == pytest.approx(
        0, abs=1e-6
    )


def test_variations_are_parts_of_pictures_mirrored_or_not() -> None:
    ramp = torch.arange(32.0).expand(1, 2, 30, 32).clone()  # grows to the right
    assert is_picture(ramp) and not is_picture(torch.zeros(1, 1, 49, 10))
    random = torch.Generator().manual_seed(0)
    made = varied(ramp.repeat(40, 1, 1, 1), random)
    assert made.shape == (40, 2, 30, 32)
    assert float(made.min()) >= -1e-4 and float(made.max()) <= 31 + 1e-4
    step = made[:, 0, 10, 20] - made[:, 0, 10, 10]
    assert 10 < int((step > 0).sum()) < 30 and bool((step.abs() > 4).all())
    spans = step.abs() / 10
    assert float(spans.min()) < 0.8 and float(spans.max()) <= 1.01
