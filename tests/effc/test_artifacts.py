"""Artifacts are replaced in one step, packed reproducibly, and opened with suspicion."""

from __future__ import annotations

import json
import os
import stat
import zipfile
from pathlib import Path

import pytest

from effc.artifacts import is_artifact, open_artifact, packed_path, seal, staging_folder, unpack
from effc.core.artifact import MANIFEST, Manifest, Verdict, sha256_file
from effc.core.errors import ConfigError


def make(out: Path, data: bytes = b"weights", *, pack: bool = False) -> Path:
    with staging_folder(out, pack=pack) as folder:
        (folder / "lib").mkdir()
        (folder / "lib/model.bin").write_bytes(data)
        (folder / "report.html").write_text("<p>report</p>")
        manifest = Manifest(
            format=1,
            source={"name": "m.onnx", "sha256": "0" * 64},
            target="host",
            backend="ort",
            precision="fp32",
            inputs=(),
            outputs=(),
            files={"lib/model.bin": sha256_file(folder / "lib/model.bin")},
            passes=(),
            pipeline="",
            versions={},
            verdict=Verdict("not run", "test"),
        )
        return seal(folder, manifest, out, pack=pack)[1]


def left_over(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_sealed_replaced_and_nothing_left_over(tmp_path: Path) -> None:
    out = make(tmp_path / "out")
    assert make(tmp_path / "out", b"newer") == out
    with open_artifact(out) as artifact:
        assert artifact.file("lib/model.bin").read_bytes() == b"newer"
    assert left_over(tmp_path) == ["out"]


def test_a_failed_build_leaves_the_old_artifact(tmp_path: Path) -> None:
    out = make(tmp_path / "out")
    with pytest.raises(RuntimeError), staging_folder(out) as folder:
        (folder / "half").write_bytes(b"half")
        raise RuntimeError("compile failed")
    assert left_over(tmp_path) == ["out"]
    with open_artifact(out) as artifact:
        assert artifact.file("lib/model.bin").read_bytes() == b"weights"


def test_without_an_atomic_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("effc.artifacts._exchange", lambda a, b: False)
    out = make(tmp_path / "out")
    make(out, b"newer")
    assert left_over(tmp_path) == ["out"]
    with open_artifact(out) as artifact:
        assert artifact.file("lib/model.bin").read_bytes() == b"newer"


def test_what_is_not_effcs_is_never_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "cat.jpg").write_bytes(b"cat")
    file = tmp_path / "file"
    file.write_bytes(b"x")
    link = tmp_path / "link"
    link.symlink_to(folder)
    for place in (folder, file, link, folder / "cat.jpg/out"):
        with pytest.raises(ConfigError):
            make(place)
    (tmp_path / "notes.effc").write_bytes(b"my notes")
    with pytest.raises(ConfigError, match="no packed artifact"):
        make(tmp_path / "notes.effc", pack=True)
    assert (folder / "cat.jpg").read_bytes() == b"cat"
    assert (tmp_path / "notes.effc").read_bytes() == b"my notes"


def test_a_users_file_inside_an_artifact_is_kept(tmp_path: Path) -> None:
    out = make(tmp_path / "out")
    (out / "lib/notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"lib/notes\.txt"):
        make(out, b"newer")
    assert (out / "lib/notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["x" * 300, "file/inside", "/", ".."])
@pytest.mark.parametrize("pack", [False, True])
def test_a_place_that_can_not_be_is_refused(name: str, pack: bool, tmp_path: Path) -> None:
    """At once: the root folder is not searched for foreign files."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError), staging_folder(tmp_path / name, pack=pack):
        pass


def test_an_empty_folder_and_missing_parents_are_fine(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert is_artifact(make(tmp_path / "empty"))
    assert is_artifact(make(tmp_path / "a/b/c"))


def test_a_dead_builds_staging_is_removed_a_living_ones_not(tmp_path: Path) -> None:
    dead, living = (
        tmp_path / ".out.999999999.effc-staging",
        tmp_path / f".out.{os.getppid()}.effc-staging",
    )
    dead.mkdir()
    living.mkdir()
    make(tmp_path / "out")
    assert not dead.exists() and living.exists()


def test_packing_is_reproducible_and_opens(tmp_path: Path) -> None:
    one, two = make(tmp_path / "a", pack=True), make(tmp_path / "sub/a", pack=True)
    assert one == packed_path(tmp_path / "a") and one.name == "a.effc"
    assert one.read_bytes() == two.read_bytes()
    with open_artifact(one) as artifact:
        assert artifact.file("lib/model.bin").read_bytes() == b"weights"
        place = artifact.path
    assert not place.exists()
    assert make(tmp_path / "a", b"newer", pack=True) == one
    assert left_over(tmp_path) == ["a.effc", "sub"]


def rewritten(path: Path, change: dict[str, bytes | None], **extra: object) -> Path:
    """The packed artifact with members changed, removed (None) or added."""
    target = path.with_name("evil.effc")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as archive:
        for info in source.infolist():
            data = change.pop(info.filename, source.read(info))
            if data is not None:
                archive.writestr(info, data)
        for name, data in change.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = int(extra.get("mode", stat.S_IFREG | 0o644)) << 16  # type: ignore[call-overload]
            archive.writestr(
                info, data or b"", compress_type=extra.get("compress", zipfile.ZIP_STORED)
            )  # type: ignore[arg-type]
    return target


def test_tampered_packs_are_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "a", pack=True)
    with zipfile.ZipFile(path) as archive:
        manifest = json.loads(archive.read(MANIFEST))

    def with_file(name: str) -> bytes:
        return json.dumps({**manifest, "files": {**manifest["files"], name: "0" * 64}}).encode()

    link = stat.S_IFLNK | 0o777
    cases = [
        ({"lib/model.bin": b"Weights"}, {}, "SHA-256"),
        ({"lib/model.bin": None}, {}, "lacks"),
        ({"extra.sh": b"rm"}, {}, "not in the manifest"),
        ({MANIFEST: with_file("../evil"), "../evil": b"x"}, {}, "outside"),
        ({MANIFEST: with_file("/tmp/evil"), "/tmp/evil": b"x"}, {}, "outside"),
        ({MANIFEST: with_file("ln"), "ln": b"/etc/passwd"}, {"mode": link}, "link"),
        ({MANIFEST: with_file("z"), "z": b"0" * 99999}, {"compress": 8}, "compressed"),
        ({MANIFEST: b"{}"}, {}, "manifest"),
        ({MANIFEST: b"\xff"}, {}, "manifest"),
        ({MANIFEST: None}, {}, "manifest"),
    ]
    for members, extra, word in cases:
        with (
            pytest.raises(ConfigError, match=word),
            open_artifact(rewritten(path, dict(members), **extra)),  # type: ignore[arg-type]
        ):
            pass
    assert not (tmp_path / "evil").exists()


def test_a_broken_zip_is_one_clear_line(tmp_path: Path) -> None:
    whole = make(tmp_path / "a", pack=True).read_bytes()
    for data in (b"", b"PK\x03\x04", whole[: len(whole) // 2], b"<html>" * 100):
        (tmp_path / "b.effc").write_bytes(data)
        with pytest.raises(ConfigError):
            unpack(tmp_path / "b.effc", tmp_path / "x")


def test_an_edited_folder_is_refused(tmp_path: Path) -> None:
    out = make(tmp_path / "out")
    (out / "lib/model.bin").write_bytes(b"Weights")
    with pytest.raises(ConfigError, match="SHA-256"), open_artifact(out):
        pass
