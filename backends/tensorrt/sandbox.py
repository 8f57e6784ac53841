"""Runs a build in a process of its own, within a time and a memory limit."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from effc.core.errors import LoweringError

_WORKER = Path(__file__).with_name("build_engine.py")
_STEP = 0.02  # seconds between two looks at the process


class ParserError(msgspec.Struct, frozen=True):
    """What TensorRT's parser says about one node."""

    code: str
    node: str
    op: str
    text: str


class Fallback(msgspec.Struct, frozen=True):
    """One layer that a DLA core can't take, and the ONNX nodes that it is made of."""

    layer: str
    nodes: str


class Outcome(msgspec.Struct, frozen=True):
    """How a build ended. `stage` is parse or build; `layers` the report of the engine's layers."""

    stage: str
    ok: bool
    version: str
    seconds: float
    layers: str = ""
    errors: tuple[ParserError, ...] = ()
    messages: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    gpu_fallback: tuple[Fallback, ...] = ()
    where: str = ""  # the part of the network whose compilation failed, as the log names it


def run_build(
    request: Mapping[str, Any], *, seconds: float = 600.0, memory: int = 8 << 30
) -> Outcome:
    """Run build_engine.py on `request`.

    LoweringError where it takes more than `seconds`, or more than `memory` bytes of this machine, or ends
    without an outcome; what it finds wrong with the model stands in the outcome.
    """
    with tempfile.TemporaryDirectory(prefix="effc-tensorrt-") as folder:
        asked, answered, said = (Path(folder) / n for n in ("request", "outcome", "said"))
        asked.write_text(json.dumps(dict(request)), encoding="utf-8")
        with said.open("wb") as words:
            process = subprocess.Popen(
                [sys.executable, "-P", str(_WORKER), str(asked), str(answered)],
                stdin=subprocess.DEVNULL, stdout=words, stderr=subprocess.STDOUT,
            )  # fmt: skip
            try:
                stopped = _watch(process, seconds, memory)
            finally:
                if process.poll() is None:
                    process.kill()
                process.wait()
        if stopped:
            raise LoweringError(stopped[0], hint=stopped[1])
        if process.returncode != 0 or not answered.is_file():
            raise LoweringError(f"TensorRT's process {_end(process.returncode)}: {_last(said)}")
        return msgspec.json.decode(answered.read_bytes(), type=Outcome)


def _watch(process: subprocess.Popen[bytes], seconds: float, memory: int) -> tuple[str, str] | None:
    """Wait for the end; what was too much, and the remedy, where something was."""
    end = time.monotonic() + seconds
    while True:
        try:
            process.wait(_STEP)
            return None
        except subprocess.TimeoutExpired:
            pass
        if time.monotonic() > end:
            return (
                f"TensorRT took more than {seconds:g} s to build the engine",
                "allow more with --backend-option time-limit=SECONDS",
            )
        if (used := resident(process.pid)) > memory:
            return (
                f"TensorRT took {used / (1 << 30):.1f} GiB of memory to build the engine, and"
                f" {memory / (1 << 30):.3g} GiB are allowed",
                "allow more with --backend-option memory-limit=16G",
            )


def resident(pid: int) -> int:
    """The bytes of memory that a process holds; 0 where the system does not say."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(x.split()[1]) << 10 for x in lines if x.startswith("VmRSS:")), 0)


def _end(code: int) -> str:
    return f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"


def _last(said: Path) -> str:
    lines = said.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "it said nothing"
