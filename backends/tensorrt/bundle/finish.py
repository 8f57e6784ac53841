"""Finishing a bundle: its script run on the device, here or through ssh, and its report taken in."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import msgspec

from effc.backends.tensorrt.bundle.on_device import store
from effc.backends.tensorrt.bundle.on_device.trtexec import find as find_trtexec
from effc.core.artifact import (
    MANIFEST,
    Artifact,
    OutputError,
    Verdict,
    sha256_file,
    write_atomically,
)
from effc.core.errors import ConfigError, DeviceError
from effc.core.measure import Measurement
from effc.core.ssh import Address, Connection

SCRIPT = "build_on_device.py"
ARGUMENTS = ("--seconds", "3")  # for each engine's times
_WRONG_ANSWERS = 1  # exit status of the script


def finish(artifact: Artifact) -> Artifact:
    """Build here if TensorRT is here; else take in the report that the script left in the bundle."""
    python = _python()
    if python or find_trtexec():
        done = subprocess.run(
            [python or sys.executable, str(artifact.path / SCRIPT), *ARGUMENTS],
            capture_output=True,
            text=True,
        )
        _check(done, "this machine")
    elif not (artifact.path / store.REPORT).is_file():
        raise DeviceError(
            "neither TensorRT nor trtexec is found here: this machine can't finish the bundle",
            hint=f"effc finish --device ssh://user@host, or python3 {SCRIPT} on the device",
        )
    return take_in(artifact)


def finish_on(artifact: Artifact, address: str, config: Path | None = None) -> Artifact:
    """Copy the bundle to the device, run its script there, fetch report and engines, take them in.

    The folder on the device is removed whatever happens; timing caches stay there, in the user's cache.
    """
    connection = Connection(Address.parse(address), config)
    with connection.scratch() as folder, tempfile.TemporaryDirectory(prefix="effc-") as local:
        sent = Path(local, "bundle")
        for name in (MANIFEST, *artifact.manifest.files):
            place = sent / name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(artifact.path / name, place)
        connection.send(sent, folder)
        done = connection.run(["python3", f"{folder}/bundle/{SCRIPT}", *ARGUMENTS])
        if done.returncode == 127:
            raise DeviceError(
                f"python3 is not found on {connection.address}", hint="sudo apt install python3"
            )
        _check(done, str(connection.address))
        fetched = Path(local, "fetched")
        fetched.mkdir()
        connection.fetch(f"{folder}/bundle/{store.REPORT}", fetched)
        connection.fetch(f"{folder}/bundle/engines", fetched)
        report = read_report(fetched / store.REPORT, artifact)
        for row in report["engines"]:
            engine = PurePosixPath(row["engine"])
            if engine.is_absolute() or ".." in engine.parts:
                raise DeviceError(
                    f"the report of {connection.address} names the file {str(engine)!r}"
                )
            if sha256_file(fetched / engine) != row["sha256"]:
                raise DeviceError(f"{engine} was damaged on its way from {connection.address}")
            (artifact.path / engine).parent.mkdir(exist_ok=True)
            write_atomically(artifact.path / engine, (fetched / engine).read_bytes())
        write_atomically(artifact.path / store.REPORT, (fetched / store.REPORT).read_bytes())
    return take_in(artifact)


def _python() -> str:
    """An interpreter that has TensorRT: this one, or the system's, where JetPack puts it."""
    if importlib.util.find_spec("tensorrt") is not None:
        return sys.executable
    system = shutil.which("python3", path="/usr/bin")
    if system is None:
        return ""
    done = subprocess.run([system, "-c", "import tensorrt"], capture_output=True)
    return system if done.returncode == 0 else ""


def _check(done: subprocess.CompletedProcess[str], where: str) -> None:
    """DeviceError with what the script said, unless it left a report."""
    if done.returncode in (0, _WRONG_ANSWERS):
        return
    lines = done.stderr.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    hints = [line for line in lines if line.startswith("  hint: ")]
    said = errors[-1][7:] if errors else (lines or [f"exit status {done.returncode}"])[-1]
    raise DeviceError(f"on {where}: {said}", hint=hints[-1][8:] if hints else "")


def read_report(path: Path, artifact: Artifact) -> dict[str, Any]:
    """The report; DeviceError where it is none, or about another bundle."""
    try:
        report = dict(msgspec.json.decode(path.read_bytes()))
        same = report["bundle"] == store.identity(artifact.manifest.files)
    except (OSError, msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
        raise DeviceError(
            f"{str(path)!r} is no report: {error}", hint="run the script again"
        ) from error
    if not same:
        raise DeviceError(
            f"{str(path)!r} is about another bundle than {str(artifact.path)!r}",
            hint=f"run {SCRIPT} of this bundle again",
        )
    return report


def take_in(artifact: Artifact) -> Artifact:
    """The artifact with the verdict and the times of its report; the manifest is not written."""
    report = read_report(artifact.path / store.REPORT, artifact)
    rows = report["engines"]
    if not rows:
        raise DeviceError("the report lists no engine", hint=f"run {SCRIPT} without --form")
    device = report["after"].get("board") or report["host"]
    name = f"{device}, TensorRT {report['tensorrt']}"
    failed = next((r for r in rows if r["verdict"]["status"] != "passed"), None)
    shown = failed or rows[0]
    manifest = msgspec.structs.replace(
        artifact.manifest,
        verdict=_verdict(shown, name),
        measurements=tuple(_measurement(r, name) for r in rows if "device_ms" in r),
        details={
            **artifact.manifest.details,
            "finished": {r["form"]: _row(r) for r in rows},
            "device": {
                k: report[k] for k in ("tensorrt", "via", "before", "after", "notes", "fastest")
            },
        },
    )
    return Artifact(artifact.path, manifest)


def _verdict(row: Mapping[str, Any], device: str) -> Verdict:
    verdict = row["verdict"]
    if verdict["status"] not in ("passed", "failed"):
        raise ConfigError(f"the report has the status {verdict['status']!r}")
    status: Literal["passed", "failed"] = verdict["status"]
    return Verdict(
        status,
        f"{row['form']}: {verdict['reason']}; engine built on {device}",
        verdict["max_error"],
        outputs=tuple(
            OutputError(o["name"], o["max_abs"], o["max_rel"], o["sqnr_db"])
            for o in verdict["outputs"]
        ),
    )


def _measurement(row: Mapping[str, Any], device: str) -> Measurement:
    seconds = tuple(1e-3 * v for v in row["device_ms"]["values"])
    return Measurement("device", device, f"TensorRT {row['form']}", 1, seconds)


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    found = {
        "verdict": row["verdict"]["status"], "reason": row["verdict"]["reason"],
        "max_error": row["verdict"]["max_error"], "engine": row["engine"], "sha256": row["sha256"],
        "how": row["how"],
    }  # fmt: skip
    if "device_ms" in row:
        found["median_ms"] = row["device_ms"]["median"]
        found["host_to_host_ms"] = row["host_ms"]["median"]
    return found
