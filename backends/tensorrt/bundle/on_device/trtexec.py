"""The same by NVIDIA's program trtexec, where TensorRT's Python module is not installed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from .plan import Step, Version, decoded
from .store import Refused, Tensor

_PLACES = ("/usr/src/tensorrt/bin", "/opt/tensorrt/bin")
_FLAGS = {"FP16": "--fp16", "INT8": "--int8"}


def find() -> str | None:
    """The path of trtexec, from PATH or where JetPack puts it."""
    return shutil.which("trtexec") or shutil.which("trtexec", path=os.pathsep.join(_PLACES))


def version_of(program: str) -> Version:
    """As its banner says: `[TensorRT v8502]`."""
    done = _run([program, "--help"])
    match = re.search(r"\[TensorRT v(\d+)\]", done.stdout)
    if match is None:
        raise Refused(f"{program} does not say which TensorRT it is of")
    return decoded(int(match[1]))


def build_command(
    program: str, folder: Path, bundle: dict[str, Any], step: Step, asked: dict[str, Any]
) -> list[str]:
    """The command that writes the engine of `step`."""
    command = [
        program, f"--onnx={folder / step.file}", f"--saveEngine={asked['engine']}",
        f"--memPoolSize=workspace:{asked['workspace'] >> 20}", f"--timingCacheFile={asked['cache']}",
        "--skipInference",
    ]  # fmt: skip
    if asked["version"] < (8, 6, 0):
        command[-1] = "--buildOnly"  # the older name
    if step.strong and asked["version"] < (11, 0, 0):
        command.append("--stronglyTyped")
    command += [_FLAGS[f] for f in step.flags]
    if bundle.get("level") is not None and asked["version"] >= (8, 6, 0):
        command.append(f"--builderOptimizationLevel={bundle['level']}")
    if step.dla is not None:
        command += [f"--useDLACore={step.dla}", "--allowGPUFallback"]
    if step.calibration:
        command.append(f"--calib={folder / step.calibration}")
    for flag, key in (("--refit", "refit"), ("--versionCompatible", "version_compatible")):
        command += [flag] if bundle.get(key) else []
    for at, option in enumerate(("min", "opt", "max")):
        shapes = [f"{n}:{'x'.join(map(str, s[at]))}" for n, s in bundle["profiles"].items()]
        command += [f"--{option}Shapes={','.join(shapes)}"] if shapes else []
    return command


def build(command: list[str], time_limit: float) -> None:
    try:
        done = _run(command, time_limit)
    except subprocess.TimeoutExpired as error:
        raise Refused(
            f"trtexec took over {time_limit:g} s to build", "raise --time-limit"
        ) from error
    if done.returncode == -9:
        raise MemoryError
    if done.returncode != 0:
        raise Refused(f"trtexec failed: {first_error(done.stdout)}")


def run(
    program: str,
    engine: Path,
    feeds: dict[str, Tensor],
    like: dict[str, Tensor],
    seconds: float = 0.0,
) -> tuple[dict[str, Tensor], dict[str, list[float]]]:
    """The answers on `feeds`, in the types of `like`, and the times if `seconds` are spent on them."""
    with tempfile.TemporaryDirectory(prefix="effc-") as scratch:
        files = []
        for index, (name, tensor) in enumerate(feeds.items()):
            path = Path(scratch, f"{index}.bin")
            path.write_bytes(tensor.data)
            files.append(f"{name}:{path}")
        answers, times = Path(scratch, "out.json"), Path(scratch, "times.json")
        done = _run([
            program, f"--loadEngine={engine}", f"--loadInputs={','.join(files)}",
            f"--exportOutput={answers}", f"--exportTimes={times}",
            f"--duration={max(seconds, 0.1):g}", "--iterations=10", "--warmUp=200", "--useSpinWait",
        ])  # fmt: skip
        if done.returncode != 0 or not answers.is_file():
            raise Refused(f"trtexec can't run the engine: {first_error(done.stdout)}")
        found = read_answers(answers.read_text(encoding="utf-8"), like)
        timed = read_times(times.read_text(encoding="utf-8")) if times.is_file() else {}
    return found, timed


def read_answers(text: str, like: dict[str, Tensor]) -> dict[str, Tensor]:
    """What --exportOutput writes: a list of name, dimensions and values."""
    found = {}
    for entry in json.loads(text):
        name = entry["name"]
        if name in like:
            shape = tuple(int(d) for d in re.split(r"[x,]", str(entry.get("dimensions", ""))) if d)
            found[name] = Tensor.of([float(v) for v in entry["values"]], shape).cast(
                like[name].code
            )
    if set(found) != set(like):
        raise Refused(f"trtexec gave no output {min(set(like) - set(found))!r}")
    return found


def read_times(text: str) -> dict[str, list[float]]:
    """What --exportTimes writes: milliseconds of single inferences."""
    rows = json.loads(text)
    return {
        "device": [row["computeMs"] / 1e3 for row in rows],
        "host": [row["latencyMs"] / 1e3 for row in rows],
    }


def first_error(text: str) -> str:
    """The first line that trtexec marks as an error."""
    for line in text.splitlines():
        if "[E]" in line:
            return line.split("[E]", 1)[1].strip()[:300]
    return (text.strip().splitlines() or ["no output"])[-1][:300]


def _run(command: list[str], time_limit: float | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=time_limit,
    )
