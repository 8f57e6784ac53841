"""effc build --budget and --records as a user types them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from effc.artifacts import load_artifact

Command = Callable[..., tuple[int, Any]]


def _build(command: Command, out: Path, *options: object) -> Any:
    code, found = command(
        "build", "zoo:tiny-mlp", "-t", "host", "-o", out, "--no-measure", *options
    )
    assert code == 0, found
    assert found["verdict"]["status"] == "passed"
    return found


def test_a_budget_tunes_and_the_manifest_says_how(command: Command, tmp_path: Path) -> None:
    pytest.importorskip("tvm")
    records = tmp_path / "records.jsonl"
    plain = _build(command, tmp_path / "plain")
    assert "tuning" not in plain
    tuned = _build(command, tmp_path / "tuned", "--budget", "3s", "--records", records)
    assert tuned["tuning"]["trials"] > 0
    assert records.is_file()
    manifest = load_artifact(tmp_path / "tuned").manifest
    assert manifest.details["tuning"] == tuned["tuning"]
    again = [
        _build(command, tmp_path / f"again{n}", "--records", records)["tuning"] for n in (1, 2)
    ]
    assert again[0] == again[1]
    assert again[0]["trials"] == 0
    first, second = (
        (tmp_path / f"again{n}/model.so").read_bytes() for n in (1, 2)
    )  # the same choices give the same bytes
    assert first == second


def test_the_cache_is_read_only_when_asked(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tvm")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    _build(command, tmp_path / "tuned", "--budget", "2s")
    assert (tmp_path / "cache/effc/tuning/records.jsonl").is_file()
    library = _build(command, tmp_path / "a") and (tmp_path / "a/model.so").read_bytes()
    shutil.rmtree(tmp_path / "cache")
    _build(command, tmp_path / "b")
    assert (tmp_path / "b/model.so").read_bytes() == library
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("option", [("--budget", "5s"), ("--records", "r.jsonl")])
def test_a_backend_without_tuning_refuses(
    command: Command, tmp_path: Path, option: tuple[str, str]
) -> None:
    code, found = command(
        "build", "zoo:tiny-mlp", "--backend", "ort", "-o", tmp_path / "x", *option
    )
    assert code == 2
    assert option[0] in found["error"]["hint"]
