"""The straight line, from a model to a proven artifact. Each step is one call in `build`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir

from effc import passes
from effc.artifacts import REPORT, check_place, seal, staging_folder
from effc.choices import (
    DEFAULTS,
    BuildOptions,
    choose_backend,
    choose_pipelines,
    choose_target,
)
from effc.core.artifact import Artifact, Manifest, PassEntry, Verdict, sha256_file
from effc.core.backend import Backend
from effc.core.check import check_model
from effc.core.cost import live_bytes
from effc.core.data import Samples, SyntheticSamples, open_samples
from effc.core.errors import ConfigError, DeviceError, VerificationError
from effc.core.instruments import DumpAfterEach, VerifyEach, first_broken_pass
from effc.core.measure import Array, Device, Feeds, LayerTime, Measurement, interleaved
from effc.core.passinfra import Effect, Instrument, Pass, PassContext, PassRecord, Pipeline
from effc.core.preprocess import Preprocess
from effc.core.reference import OnnxRuntimeRunner, record_goldens
from effc.core.shapes import fix_shapes, infer_shapes
from effc.core.source import Source
from effc.core.specs import static_specs
from effc.core.target import Target
from effc.core.verify import judge, quantized_outputs
from effc.further_shapes import at_further_shapes
from effc.passes.compress.report import read_notes
from effc.precision.bits import beside_integers
from effc.precision.plan import Workbench, compress, part
from effc.precision.recipe import RECIPE, save_recipe
from effc.report.page import write_page
from effc.sources import load
from effc.tuning import tuned

GOLDENS = 4  # samples whose answers are recorded before anything changes
GOLDENS_FILE = "goldens.npz"  # where a backend keeps them

Progress = Callable[
    [str, float], None
]  # what happens now, and how much of the build is done (0..1)


@dataclass(frozen=True, slots=True)
class BuildResult:
    """The sealed artifact and what the build saw on the way."""

    artifact: Artifact
    path: Path  # the folder, or the packed file
    passes: tuple[PassRecord, ...]
    measurements: tuple[Measurement, ...]


def build(
    source: str,
    target: str,
    out: Path,
    options: BuildOptions = DEFAULTS,
    *,
    progress: Progress = lambda what, done: None,
) -> BuildResult:
    """Build `source` (a path, `module:attr` or `zoo:name`) for `target` into the artifact `out`.

    Raises an EffcError where the model, the target or the answers are not as they should be. An artifact
    whose answers are wrong is sealed with the verdict `failed`, and then VerificationError is raised.
    """
    check_place(out, pack=options.pack)
    chosen = choose_target(target, options)

    progress("load", 0.0)
    loaded = load_source(source, options)
    chosen = replace(
        chosen,
        preprocess=options.preprocess or _wanted_preprocess(loaded),
        about={"source": loaded.name, "sha256": loaded.sha256, "version": version("effc")},
    )
    # after the model: to import a toolchain takes seconds
    backend = choose_backend(chosen, options)
    front, legal = choose_pipelines(options, backend, chosen)
    device = next(iter(backend.devices(chosen)), None)

    progress("record goldens", 0.2)
    samples = open_calibration(loaded, options)
    if samples.synthetic and (reason := backend.needs_samples(chosen)):
        raise ConfigError(reason, hint="give pictures like those it will see: --samples FOLDER")
    goldens = Goldens.record(loaded.model, samples)

    model = loaded.model.clone()
    context = PassContext(chosen, samples, options.seed)
    instruments = _instruments(options, goldens.feeds)
    shown = _PassProgress(progress, 0.22, 0.25, front)
    records = front.run(model, context, [*instruments, shown])  # canonicalize, fuse
    bench = Workbench(
        backend, chosen, device, samples, options, tuple(instruments), part(progress, 0.25, 0.6)
    )
    planned = compress(model, bench, loaded.sha256)
    forms = _other_forms(backend, chosen, model, context, instruments)
    model = planned.model
    if planned.recipe is not None:
        progress = part(progress, 0.5, 1.0)
    records += planned.records + legal.run(model, context, instruments)
    pipeline = front + planned.pipeline + legal

    progress(f"lower for {chosen.profile.name}", 0.25)
    lowered = backend.attach(backend.lower(model, chosen), forms)
    lowered = tuned(
        lowered,
        backend,
        chosen,
        device,
        goldens.feeds[0],
        options,
        lambda what, share: progress(what, 0.3 + 0.25 * share),
    )

    with staging_folder(out, pack=options.pack) as folder:
        progress("compile", 0.55 if options.tune_seconds else 0.3)
        files = dict(backend.compile(lowered, chosen, folder))
        if backend.keeps_goldens:
            files["goldens"] = goldens.save(folder / GOLDENS_FILE)
        if planned.recipe is not None:
            save_recipe(folder / RECIPE, planned.recipe)
            files["recipe"] = folder / RECIPE
        artifact = Artifact(
            folder,
            Manifest(
                format=1,
                source={"name": loaded.name, "sha256": loaded.sha256, "frontend": loaded.kind},
                target=chosen.profile.name,
                backend=backend.id,
                precision=chosen.precision,
                inputs=static_specs(loaded.model.graph.inputs),
                outputs=static_specs(loaded.model.graph.outputs),
                files={p.relative_to(folder).as_posix(): sha256_file(p) for p in files.values()},
                passes=tuple(PassEntry(r.id, r.options, r.effect, r.rewrites) for r in records),
                pipeline=str(pipeline),
                versions=_versions(backend),
                verdict=Verdict("not run", backend.why_no_device(chosen)),
                preprocess=_described(options.preprocess or _wanted_preprocess(loaded)),
                details={
                    **backend.describe(lowered),
                    **planned.describe(),
                    **read_notes(model),
                    "goldens": goldens.describe(),
                },
            ),
        )
        layers: list[LayerTime] = []
        if device is not None:
            progress("verify", 0.6)
            verdict = _verify(device, artifact, loaded, goldens, records)
            verdict = at_further_shapes(
                verdict,
                backend.further_shapes(chosen),
                device,
                artifact,
                lambda shapes: load_source(
                    source, replace(options, shapes={**options.shapes, **shapes})
                ),
                lambda other: open_calibration(other, options),
                _promise(records),
            )
            verdict = beside_integers(verdict, model, device, artifact, goldens.feeds)
            artifact = _with(artifact, verdict=_noted(verdict, device))
            wanted = options.measure and artifact.manifest.verdict.status == "passed"
            if wanted and backend.times(device):
                measured = _measure(device, artifact, loaded, goldens.feeds[0], options, progress)
                artifact = _with(artifact, measurements=measured)
                layers = _layers(device, artifact, goldens.feeds[0])
            elif wanted and device.source == "emulator":
                artifact = _with(artifact, measurements=_count(device, artifact, goldens.feeds[0]))
                layers = _layers(device, artifact, goldens.feeds[0])
        write_page(
            folder / REPORT, artifact.manifest, layers=layers, memory=live_bytes(model.graph)
        )
        artifact, path = seal(folder, artifact.manifest, out, pack=options.pack)

    if artifact.manifest.verdict.status == "failed":
        raise VerificationError(
            f"{str(out)!r}: {artifact.manifest.verdict.reason}",
            hint=_blame(loaded.model, pipeline, context, goldens.feeds),
        )
    progress("done", 1.0)
    return BuildResult(artifact, path, records, artifact.manifest.measurements)


def _other_forms(
    backend: Backend[Any],
    target: Target,
    fused: ir.Model,
    context: PassContext,
    instruments: Sequence[Instrument],
) -> dict[str, ir.Model]:
    """The forms of the fused float model that the artifact holds beside its own."""
    forms = {}
    for name, text in backend.other_forms(target).items():
        forms[name] = fused.clone()
        passes.parse(text).run(forms[name], context, instruments)
    return forms


@dataclass(frozen=True, slots=True)
class Goldens:
    """The answers of the untouched model, recorded before anything changes."""

    samples: Samples
    feeds: list[Feeds]
    answers: list[dict[str, Array]]

    @classmethod
    def record(cls, model: ir.Model, samples: Samples) -> Goldens:
        """Record the first GOLDENS of `samples` with onnxruntime, its optimizations off."""
        feeds = list(islice(samples, GOLDENS))
        return cls(samples, feeds, record_goldens(model, feeds))

    def save(self, path: Path) -> Path:
        """Write them as npz: `feeds/0/x`, `answers/0/y`, ..."""
        arrays: dict[str, Any] = {}
        for role, sets in (("feeds", self.feeds), ("answers", self.answers)):
            for i, named in enumerate(sets):
                arrays.update({f"{role}/{i}/{name}": a for name, a in named.items()})
        np.savez(path, **arrays)
        return path

    def describe(self) -> dict[str, Any]:
        """What the manifest says about them."""
        return {
            "samples": len(self.feeds),
            "synthetic": self.samples.synthetic,
            "fingerprint": self.samples.fingerprint,
        }


def load_source(source: str, options: BuildOptions) -> Source:
    """The model: read, checked, its shapes fixed and inferred."""
    loaded = load(source, options.shapes)
    check_model(loaded.model, allow_nonfinite=options.allow_nonfinite)
    fix_shapes(loaded.model, options.shapes)
    infer_shapes(loaded.model)
    static_specs(loaded.model.graph.inputs)  # first: there a remedy is known
    static_specs(loaded.model.graph.outputs)
    return loaded


def _wanted_preprocess(source: Source) -> Preprocess | None:
    return Preprocess.parse(source.preprocess) if source.preprocess else None


def _described(preprocess: Preprocess | None) -> dict[str, Any] | None:
    return preprocess.describe() if preprocess else None


def open_calibration(source: Source, options: BuildOptions) -> Samples:
    """The user's samples, or made-up ones, which say so."""
    inputs = static_specs(source.model.graph.inputs)
    preprocess = options.preprocess or _wanted_preprocess(source)
    if isinstance(options.samples, Path):
        return open_samples(options.samples, inputs, preprocess)
    return options.samples or SyntheticSamples(
        inputs, count=GOLDENS, seed=options.seed, preprocess=preprocess
    )


def _instruments(options: BuildOptions, feeds: Sequence[Feeds]) -> list[Instrument]:
    found: list[Instrument] = []
    if options.dump is not None:
        found.append(DumpAfterEach(options.dump))
    if options.verify_each:
        found.append(VerifyEach(feeds))
    return found


class _PassProgress:
    """Reports each pass as the share of the build between `begin` and `end`."""

    def __init__(self, progress: Progress, begin: float, end: float, pipeline: Pipeline) -> None:
        self.progress = progress
        self.begin = begin
        self.step = (end - begin) / max(len(pipeline.passes), 1)
        self.done = 0

    def before(self, step: Pass, model: ir.Model) -> None:
        self.progress(step.id, self.begin + self.done * self.step)
        self.done += 1

    def after(self, step: Pass, model: ir.Model, record: PassRecord) -> None: ...

    def failed(self, step: Pass, model: ir.Model, error: Exception) -> None: ...


def _verify(
    device: Device,
    artifact: Artifact,
    source: Source,
    goldens: Goldens,
    records: Sequence[PassRecord],
) -> Verdict:
    """The artifact's answers on `device`, held to the weakest promise of the passes that changed anything."""
    promise = _promise(records)
    with device.runner(artifact) as runner:
        answers = [runner.infer(f) for f in goldens.feeds]

    def control() -> list[dict[str, Array]]:
        return record_goldens(source.model, goldens.feeds, optimize=True)

    return judge(goldens.answers, answers, promise, control, quantized_outputs(source.model))


def _promise(records: Sequence[PassRecord]) -> Effect:
    """The weakest promise of the passes that changed anything."""
    return max((Effect[r.effect] for r in records if r.rewrites), default=Effect.EXACT)


def _noted(verdict: Verdict, device: Device) -> Verdict:
    """With the way the answers were got, where the device says that it is not the plain one."""
    how = getattr(device, "how", "")
    return msgspec.structs.replace(verdict, reason=f"{verdict.reason}; {how}") if how else verdict


def _with(artifact: Artifact, **changes: Any) -> Artifact:
    return Artifact(artifact.path, msgspec.structs.replace(artifact.manifest, **changes))


def _measure(
    device: Device,
    artifact: Artifact,
    source: Source,
    feeds: Feeds,
    options: BuildOptions,
    progress: Progress,
) -> tuple[Measurement, ...]:
    """The artifact beside onnxruntime on the untouched model, interleaved, at each thread count."""
    cores = len(os.sched_getaffinity(0))
    measured: list[Measurement] = []
    counts = options.threads or tuple(sorted({1, cores}))
    if getattr(device, "elsewhere", False):  # this machine's onnxruntime is no measure of it
        for threads in options.threads or (1,):
            progress(f"measure at {threads} threads", 0.7)
            with device.runner(artifact, threads) as there:
                measured.append(there.time(feeds, 50))
        return tuple(measured)
    for at, threads in enumerate(counts):
        begin, share = 0.65 + 0.3 * at / len(counts), 0.3 / len(counts)
        with (
            device.runner(artifact, threads) as ours,
            OnnxRuntimeRunner(source.model, threads=threads) as theirs,
        ):
            own, reference = interleaved(
                [ours, theirs],
                feeds,
                on_round=_rounds(progress, f"measure at {threads} threads", begin, share),
            )
            measured += [
                msgspec.structs.replace(own, name=f"effc {artifact.manifest.backend}"),
                reference,
            ]
    return tuple(measured)


def _count(device: Device, artifact: Artifact, feeds: Feeds) -> tuple[Measurement, ...]:
    """Instructions, where the emulator counts them; never seconds."""
    try:
        with device.runner(artifact) as runner:
            counted = runner.time(feeds, 1)
    except DeviceError:  # it runs the artifact, and counts nothing
        return ()
    return (counted,) if counted.instructions else ()


def _rounds(
    progress: Progress, what: str, begin: float, share: float
) -> Callable[[int, int], None]:
    return lambda done, total: progress(what, begin + share * done / total)


def _layers(device: Device, artifact: Artifact, feeds: Feeds) -> list[LayerTime]:
    """The time of every call on one thread, for the report."""
    with device.runner(artifact) as runner:
        return runner.layers(feeds, 20)


def _blame(
    original: ir.Model, pipeline: Pipeline, context: PassContext, feeds: Sequence[Feeds]
) -> str:
    """Which step is guilty of wrong answers: the first pass that breaks its promise, or the backend."""
    broken = first_broken_pass(original, pipeline, feeds, context)
    if broken is None:
        return "every pass keeps its promise, so the backend is wrong: report it with the model"
    return (
        f"pass {broken} is the first that breaks its promise: leave it out with --skip {broken.id}"
    )


def _versions(backend: Backend[Any]) -> dict[str, str]:
    own = {name: version(name) for name in ("effc", "onnx", "onnx-ir", "numpy", "onnxruntime")}
    return {**own, **(backend.probe().versions or {})}
