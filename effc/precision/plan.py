"""The step `compress` of a build: from the fused float model to the artifact's precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import onnx_ir as ir

from effc import passes
from effc.choices import BuildOptions, without
from effc.core.backend import Backend
from effc.core.data import Samples
from effc.core.errors import ConfigError
from effc.core.measure import Device
from effc.core.passinfra import Instrument, PassContext, PassRecord, Pipeline
from effc.core.quant_units import quantized_nodes, restore
from effc.core.target import Target
from effc.passes.quantize.narrow_weights import NarrowWeights
from effc.passes.quantize.restore_float import RestoreFloat
from effc.passes.quantize.synthetic import calibration_samples
from effc.precision.blame import BlameRow, blame
from effc.precision.contract import (
    SLOWER,
    Group,
    Trial,
    clone,
    constant_bytes,
    measure_groups,
    mix,
    pareto,
    search,
    shrink,
)
from effc.precision.recipe import Recipe, load_recipe
from effc.precision.recovery import recover
from effc.precision.score import Judge, Score
from effc.precision.timing import NodeTimes, measure_nodes, measure_whole

Progress = Callable[[str, float], None]

JUDGED = 128  # samples that decide between variants


@dataclass(frozen=True, slots=True)
class Planned:
    """The model as it goes on to the backend, how it came to be, and what was learned on the way."""

    model: ir.Model
    pipeline: Pipeline  # the passes that ran
    records: tuple[PassRecord, ...]
    recipe: Recipe | None = None
    trials: tuple[Trial, ...] = ()
    pareto: tuple[Trial, ...] = ()
    blame: tuple[BlameRow, ...] = ()

    def describe(self) -> dict[str, Any]:
        """What the manifest says about it; nothing for a build that keeps the model's numbers."""
        if self.recipe is None:
            return {}
        return {
            "precision": {
                "score": self.recipe.score,
                "notes": self.recipe.notes,
                "synthetic": self.recipe.synthetic,
                "samples": self.recipe.samples,
                "trials": [_trial(t) for t in self.trials],
                "pareto": [_trial(t) for t in self.pareto],
                "blame": msgspec.to_builtins(self.blame),
            }
        }


@dataclass(frozen=True, slots=True)
class Workbench:
    """What every step of the planning needs."""

    backend: Backend[Any]
    target: Target
    device: Device | None
    samples: Samples
    options: BuildOptions
    instruments: tuple[Instrument, ...]
    progress: Progress

    @property
    def timed(self) -> bool:
        """Whether nodes are timed: where there is a device whose times mean something."""
        if self.device is None or not self.options.measure:
            return False
        return self.backend.times(self.device)

    @property
    def context(self) -> PassContext:
        return PassContext(self.target, self.samples, self.options.seed)

    def run(self, model: ir.Model, text: str) -> tuple[Pipeline, tuple[PassRecord, ...]]:
        """Run passes on `model`, in place; without those that the user skips."""
        pipeline = without(passes.parse(text), self.options.skip)
        return pipeline, pipeline.run(model, self.context, self.instruments)


def compress(model: ir.Model, bench: Workbench, sha256: str = "") -> Planned:
    """Bring the fused float `model` to the precision of the target; `model` itself is left alone."""
    precision, options = bench.target.precision, bench.options
    if options.recipe is not None:
        return _follow(model, bench, load_recipe(options.recipe), sha256)
    if precision == "fp32":
        return Planned(model, Pipeline(), ())
    scheme = bench.backend.quantization(bench.target)
    if precision in ("fp16", "bf16"):
        name = {"fp16": "float16", "bf16": "bfloat16"}[precision]
        return _fixed(model, bench, f"convert-float16{{dtype={name}}}", sha256)
    if not scheme:
        raise ConfigError(
            f"backend {bench.backend.id!r} has no integer kernels for {bench.target.profile.name}",
            hint="leave --precision out, or take fp16",
        )
    return _quantized(model, bench, scheme, sha256)


def _fixed(model: ir.Model, bench: Workbench, text: str, sha256: str) -> Planned:
    made = model.clone()
    pipeline, records = bench.run(made, text)
    return Planned(made, pipeline, records, _recipe(bench, text, sha256))


def _follow(model: ir.Model, bench: Workbench, recipe: Recipe, sha256: str) -> Planned:
    """Run a recipe again; it must have been written for this model and these samples."""
    if recipe.synthetic:
        bench = replace(
            bench, samples=calibration_samples(bench.samples, model, bench.options.seed)
        )
    for what, theirs, ours in (
        ("model", recipe.source, sha256),
        ("samples", recipe.samples, bench.samples.fingerprint),
    ):
        if theirs and theirs != ours:
            raise ConfigError(
                f"recipe {str(bench.options.recipe)!r} was written for other {what}",
                hint=f"give the {what} that it was made with, or let --precision choose again",
            )
    made = model.clone()
    pipeline, records = bench.run(made, recipe.compress)
    return Planned(made, pipeline, records, recipe)


def _quantized(model: ir.Model, bench: Workbench, scheme: str, sha256: str) -> Planned:
    options, auto = bench.options, bench.target.precision == "auto"
    # where samples are made up, every step takes the same ones, of the scale that the model knows
    bench = replace(bench, samples=calibration_samples(bench.samples, model, bench.options.seed))
    judge = Judge.record(model, bench.samples, JUDGED)
    found = recover(model, bench, judge, scheme)
    times = None
    if bench.device is not None and bench.timed:
        names = [str(n.name) for n in quantized_nodes(found.model)]
        bench.progress("time the nodes", 0.6)
        times = measure_nodes(
            model, found.model, names, bench.backend, bench.target, bench.device, judge.feeds[0]
        )
    groups = measure_groups(model, found.model, judge, times, part(bench.progress, 0.65, 0.8))
    if auto:
        mixing = part(bench.progress, 0.8, 0.98)
        trials = search(found.model, judge, groups, times, options.max_drop, mixing)
    else:
        trials = [mix(found.model, judge, [g for g in groups if g.slow], times)]
    chosen = trials[-1]
    if auto and options.prefer == "size":
        mixed = clone(found.model)
        restore(mixed, chosen.kept)
        trials += shrink(mixed, chosen, judge, options.max_drop, part(bench.progress, 0.8, 0.98))
        chosen = trials[-1]
    rows = tuple(blame(found.model, groups, judge.feeds))
    text, made, records = found.text, found.model, found.records
    if chosen.kept:
        undo = str(RestoreFloat(chosen.kept))
        records += bench.run(made, undo)[1]
        text = f"{text},{undo}"
    if chosen.narrowed:
        narrow = f"{NarrowWeights(4, chosen.narrowed)},correct-bias"
        records += bench.run(made, narrow)[1]
        text = f"{text},{narrow}"
    clean = "eliminate-dead-code"  # the float weights, where nothing reads them any more
    records += bench.run(made, clean)[1]
    text = f"{text},{clean}"
    notes = (*found.notes, *_notes(groups, chosen, auto, options.max_drop))
    everything = [*trials, _float_trial(model, judge, times)]
    learned = (tuple(trials), tuple(pareto(everything)), rows)
    slower = _slower(model, made, bench, judge)
    if slower:
        recipe = _recipe(bench, "", sha256, everything[-1].score, (*notes, slower))
        return Planned(model, Pipeline(), (), recipe, *learned)
    recipe = _recipe(bench, text, sha256, chosen.score, notes)
    return Planned(made, passes.parse(text), records, recipe, *learned)


def _slower(model: ir.Model, made: ir.Model, bench: Workbench, judge: Judge) -> str:
    """Why the quantized model can't ship, if it is slower than the float one on the device; else ""."""
    if bench.device is None or not bench.timed:
        return ""
    bench.progress("time the whole", 0.98)
    whole, quantized = measure_whole(
        (model, made), bench.backend, bench.target, bench.device, judge.feeds[0]
    )
    if quantized <= SLOWER * whole:
        return ""
    return (
        f"built in fp32: the quantized model takes {1e3 * quantized:.3g} ms here, "
        f"the float one {1e3 * whole:.3g} ms"
    )


def _trial(trial: Trial) -> dict[str, Any]:
    score = trial.score
    return {
        "label": trial.label, "metric": score.metric, "drop": score.drop,
        "sqnr_db": None if math.isinf(score.sqnr_db) else round(score.sqnr_db, 2),
        "agreement": score.agreement, "seconds": trial.seconds, "bytes": trial.bytes,
        "float": trial.kept, "narrowed": trial.narrowed,
    }  # fmt: skip


def _notes(groups: list[Group], chosen: Trial, auto: bool, max_drop: float) -> list[str]:
    slow = [n for g in groups if g.slow for n in g.names]
    dear = [n for n in chosen.kept if n not in slow]
    notes = []
    if slow:
        notes.append(f"float, since int8 is slower there: {', '.join(slow)}")
    if dear:
        notes.append(f"float, for accuracy: {', '.join(dear)}")
    if auto and chosen.score.drop > max_drop:
        notes.append(
            f"no mix holds a drop of {max_drop:g}: the best found loses {chosen.score.drop:.2f}"
        )
    return notes


def _recipe(
    bench: Workbench,
    text: str,
    sha256: str,
    score: Score | None = None,
    notes: tuple[str, ...] = (),
) -> Recipe:
    described = {}
    if score is not None:
        described = {
            "metric": score.metric, "drop": score.drop, "sqnr_db": round(score.sqnr_db, 2),
            "agreement": score.agreement, "top1": score.top1, "samples": score.samples,
        }  # fmt: skip
    return Recipe(
        bench.target.precision, text, bench.samples.fingerprint, bench.samples.synthetic, sha256,
        described, notes,
    )  # fmt: skip


def _float_trial(model: ir.Model, judge: Judge, times: NodeTimes | None) -> Trial:
    seconds = times.float_total if times is not None else None
    return Trial("fp32", (), judge.compare(judge.answers), seconds, constant_bytes(model))


def part(progress: Progress, begin: float, end: float) -> Progress:
    """Progress of a step that takes the whole's progress from `begin` to `end`."""
    return lambda what, share: progress(what, begin + (end - begin) * min(share, 1.0))
