"""What a Mac adds to an artifact: the answers and times of every compute unit, and where operations run.

The artifact brings its goldens along (goldens.npz), so neither the source model nor onnxruntime is needed.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from effc.backends.coreml.runner import UNITS, Mac, MacRunner
from effc.core.artifact import Artifact, Manifest, Verdict
from effc.core.errors import ConfigError
from effc.core.measure import Array, Device, Measurement, Runner
from effc.core.passinfra import Effect
from effc.core.verify import compare_outputs, judge

GOLDENS = "goldens.npz"
REPEATS = 30

Named = dict[str, Array]


def finish(artifact: Artifact, devices: Sequence[Device] | None = None) -> Artifact:
    """The artifact with the verdict of the worst device, the times of each, and how they differ.

    `devices` are by default Core ML's four choices of compute units. The first stands for the package.
    """
    devices = [Mac(unit) for unit in UNITS] if devices is None else devices
    manifest = artifact.manifest
    feeds, goldens = read_goldens(artifact.path / GOLDENS)
    promise = max((Effect[p.effect] for p in manifest.passes if p.rewrites), default=Effect.EXACT)
    verdicts, measured, found = [], [], {}
    reference: list[Named] = []
    for device in devices:
        with device.runner(artifact) as runner:
            answers = [runner.infer(f) for f in feeds]
            timed = runner.time(feeds[0], REPEATS) if device.source == "device" else None
            plan = shares(runner)
        verdict = judge(goldens, answers, promise)
        reference = reference or answers
        apart = max(e.max_rel for e in compare_outputs(reference, answers))
        verdicts.append((device, verdict))
        if timed is not None:
            measured.append(timed)
        found[device.name] = _row(verdict, apart, timed, plan)
    return Artifact(artifact.path, _finished(manifest, verdicts, measured, found))


def _finished(
    manifest: Manifest,
    verdicts: Sequence[tuple[Device, Verdict]],
    measured: Sequence[Measurement],
    found: Mapping[str, Any],
) -> Manifest:
    failed = next(((d, v) for d, v in verdicts if v.status != "passed"), None)
    device, verdict = failed or max(verdicts, key=lambda p: p[1].max_error or 0.0)
    how = getattr(device, "how", "")
    where = device.name if failed or len(verdicts) == 1 else f"{len(verdicts)} compute units"
    return msgspec.structs.replace(
        manifest,
        verdict=msgspec.structs.replace(verdict, reason=f"{verdict.reason}; {how} ({where})"),
        measurements=tuple(measured),
        details={**manifest.details, "finished": dict(found)},
    )


def _row(
    verdict: Verdict, apart: float, timed: Measurement | None, plan: Mapping[str, float]
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "verdict": verdict.status, "reason": verdict.reason, "max_error": verdict.max_error,
        "from_first": apart,
    }  # fmt: skip
    if timed is not None and timed.median is not None:
        row["median_ms"] = 1e3 * timed.median
    if plan:
        row["cost"] = dict(plan)
    return row


def read_goldens(path: Path) -> tuple[list[Named], list[Named]]:
    """The recorded inputs and answers; ConfigError where the file is not one that effc wrote."""
    try:
        archive = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
        sets: dict[str, dict[int, Named]] = {"feeds": {}, "answers": {}}
        for key in archive.files:
            role, index, name = key.split("/", 2)
            sets[role].setdefault(int(index), {})[name] = archive[key]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{str(path)!r} holds no goldens: {str(error).splitlines()[0]}", hint="build it again"
        ) from error
    feeds, answers = ([s[i] for i in sorted(s)] for s in (sets["feeds"], sets["answers"]))
    if not feeds or len(feeds) != len(answers):
        raise ConfigError(f"{str(path)!r} holds no goldens", hint="build it again")
    return feeds, answers


def shares(runner: Runner) -> dict[str, float]:
    """The share of the estimated time on each kind of compute unit; empty off macOS.

    Source: MLComputePlan (macOS 14.4): the preferred device and the weight of every operation.
    """
    if not isinstance(runner, MacRunner):
        return {}
    import coremltools as ct
    from coremltools.models.compute_plan import MLComputePlan

    plan = MLComputePlan.load_from_path(
        path=runner.compiled(), compute_units=getattr(ct.ComputeUnit, runner.units)
    )
    program = plan.model_structure.program
    found: dict[str, float] = {}
    if program is None:
        return found
    for operation in program.functions["main"].block.operations:
        cost = plan.get_estimated_cost_for_mlprogram_operation(operation)
        usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
        if cost is None or usage is None:
            continue
        kind = type(usage.preferred_compute_device).__name__
        name = kind.removeprefix("ML").removesuffix("ComputeDevice")
        found[name] = found.get(name, 0.0) + float(cost.weight)
    return found
