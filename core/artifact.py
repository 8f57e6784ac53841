"""The artifact: a folder of deployable files and a manifest that is written last."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from effc.core.errors import ConfigError
from effc.core.measure import Measurement

MANIFEST = "manifest.json"


class TensorSpec(msgspec.Struct, frozen=True):
    """An input or output as its user sees it: row-major, numpy dtype name."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    layout: str = ""  # "NCHW" where that is known


class OutputError(msgspec.Struct, frozen=True):
    """The difference of one output from its goldens, over all samples."""

    name: str
    max_abs: float
    max_rel: float  # max |a - b| / max |golden|
    sqnr_db: float | None  # None: bit-equal


class Verdict(msgspec.Struct, frozen=True):
    """Whether the artifact's answers are those of the source, within what the passes promised."""

    status: Literal["passed", "failed", "not run"]
    reason: str
    max_error: float | None = None  # the largest max_rel of the outputs
    tolerance: float | None = None
    samples: int = 0
    outputs: tuple[OutputError, ...] = ()


class PassEntry(msgspec.Struct, frozen=True):
    """One pass of the build. Seconds are not kept here: the manifest is reproducible."""

    id: str
    options: str
    effect: str
    rewrites: int


class Manifest(msgspec.Struct, frozen=True, omit_defaults=True):
    """Everything about an artifact that its user or a later tool may ask."""

    format: int
    source: dict[str, str]  # name, sha256, frontend
    target: str
    backend: str
    precision: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    files: dict[str, str]  # relative path -> sha256
    passes: tuple[PassEntry, ...]
    pipeline: str
    versions: dict[str, str]
    verdict: Verdict
    preprocess: dict[str, Any] | None = None
    details: dict[str, Any] = {}
    measurements: tuple[Measurement, ...] = ()


@dataclass(frozen=True, slots=True)
class Artifact:
    """A self-describing folder: the deployable files and `manifest.json`."""

    path: Path
    manifest: Manifest

    def file(self, role_or_name: str) -> Path:
        """The path of a file of the manifest, by relative name."""
        return self.path / role_or_name


def sha256_file(path: Path) -> str:
    """The hex SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside, then rename: a reader sees the old file or the new one, never half of one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def load_artifact(path: Path, *, verify: bool = True) -> Artifact:
    """Read an artifact and check every file against its hash."""
    manifest_path = path / MANIFEST
    if not manifest_path.is_file():
        raise ConfigError(
            f"{str(path)!r} is no artifact: it has no {MANIFEST}",
            hint="name the folder that effc build wrote",
        )
    try:
        manifest = msgspec.json.decode(manifest_path.read_bytes(), type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{str(manifest_path)!r} is no valid manifest: {error}") from error
    if verify:
        for name, digest in manifest.files.items():
            file = path / name
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise ConfigError(
                    f"{str(manifest_path)!r} names a file outside the artifact: {name!r}"
                )
            if not file.is_file() or file.is_symlink():
                raise ConfigError(
                    f"artifact {str(path)!r} lacks its file {name!r}", hint="build it again"
                )
            if sha256_file(file) != digest:
                raise ConfigError(
                    f"file {name!r} of artifact {str(path)!r} is not what was built (SHA-256 differs)",
                    hint="build it again; an artifact is not to be edited",
                )
    return Artifact(path, manifest)
