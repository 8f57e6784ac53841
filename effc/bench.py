"""Latency of artifacts and models against each other: interleaved, with intervals, and honest about noise."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version

import msgspec

from effc.core.data import SyntheticSamples
from effc.core.errors import ConfigError, EffcError
from effc.core.gpu import GpuUse, OnGpu, use_of
from effc.core.gpu import cautions as gpu_cautions
from effc.core.measure import LayerTime, Measurement, interleaved
from effc.machine import Machine, cautions, this_machine
from effc.runnable import Runnable, open_model

OnRound = Callable[[int, int], None]  # rounds done, of how many
ONNXRUNTIME = "onnxruntime"


class BenchRow(msgspec.Struct, frozen=True):
    """One competitor at one thread count. `ratio` is its median over the baseline's: under 1 is faster."""

    name: str
    threads: int
    median_ms: float
    interval_ms: tuple[float, float]  # 95 % of the median, by order statistics
    repeats: int
    source: str  # "device" or "emulator"
    ratio: float | None = None
    verdict: str = ""  # "faster", "slower", "inside the noise"; "baseline" for the row itself
    instructions: int | None = (
        None  # of one inference, where an emulator counts them; then no times
    )


class Bench(msgspec.Struct, frozen=True):
    """All rows, and where they were measured."""

    rows: tuple[BenchRow, ...]
    machine: Machine
    cautions: tuple[str, ...]
    layers: Mapping[str, tuple[LayerTime, ...]] = {}
    gpu: Mapping[str, GpuUse] = {}  # of the subjects that run on one


def bench(
    subjects: Sequence[Runnable],
    *,
    threads: Sequence[int] = (1,),
    seconds: float = 4.0,
    rounds: int = 20,
    layers: bool = False,
    batches: Sequence[int] = (),
    on_round: OnRound = lambda done, total: None,
) -> Bench:
    """Time `subjects` on made-up inputs, in turn, for about `seconds` at each thread count.

    The last subject is the baseline of the ratios if there are several. Intervals that overlap are called
    noise. With `layers`, the median time of every call of each subject that can tell, at the first count.
    Subjects on a GPU are also timed host to host, with its clocks, heat and energy, and at `batches`.
    """
    machine = this_machine()
    rows: list[BenchRow] = []
    profiles: dict[str, tuple[LayerTime, ...]] = {}
    used: dict[str, GpuUse] = {}
    feeds = [
        next(iter(SyntheticSamples(s.inputs, count=1, preprocess=s.preprocess))) for s in subjects
    ]
    for at, count in enumerate(threads):
        with contextlib.ExitStack() as stack:
            runners = [stack.enter_context(s.runner(count)) for s in subjects]
            measured = interleaved(
                runners,
                feeds,
                seconds=seconds,
                rounds=rounds,
                on_round=_part(on_round, at, len(threads)),
            )
            rows += _compared([_row(s.name, m) for s, m in zip(subjects, measured, strict=True)])
            if layers and at == 0:
                for s, runner, feed in zip(subjects, runners, feeds, strict=True):
                    profiles[s.name] = tuple(runner.layers(feed, 30))
            if at == 0:
                for s, runner, feed in zip(subjects, runners, feeds, strict=True):
                    if isinstance(runner, OnGpu):
                        used[s.name] = use_of(runner, runner.gpu_bus, feed, batches)
    if batches and not used:
        raise ConfigError(
            "none of these runs on a GPU: batches are swept there", hint="leave --batches out"
        )
    notes = [*cautions(machine), *(n for use in used.values() for n in gpu_cautions(use))]
    return Bench(tuple(rows), machine, tuple(notes), profiles, used)


def with_onnxruntime(subjects: Sequence[Runnable]) -> list[Runnable]:
    """`subjects`, and the source of the first artifact among them, run by onnxruntime, as the baseline.

    A model among the subjects runs by onnxruntime anyway, and becomes the baseline. ConfigError where the
    artifact's source is gone or has changed.
    """
    models = [s for s in subjects if s.model is not None]
    if models:
        return [s for s in subjects if s is not models[-1]] + [models[-1]]
    artifact = next(s.artifact for s in subjects if s.artifact is not None)
    manifest = artifact.manifest
    name = manifest.source.get("name", "")
    remedy = "name the model beside the artifact: effc bench ARTIFACT MODEL"
    try:
        found = open_model(name, {s.name: s.shape for s in manifest.inputs})
    except EffcError as error:
        raise ConfigError(
            f"the source of the artifact can't be opened to run it with onnxruntime: {error}",
            hint=remedy,
        ) from error
    if found.sha256 != manifest.source.get("sha256"):
        raise ConfigError(
            f"{name!r} is not what the artifact was built from (SHA-256 differs)", hint=remedy
        )
    return [*subjects, dataclasses.replace(found, name=f"{ONNXRUNTIME} {version(ONNXRUNTIME)}")]


def _part(on_round: OnRound, at: int, parts: int) -> OnRound:
    return lambda done, total: on_round(at * total + done, parts * total)


def judge(row: BenchRow, baseline: BenchRow) -> BenchRow:
    """`row` with its ratio to `baseline`, and whether the difference stands out of the noise."""
    if row.instructions is not None or baseline.instructions is not None:
        return _judged_by_count(row, baseline)
    low, high = row.interval_ms
    base_low, base_high = baseline.interval_ms
    verdict = "faster" if high < base_low else "slower" if low > base_high else "inside the noise"
    ratio = row.median_ms / baseline.median_ms if baseline.median_ms > 0 else None
    return msgspec.structs.replace(row, ratio=ratio, verdict=verdict)


def _judged_by_count(row: BenchRow, baseline: BenchRow) -> BenchRow:
    """Counts are exact; a count and a time can't be compared."""
    if not row.instructions or not baseline.instructions:
        return msgspec.structs.replace(row, verdict="not comparable")
    ratio = row.instructions / baseline.instructions
    verdict = "fewer" if ratio < 1 else "more" if ratio > 1 else "as many"
    return msgspec.structs.replace(row, ratio=ratio, verdict=verdict)


def _compared(rows: list[BenchRow]) -> list[BenchRow]:
    if len(rows) < 2:
        return rows
    *others, baseline = rows
    named = msgspec.structs.replace(baseline, ratio=1.0, verdict="baseline")
    return [*(judge(row, baseline) for row in others), named]


def _row(name: str, measurement: Measurement) -> BenchRow:
    low, high = measurement.interval() or (0.0, 0.0)
    return BenchRow(
        name,
        measurement.threads,
        1e3 * (measurement.median or 0.0),
        (1e3 * low, 1e3 * high),
        len(measurement.seconds),
        measurement.source,
        instructions=None if measurement.seconds else measurement.instructions,
    )
