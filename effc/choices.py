"""What the user chose, and what follows from it: the target, its backend, the passes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from effc import passes
from effc.backends import BACKENDS, make_backend
from effc.core.backend import Availability, Backend
from effc.core.data import Samples
from effc.core.errors import BackendUnavailable, ConfigError
from effc.core.passinfra import Pipeline
from effc.core.preprocess import Preprocess
from effc.core.profiles import load_profile
from effc.core.target import Target
from effc.precision.recipe import load_recipe

# what builds for a device whose own backend lacks its toolchain here
INSTEAD = {"tensorrt": "tvm"}
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "w4a8", "auto")


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """The user's choices; the defaults are what `effc build MODEL --target T` means."""

    precision: str = "fp32"
    max_drop: float = 0.5  # of precision "auto", in points of the task's metric
    prefer: str = "latency"  # or "size": precision "auto" then also narrows weights to 4 bits
    keep_float: tuple[str, ...] = ()  # nodes that are not quantized
    quantize: tuple[str, ...] = ()  # options of the pass quantize, like `calibrator=entropy`
    recipe: Path | None = (
        None  # what an earlier build chose; an artifact's folder stands for its own
    )
    backend: str = ""  # "" is the backend of the target's profile
    backend_options: Mapping[str, str] = field(default_factory=dict)  # as the backend defines them
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    samples: Samples | Path | None = None  # a path is opened for the inputs of the model
    preprocess: Preprocess | None = None
    pipeline: str = ""  # replaces the default passes
    passes: tuple[str, ...] = ()  # appended to the pipeline: `id{options}` or `file.py:Class`
    skip: frozenset[str] = frozenset()  # ids left out of the whole pipeline
    tune_seconds: float = 0.0  # 0: no tuning
    records: Path | None = None  # of tuning; without tuning they are used as they are
    seed: int = 0
    threads: tuple[int, ...] = ()  # thread counts to measure; () is one and all cores
    measure: bool = True
    verify_each: bool = False
    dump: Path | None = None
    pack: bool = False
    allow_nonfinite: bool = False


DEFAULTS = BuildOptions()


def choose_target(name: str, options: BuildOptions) -> Target:
    """The profile called `name` with the choices of `options`."""
    if options.precision not in PRECISIONS:
        raise ConfigError(
            f"precision {options.precision!r} is not one of {', '.join(PRECISIONS)}",
            hint="auto mixes int8 and float within --max-drop",
        )
    profile = load_profile(name)
    recipe = load_recipe(options.recipe) if options.recipe is not None else None
    return Target(
        profile,
        precision=recipe.precision if recipe is not None else options.precision,
        shapes=options.shapes,
        threads=max(options.threads, default=profile.cores),
        options=options.backend_options,
        preprocess=options.preprocess,
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
    missing = _missing(backend, target)
    if missing is not None:
        reason = f"backend {name!r} can't build for {target.profile.name}: {missing.reason}"
        instead = _instead(target, options)
        if instead is None:
            raise BackendUnavailable(reason, hint=missing.hint)
        print(f"{reason}; {instead.id!r} does, with kernels of effc's own", file=sys.stderr)
        backend, name = instead, instead.id
    tuned = options.tune_seconds or options.records is not None
    if tuned and type(backend).tune is Backend.tune:
        option = "--budget" if options.tune_seconds else "--records"
        raise ConfigError(f"backend {name!r} has nothing to tune", hint=f"leave {option} out")
    return backend


def _missing(backend: Backend[Any], target: Target) -> Availability | None:
    """Why `backend` can't build for `target`, or None if it can."""
    return next((a for a in (backend.probe(), backend.accepts(target)) if not a.ok), None)


def _instead(target: Target, options: BuildOptions) -> Backend[Any] | None:
    """Another road to the same device, where the user has chosen none and the precision is a float's."""
    other = INSTEAD.get(target.profile.backend)
    chosen = options.backend or options.backend_options or target.precision not in ("fp32", "fp16")
    if other is None or chosen or other not in BACKENDS.table():
        return None
    backend = make_backend(other)
    return backend if _missing(backend, target) is None else None


def choose_pipelines(
    options: BuildOptions, backend: Backend[Any], target: Target
) -> tuple[Pipeline, Pipeline]:
    """What runs before compression (canonicalize, fuse, the user's passes), and what the backend needs."""
    standard = options.pipeline or f"{passes.CANONICALIZE},{passes.FUSE}"
    front = passes.parse(",".join((standard, *options.passes)))
    legal = passes.parse(backend.legalize(target))
    known = dict.fromkeys(p.id for p in (*front.passes, *legal.passes))
    unknown = options.skip - set(known)
    if target.precision != "fp32":
        unknown -= set(passes.RECOVERY)
    if unknown:
        raise ConfigError(
            f"--skip names {', '.join(sorted(unknown))}, which the pipeline does not run",
            hint=f"it runs: {', '.join(known)}",
        )
    return without(front, options.skip), without(legal, options.skip)


def without(pipeline: Pipeline, skip: frozenset[str]) -> Pipeline:
    """The pipeline but for the passes whose ids are in `skip`."""
    return Pipeline(tuple(p for p in pipeline.passes if p.id not in skip))
