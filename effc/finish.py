"""Finish an artifact on its device, and put what was learned into it."""

from __future__ import annotations

from pathlib import Path

import msgspec

from effc.artifacts import REPORT
from effc.backends import make_backend
from effc.core.artifact import MANIFEST, Artifact, load_artifact, write_atomically
from effc.core.errors import ConfigError, DeviceError, VerificationError
from effc.report.page import write_page


def finish(path: Path, device: str = "", ssh_config: Path | None = None) -> Artifact:
    """Verify and measure the artifact folder `path` here; its manifest and report are written anew.

    With `device`, like ssh://user@host, that happens there; `ssh_config` is ssh's -F.

    DeviceError where this machine is not its device; VerificationError where its answers are wrong, after
    the verdict was written.
    """
    if path.is_file():
        raise ConfigError(
            f"{str(path)!r} is a file: finishing writes into a folder",
            hint="build without --pack, or unzip it",
        )
    artifact = load_artifact(path)
    backend = make_backend(artifact.manifest.backend)
    available = backend.probe()
    if not available.ok:
        raise DeviceError(
            f"artifact {str(path)!r} needs the backend {backend.id!r}: {available.reason}",
            hint=available.hint,
        )
    done = backend.finish_on(artifact, device, ssh_config) if device else backend.finish(artifact)
    text = msgspec.json.format(msgspec.json.encode(done.manifest), indent=1) + b"\n"
    write_page(path / REPORT, done.manifest)
    write_atomically(path / MANIFEST, text)
    if done.manifest.verdict.status == "failed":
        raise VerificationError(f"{str(path)!r}: {done.manifest.verdict.reason}")
    return done
