"""The straight line, from a model to a proven artifact. Each step is one call in `build`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import onnx_ir as ir

from effc import passes
from effc.artifacts import REPORT, check_place, seal, staging_folder
from effc.backends import BACKENDS, make_backend
from effc.core.artifact import Artifact, Manifest, PassEntry, TensorSpec, Verdict, sha256_file
from effc.core.backend import Backend, TuneBudget
from effc.core.check import check_model
from effc.core.cost import live_bytes
from effc.core.data import Samples, SyntheticSamples, open_samples
from effc.core.errors import BackendUnavailable, ConfigError, VerificationError
from effc.core.instruments import DumpAfterEach, VerifyEach, first_broken_pass
from effc.core.measure import Device, Feeds, LayerTime, Measurement, interleaved
from effc.core.passinfra import Effect, Instrument, Pass, PassContext, PassRecord, Pipeline
from effc.core.preprocess import Preprocess
from effc.core.profiles import load_profile
from effc.core.reference import OnnxRuntimeRunner, record_goldens
from effc.core.shapes import fix_shapes, infer_shapes
from effc.core.source import Source
from effc.core.specs import static_specs
from effc.core.target import Target
from effc.core.verify import judge
from effc.report.page import write_page
from effc.sources import load

PRECISIONS = ("fp32",)
GOLDENS = 4  # samples whose answers are recorded before anything changes

Progress = Callable[
    [str, float], None
]  # what happens now, and how much of the build is done (0..1)


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """The user's choices; the defaults are what `effc build MODEL --target T` means."""

    precision: str = "fp32"
    backend: str = ""  # "" is the backend of the target's profile
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    samples: Samples | Path | None = None  # a path is opened for the inputs of the model
    preprocess: Preprocess | None = None
    pipeline: str = ""  # replaces the default passes
    passes: tuple[str, ...] = ()  # appended to the pipeline: `id{options}` or `file.py:Class`
    skip: frozenset[str] = frozenset()  # ids left out of the whole pipeline
    tune_seconds: float = 0.0
    seed: int = 0
    threads: tuple[int, ...] = ()  # thread counts to measure; () is one and all cores
    measure: bool = True
    verify_each: bool = False
    dump: Path | None = None
    pack: bool = False
    allow_nonfinite: bool = False


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
    options: BuildOptions = BuildOptions(),
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
    loaded = load(source, options.shapes)
    check_model(loaded.model, allow_nonfinite=options.allow_nonfinite)
    fix_shapes(loaded.model, options.shapes)
    infer_shapes(loaded.model)
    model = loaded.model.clone()
    backend = choose_backend(
        chosen, options
    )  # after the model: a toolchain takes seconds to import
    pipeline = choose_pipeline(options, backend, chosen)
    inputs, outputs = static_specs(model.graph.inputs), static_specs(model.graph.outputs)

    progress("record goldens", 0.2)
    preprocess = options.preprocess or _known_preprocess(loaded)
    given = _samples(options, inputs, preprocess)
    samples = given or SyntheticSamples(inputs, count=GOLDENS, seed=options.seed)
    feeds = list(islice(samples, GOLDENS))
    goldens = record_goldens(model, feeds)

    context = PassContext(chosen, given, options.seed)
    records = pipeline.run(
        model,
        context,
        [*_instruments(options, feeds), _PassProgress(progress, 0.22, 0.25, pipeline)],
    )

    progress(f"lower for {chosen.profile.name}", 0.25)
    lowered = backend.lower(model, chosen)
    device = next(iter(backend.devices(chosen)), None)
    if options.tune_seconds and device is not None:
        progress("tune", 0.3)
        lowered = backend.tune(lowered, chosen, TuneBudget(options.tune_seconds), device)

    with staging_folder(out, pack=options.pack) as folder:
        progress("compile", 0.3)
        files = backend.compile(lowered, chosen, folder)
        manifest = Manifest(
            format=1,
            source={"name": loaded.name, "sha256": loaded.sha256, "frontend": loaded.kind},
            target=chosen.profile.name,
            backend=backend.id,
            precision=chosen.precision,
            inputs=inputs,
            outputs=outputs,
            files={
                path.relative_to(folder).as_posix(): sha256_file(path) for path in files.values()
            },
            passes=tuple(PassEntry(r.id, r.options, r.effect, r.rewrites) for r in records),
            pipeline=str(pipeline),
            versions=_versions(backend),
            verdict=Verdict("not run", "verification has not run yet"),
            preprocess=preprocess.describe() if preprocess else None,
            details={
                **backend.describe(lowered),
                "goldens": {
                    "samples": len(feeds),
                    "synthetic": samples.synthetic,
                    "fingerprint": samples.fingerprint,
                },
            },
        )

        progress("verify", 0.6)
        verdict = Verdict("not run", backend.why_no_device(chosen))
        if device is not None:
            with device.runner(Artifact(folder, manifest)) as runner:
                answers = [runner.infer(f) for f in feeds]
            verdict = judge(
                goldens,
                answers,
                _promise(records),
                lambda: record_goldens(loaded.model, feeds, optimize=True),
            )
        manifest = msgspec.structs.replace(manifest, verdict=verdict)
        if options.measure and device is not None and verdict.status == "passed":
            progress("measure", 0.65)
            manifest = msgspec.structs.replace(
                manifest,
                measurements=_measure(
                    device, Artifact(folder, manifest), loaded.model, feeds[0], options, progress
                ),
            )
        write_page(
            folder / REPORT,
            manifest,
            layers=_layers(device, Artifact(folder, manifest), feeds[0], options),
            memory=live_bytes(model.graph),
        )
        artifact, path = seal(folder, manifest, out, pack=options.pack)

    if verdict.status == "failed":
        raise VerificationError(
            f"{str(out)!r}: {verdict.reason}", hint=_blame(loaded.model, pipeline, context, feeds)
        )
    progress("done", 1.0)
    return BuildResult(artifact, path, records, manifest.measurements)


def choose_target(name: str, options: BuildOptions) -> Target:
    """The profile called `name` with the choices of `options`."""
    if options.precision not in PRECISIONS:
        raise ConfigError(
            f"precision {options.precision!r} is not one of {', '.join(PRECISIONS)}",
            hint="this version builds at the precision of the model: leave --precision out",
        )
    profile = load_profile(name)
    return Target(
        profile,
        precision=options.precision,
        shapes=options.shapes,
        threads=max(options.threads, default=profile.cores),
    )


def choose_backend(target: Target, options: BuildOptions) -> Backend[Any]:
    """The backend that builds for `target`; BackendUnavailable says why it can't."""
    name = options.backend or target.profile.backend
    if name not in BACKENDS.table():
        raise BackendUnavailable(
            f"target {target.profile.name!r} needs the backend {name!r}, which this version does not have",
            hint="effc targets lists what can be built from here",
        )
    backend = make_backend(name)
    for availability in (backend.probe(), backend.accepts(target)):
        if not availability.ok:
            raise BackendUnavailable(
                f"backend {name!r} can't build for {target.profile.name}: {availability.reason}",
                hint=availability.hint,
            )
    return backend


def choose_pipeline(options: BuildOptions, backend: Backend[Any], target: Target) -> Pipeline:
    """Canonicalize, compress (the user's passes), fuse, then what the backend needs."""
    standard = options.pipeline or f"{passes.CANONICALIZE},{passes.FUSE}"
    whole = passes.parse(",".join((standard, *options.passes, backend.legalize(target))))
    unknown = options.skip - {p.id for p in whole.passes}
    if unknown:
        raise ConfigError(
            f"--skip names {', '.join(sorted(unknown))}, which the pipeline does not run",
            hint=f"it runs: {', '.join(dict.fromkeys(p.id for p in whole.passes))}",
        )
    return Pipeline(tuple(p for p in whole.passes if p.id not in options.skip))


def _known_preprocess(source: Source) -> Preprocess | None:
    return Preprocess.parse(source.preprocess) if source.preprocess else None


def _samples(
    options: BuildOptions, inputs: Sequence[TensorSpec], preprocess: Preprocess | None
) -> Samples | None:
    if isinstance(options.samples, Path):
        return open_samples(options.samples, inputs, preprocess)
    return options.samples


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


def _promise(records: Sequence[PassRecord]) -> Effect:
    """The weakest promise of the passes that changed anything."""
    return max((Effect[r.effect] for r in records if r.rewrites), default=Effect.EXACT)


def _measure(
    device: Device,
    artifact: Artifact,
    original: ir.Model,
    feeds: Feeds,
    options: BuildOptions,
    progress: Progress,
) -> tuple[Measurement, ...]:
    """The artifact beside onnxruntime on the untouched model, interleaved, at each thread count."""
    cores = len(os.sched_getaffinity(0))
    measured: list[Measurement] = []
    counts = options.threads or tuple(sorted({1, cores}))
    for at, threads in enumerate(counts):
        begin, share = 0.65 + 0.3 * at / len(counts), 0.3 / len(counts)
        with (
            device.runner(artifact, threads) as ours,
            OnnxRuntimeRunner(original, threads=threads) as theirs,
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


def _rounds(
    progress: Progress, what: str, begin: float, share: float
) -> Callable[[int, int], None]:
    return lambda done, total: progress(what, begin + share * done / total)


def _layers(
    device: Device | None, artifact: Artifact, feeds: Feeds, options: BuildOptions
) -> list[LayerTime]:
    """The time of every call on one thread, for the report."""
    if device is None or not options.measure or artifact.manifest.verdict.status != "passed":
        return []
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
