"""Timing: rows, ratios, verdicts about noise, and the source of an artifact as the baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from effc.artifacts import open_artifact
from effc.bench import BenchRow, judge, with_onnxruntime
from effc.build import BuildResult
from effc.core.errors import ConfigError
from effc.machine import Machine, cautions, this_machine
from effc.runnable import open_runnable

QUICK = ("--seconds", "0.3s", "--rounds", "4")


def row(low: float, high: float) -> BenchRow:
    return BenchRow("r", 1, (low + high) / 2, (low, high), 10, "device")


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [((1, 2), "faster"), ((4.1, 5), "slower"), ((1, 3.5), "inside the noise"), ((2, 5), "inside the noise")],
)  # fmt: skip
def test_verdicts(interval: tuple[float, float], verdict: str) -> None:
    judged = judge(row(*interval), row(3, 4))
    assert judged.verdict == verdict and judged.ratio == pytest.approx(sum(interval) / 7)


def test_rows_against_onnxruntime(command: Any, built: BuildResult) -> None:
    code, found = command(
        "bench", built.path, "--against", "onnxruntime", "--threads", "1,2", *QUICK
    )
    assert code == 0
    assert [(r["name"], r["threads"]) for r in found["rows"]][::2] == [
        (str(built.path), 1),
        (str(built.path), 2),
    ]
    for r in found["rows"]:
        low, high = r["interval_ms"]
        assert 0 < low <= r["median_ms"] <= high and r["repeats"] >= 4
    ours, theirs = found["rows"][:2]
    assert theirs["name"].startswith("onnxruntime") and theirs["verdict"] == "baseline"
    assert ours["ratio"] == pytest.approx(ours["median_ms"] / theirs["median_ms"])
    assert found["machine"]["cpu"] and found["machine"]["cores"] >= 1


def test_two_models_of_different_inputs(command: Any) -> None:
    code, found = command("bench", "zoo:tiny-mlp", "zoo:tiny-resnet", *QUICK)
    assert code == 0 and [r["verdict"] for r in found["rows"]] == ["faster", "baseline"]


def test_a_single_model_has_no_ratio(command: Any) -> None:
    code, found = command("bench", "zoo:tiny-mlp", *QUICK)
    assert code == 0 and found["rows"][0]["ratio"] is None


def test_a_changed_source_is_no_baseline(built: BuildResult, tmp_path: Path) -> None:
    manifest = built.artifact.manifest
    for source, word in (
        ({**manifest.source, "sha256": "0" * 64}, "SHA-256"),
        ({**manifest.source, "name": "gone.onnx"}, "can't be opened"),
    ):
        with open_runnable(str(built.path)) as subject:
            changed = msgspec.structs.replace(manifest, source=source)
            object.__setattr__(subject.artifact, "manifest", changed)
            with pytest.raises(ConfigError, match=word):
                with_onnxruntime([subject])


def test_a_machine_with_other_work_is_named() -> None:
    assert this_machine().cores >= 1
    busy = Machine("cpu", 2, "powersave", "", 1.5)
    assert len(cautions(busy)) == 2
    assert cautions(Machine("cpu", 2, "performance", "", 0.0)) == []


def test_compare(command: Any, built: BuildResult) -> None:
    code, found = command("compare", "zoo:tiny-resnet", built.path, "--seconds", "0.3s")
    assert code == 0 and found["synthetic"] is True and found["samples"] == 8
    (output,) = found["outputs"]
    assert output["name"] == "logits" and output["max_rel"] < 1e-4
    assert found["a"]["macs"] > 0 and found["b"]["macs"] is None
    assert found["a"]["median_ms"] > 0 and found["ratio"] > 0


def test_compare_sees_a_difference(command: Any) -> None:
    code, found = command(
        "compare", "zoo:tiny-resnet", "zoo:tiny-resnet{seed=1}", "--seconds", "0.3s"
    )
    assert code == 0 and found["outputs"][0]["max_rel"] > 0.01


def test_compare_refuses_other_interfaces(command: Any) -> None:
    code, found = command("compare", "zoo:tiny-resnet", "zoo:tiny-mlp")
    assert code == 2 and "input" in found["error"]["message"]


def test_artifact_is_checked_before_it_runs(built: BuildResult, tmp_path: Path) -> None:
    import shutil

    place = tmp_path / "copy"
    shutil.copytree(built.path, place)
    (place / "model.onnx").write_bytes(b"evil")
    with pytest.raises(ConfigError, match="SHA-256"), open_artifact(place):
        pass


def test_layers_of_onnxruntime(command: Any) -> None:
    code, found = command("bench", "zoo:tiny-resnet", "--layers", *QUICK)
    (layers,) = found["layers"].values()
    assert code == 0 and len(layers) > 5
    assert all(x["seconds"] >= 0 and x["name"] for x in layers)
    assert any("Conv" in x["template"] for x in layers)
