"""A manifest round-trips; an artifact that was touched is refused."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from effc.core.artifact import (
    MANIFEST,
    Manifest,
    PassEntry,
    TensorSpec,
    Verdict,
    load_artifact,
    sha256_file,
    write_atomically,
)
from effc.core.errors import ConfigError
from effc.core.measure import Measurement


def make(folder: Path, files: dict[str, str] | None = None) -> Manifest:
    (folder / "model.bin").write_bytes(b"weights")
    manifest = Manifest(
        format=1,
        source={"name": "m.onnx", "sha256": "0" * 64},
        target="host",
        backend="ort",
        precision="fp32",
        inputs=(TensorSpec("x", "float32", (1, 3, 8, 8)),),
        outputs=(TensorSpec("y", "float32", (1, 10)),),
        files=files or {"model.bin": sha256_file(folder / "model.bin")},
        passes=(PassEntry("fold-bias", "", "EXACT", 3),),
        pipeline="fold-bias",
        versions={"effc": "0.1.0"},
        verdict=Verdict("passed", "1 sample", 1e-7, 1e-4, 1),
        measurements=(Measurement("device", "host", seconds=(0.25, 0.5, 0.75)),),
    )
    write_atomically(folder / MANIFEST, msgspec.json.encode(manifest))
    return manifest


def test_round_trip(tmp_path: Path) -> None:
    manifest = make(tmp_path)
    artifact = load_artifact(tmp_path)
    assert artifact.manifest == manifest
    assert artifact.manifest.measurements[0].median == 0.5
    assert artifact.file("model.bin").read_bytes() == b"weights"
    assert sorted(p.name for p in tmp_path.iterdir()) == [MANIFEST, "model.bin"]


def test_touched_missing_and_linked_files_are_refused(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"wEights")
    with pytest.raises(ConfigError, match="not what was built"):
        load_artifact(tmp_path)
    (tmp_path / "model.bin").unlink()
    with pytest.raises(ConfigError, match="lacks its file"):
        load_artifact(tmp_path)
    other = tmp_path.parent / "other.bin"
    other.write_bytes(b"weights")
    (tmp_path / "model.bin").symlink_to(other)
    with pytest.raises(ConfigError, match="lacks its file"):
        load_artifact(tmp_path)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b"])
def test_files_outside_are_refused(tmp_path: Path, name: str) -> None:
    make(tmp_path, {name: "0" * 64})
    with pytest.raises(ConfigError, match="outside the artifact"):
        load_artifact(tmp_path)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"format": "x"}', b"\xff"])
def test_a_broken_manifest_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(text)
    with pytest.raises(ConfigError, match="no valid manifest"):
        load_artifact(tmp_path)
