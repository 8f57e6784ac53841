"""One description of preprocessing for a model and its artifact: eval and run agree on pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from effc.core.reference import OnnxRuntimeRunner
from effc.zoo import build as build_model

SCALE = "mean=0.5,0.4,0.3,std=0.2,0.25,0.3,color=BGR"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two class folders of pictures, neither of the input's size nor square."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(8):
        place = folder / ("cat" if i % 2 else "dog") / f"{i}.png"
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(place)
    return folder


def by_hand(path: Path) -> int:
    """The best class of one picture, without effc's preprocessing."""
    image = Image.open(path).resize((32, 32), Image.Resampling.BILINEAR)
    x = np.asarray(image, np.float32)[:, :, ::-1] / 255
    x = ((x - np.float32([0.5, 0.4, 0.3])) / np.float32([0.2, 0.25, 0.3])).transpose(2, 0, 1)[None]
    with OnnxRuntimeRunner(build_model("tiny-resnet")) as runner:
        scores = runner.infer({"image": np.ascontiguousarray(x)})["logits"]
    return int(scores.argmax())


def test_artifact_model_and_hand_agree(command: Any, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, _ = command(
        "build", "zoo:tiny-resnet", "-o", out, "--backend", "ort", "--preprocess", SCALE,
        "--samples", pictures, "--no-measure", "--pipeline", "fold-batch-norm",
    )  # fmt: skip
    assert code == 0
    code, manifest = command("inspect", out)
    assert manifest["details"]["goldens"]["synthetic"] is False
    assert manifest["inputs"][0]["layout"] == "NCHW"
    for place in sorted(pictures.rglob("*.png"))[:3]:
        code, found = command("run", out, "--input", place)
        assert code == 0 and found["samples"][0][0]["top"][0]["index"] == by_hand(place)
    wanted = [by_hand(p) == (0 if p.parent.name == "cat" else 1) for p in pictures.rglob("*.png")]
    code, of_artifact = command("eval", out, "--data", pictures)
    code, of_model = command("eval", "zoo:tiny-resnet", "--data", pictures, "--preprocess", SCALE)
    assert of_artifact == of_model
    assert of_artifact["top1"] == pytest.approx(100 * sum(wanted) / 8)


def test_the_whole_way_through_tvm(command: Any, pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("tvm")
    out = tmp_path / "out"
    code, found = command(
        "build", "zoo:tiny-resnet", "-o", out, "--preprocess", SCALE, "--threads", "1"
    )
    assert code == 0 and found["backend"] == "tvm" and found["verdict"]["status"] == "passed"
    code, found = command("eval", out, "--data", pictures, "--reference", "zoo:tiny-resnet")
    assert code == 0 and found["agreement"] == 100.0
    code, found = command("bench", out, "--layers", "--seconds", "0.2s", "--rounds", "3")
    assert code == 0 and all(found["layers"].values())
    assert "Time by layer" in (out / "report.html").read_text()
