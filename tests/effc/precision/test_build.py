"""Quantizing builds as a user asks for them: the recipe reproduces them, refusals say what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from effc.precision.recipe import load_recipe

QUICK = ("--backend", "ort", "--no-measure", "--skip", "adaround", "--skip", "train-quantized")


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("samples") / "x.npz"
    np.savez(path, x=rng.normal(size=(12, 3, 32, 32)).astype(np.float32))
    return path


@pytest.fixture(scope="module")
def int8(samples: Path, tmp_path_factory: pytest.TempPathFactory, command: Any) -> Path:
    out = tmp_path_factory.mktemp("int8") / "out"
    code, found = command("build", "zoo:tiny-resnet", "--precision", "int8", "--samples", samples,
                          *QUICK, "-o", out)  # fmt: skip
    assert code == 0, found
    return out


def test_an_int8_build_is_quantized_and_says_how(int8: Path) -> None:
    manifest = json.loads((int8 / "manifest.json").read_text())
    assert manifest["precision"] == "int8" and manifest["verdict"]["status"] == "passed"
    assert "quantize" in {p["id"] for p in manifest["passes"]}
    described = manifest["details"]["precision"]
    assert described["score"]["agreement"] >= 90 and not described["synthetic"]
    assert any("correct-bias" in note for note in described["notes"])
    weights = (int8 / "model.onnx").stat().st_size
    assert weights < 130_000  # 305 KiB of float constants


def test_the_recipe_reproduces_the_build(
    int8: Path, samples: Path, tmp_path: Path, command: Any
) -> None:
    out = tmp_path / "again"
    code, found = command("build", "zoo:tiny-resnet", "--recipe", int8, "--samples", samples,
                          *QUICK, "-o", out)  # fmt: skip
    assert code == 0, found
    assert (out / "model.onnx").read_bytes() == (int8 / "model.onnx").read_bytes()
    assert load_recipe(out) == load_recipe(int8)


def test_a_recipe_of_other_samples_is_refused(int8: Path, tmp_path: Path, command: Any) -> None:
    np.savez(tmp_path / "y.npz", x=np.ones((12, 3, 32, 32), np.float32))
    code, found = command("build", "zoo:tiny-resnet", "--recipe", int8, "--precision", "int8",
                          "--samples", tmp_path / "y.npz", *QUICK, "-o", tmp_path / "o")  # fmt: skip
    assert code == 2 and "other samples" in found["error"]["message"]
    (tmp_path / "broken.json").write_text("{")
    code, found = command("build", "zoo:tiny-resnet", "--recipe", tmp_path / "broken.json", *QUICK,
                          "-o", tmp_path / "o")  # fmt: skip
    assert code == 2 and "no recipe" in found["error"]["message"]


def test_keep_float_keeps_a_node(samples: Path, tmp_path: Path, command: Any) -> None:
    out = tmp_path / "out"
    code, found = command("build", "zoo:tiny-resnet", "--precision", "int8", "--samples", samples,
                          "--keep-float", "conv_0", *QUICK, "-o", out)  # fmt: skip
    assert code == 0, found
    assert "keep-float=conv_0" in load_recipe(out).compress
    code, rows = command("blame", out)
    assert code == 0 and "conv_0" not in {n for r in rows["blame"] for n in r["nodes"]}
    code, found = command("build", "zoo:tiny-resnet", "--precision", "int8", "--samples", samples,
                          "--keep-float", "conv_99", *QUICK, "-o", tmp_path / "no")  # fmt: skip
    assert code == 2 and "conv_99" in found["error"]["message"]


def test_auto_holds_its_budget(samples: Path, tmp_path: Path, command: Any) -> None:
    out = tmp_path / "out"
    code, found = command("build", "zoo:tiny-resnet", "--precision", "auto", "--max-drop", "0.0",
                          "--quantize", "weight-bits=2", "--samples", samples, *QUICK, "-o", out)  # fmt: skip
    assert code == 0, found
    described = json.loads((out / "manifest.json").read_text())["details"]["precision"]
    assert described["score"]["drop"] <= 0
    assert len(described["pareto"]) >= 2 and described["pareto"][-1]["drop"] <= 0
    assert any("for accuracy" in note for note in described["notes"])


def test_made_up_samples_are_named(tmp_path: Path, command: Any) -> None:
    out = tmp_path / "out"
    code, _ = command("build", "zoo:tiny-resnet", "--precision", "int8", *QUICK, "-o", out)
    assert code == 0
    assert json.loads((out / "manifest.json").read_text())["details"]["precision"]["synthetic"]


def test_blame_of_a_float_artifact(built: Any, command: Any) -> None:
    code, found = command("blame", built.path)
    assert code == 2 and "not quantized" in found["error"]["message"]


def test_the_page_shows_mixes_blame_and_ranges(int8: Path) -> None:
    page = (int8 / "report.html").read_text()
    for title in ("Precision", "Where the noise comes from", "Ranges of the noisiest tensors"):
        assert f"<h2>{title}</h2>" in page
    assert page.count('class="spark"') >= 8 and "quantize,correct-bias: SQNR" in page
