"""Accuracy: counted by hand on made-up scores, and the published figures of the real models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

from effc.build import BuildResult
from effc.core.artifact import TensorSpec
from effc.core.data import open_samples
from effc.core.errors import ConfigError
from effc.core.measure import Array, Feeds, Measurement, Runner
from effc.evaluate import best, evaluate, rank, scores_output

INPUT = (TensorSpec("x", "float32", (1, 10)),)

# the preprocessing of the manifest's classifiers, in effc's words
CLASSIFIERS = {
    "mobilenet_v1_0.75": ("imagenet_dev_500.tar", "inception"),
    "squeezenet1.1": ("imagenet_dev_500.tar", "imagenet"),
    "mobilenet_v2_1.0_dq": ("imagenet_dev_500.tar", "mean=127.5,std=127.5"),
    "resnet20_cifar10": ("cifar10_dev_5000.npz", "imagenet"),
    "mlperf_tiny_resnet8": ("cifar10_dev_5000.npz", "raw"),
    "mlperf_tiny_kws_dq": ("kws_dev_500.npz", "mean=83,std=1.7102703"),
}


class Echo(Runner):
    """Its scores are its input."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def infer(self, feeds: Feeds) -> dict[str, Array]:
        return {"y": feeds["x"]}

    def time(self, feeds: Feeds, repeats: int) -> Measurement:
        raise AssertionError("accuracy takes no time")


def samples(tmp_path: Path, x: Array, y: Array | None) -> Any:
    np.savez(tmp_path / "a.npz", x=x.astype(np.float32), **({} if y is None else {"y": y}))
    return open_samples(tmp_path / "a.npz", INPUT)


def test_top_k_counted_by_hand(tmp_path: Path) -> None:
    x = np.tile(np.arange(10), (4, 1))  # best: 9, top 5: 5..9
    found = evaluate(Echo(), samples(tmp_path, x, np.array([9, 5, 4, 9])), "y")
    assert (found.top1, found.top5, found.samples, found.agreement) == (50.0, 75.0, 4, None)


def test_top_k_against_sorting(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((200, 10)), rng.integers(0, 10, 200)
    found = evaluate(Echo(), samples(tmp_path, x, y), "y")
    order = np.argsort(-x.astype(np.float32), axis=1)
    assert found.top1 == pytest.approx(100 * (order[:, 0] == y).mean())
    assert found.top5 == pytest.approx(100 * (order[:, :5] == y[:, None]).any(1).mean())


def test_equal_and_nan_scores() -> None:
    same = np.ones(10)
    assert [rank(same, i) for i in (0, 4, 5)] == [0, 4, 5] and best(same) == 0
    holes = np.array([np.nan, 1.0, np.nan])
    assert best(holes) == 1 and rank(holes, 0) == 3 and rank(holes, 1) == 0
    assert best(np.full(3, np.nan)) == -1


def test_nan_scores_are_counted(tmp_path: Path) -> None:
    x = np.zeros((2, 10))
    x[0, 3] = np.nan
    assert evaluate(Echo(), samples(tmp_path, x, np.array([0, 0])), "y").nonfinite == 1


def test_agreement_without_labels(tmp_path: Path) -> None:
    x = np.eye(10)[:4]
    unlabelled = samples(tmp_path, x, None)
    with pytest.raises(ConfigError, match="no labels"):
        evaluate(Echo(), unlabelled, "y")
    found = evaluate(Echo(), unlabelled, "y", reference=lambda feeds: np.eye(10)[0])
    assert (found.top1, found.agreement, found.unlabelled) == (None, 25.0, 4)


def test_a_label_that_is_no_class(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="label 10"):
        evaluate(Echo(), samples(tmp_path, np.eye(10)[:1], np.array([10])), "y")


def test_which_output_holds_scores() -> None:
    scores = TensorSpec("a", "float32", (1, 10, 1, 1))
    boxes = TensorSpec("b", "float32", (1, 20, 4))
    assert scores_output([scores, boxes]) == "a" and scores_output([scores, boxes], "b") == "b"
    for outputs in ([boxes], [scores, scores]):
        with pytest.raises(ConfigError, match="looks like") as error:
            scores_output(outputs)
        assert "--output" in error.value.hint
    with pytest.raises(ConfigError, match="no output 'c'"):
        scores_output([scores], "c")


def test_an_artifact_agrees_with_its_source(
    command: Any, built: BuildResult, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((20, 3, 32, 32)).astype(np.float32), rng.integers(0, 10, 20)
    np.savez(tmp_path / "a.npz", x=x, y=y)
    code, found = command(
        "eval",
        built.path,
        "--data",
        tmp_path / "a.npz",
        "--reference",
        "zoo:tiny-resnet",
        "--limit",
        15,
    )
    assert code == 0 and found["agreement"] == 100.0 and found["samples"] == 15
    assert set(found) >= {"top1", "top5", "samples", "agreement"}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_published_accuracy(command: Any, testdata: Path, name: str) -> None:
    manifest = json.loads((testdata / "MANIFEST.json").read_text())
    entry = next(m for m in manifest["models"] if m["file"] == f"models/{name}.onnx")
    data, preprocess = CLASSIFIERS[name]
    code, found = command(
        "eval",
        testdata / entry["file"],
        "--data",
        testdata / "data" / data,
        "--preprocess",
        preprocess,
    )
    assert code == 0
    published = entry["metric"]["fp32"]
    assert {k: pytest.approx(v) for k, v in published.items()} == {k: found[k] for k in published}
