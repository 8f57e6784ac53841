"""Calibration: the float model runs on the samples, one at a time, while observers watch its tensors."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import onnx_ir as ir

from effc.core.data import Samples
from effc.core.errors import PassError
from effc.core.ir import shape_of
from effc.core.measure import Feeds
from effc.core.reference import OnnxRuntimeRunner
from effc.passes.quantize.observe import Array, Observer

# observed tensors of one run of the model; more are observed in further passes over the samples
GROUP_BYTES = 1 << 28

Watched = Sequence[ir.Value]


def calibrate(
    model: ir.Model,
    groups: Sequence[Watched],
    samples: Samples,
    make_observer: Callable[[], Observer],
) -> list[Observer]:
    """An observer for each of `groups`, that saw their values on all `samples`.

    Memory does not grow with the samples. PassError where a tensor is not finite.
    """
    observers = [make_observer() for _ in groups]
    for part in _parts(groups):
        _observe(model, [(groups[i], observers[i]) for i in part], samples)
    return observers


def _observe(
    model: ir.Model, watched: Sequence[tuple[Watched, Observer]], samples: Iterable[Feeds]
) -> None:
    inputs = {str(v.name) for v in model.graph.inputs}
    names = dict.fromkeys(str(v.name) for values, _ in watched for v in values)
    computed = [n for n in names if n not in inputs]
    with contextlib.ExitStack() as stack:
        runner = None
        if computed:
            threads = len(os.sched_getaffinity(0))
            runner = stack.enter_context(
                OnnxRuntimeRunner(with_outputs(model, computed), threads=threads)
            )
        for feeds in samples:
            found = {**feeds, **(runner.infer(feeds) if runner is not None else {})}
            for values, observer in watched:
                observer.see([_finite(str(v.name), found[str(v.name)]) for v in values])


def with_outputs(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy of `model` whose outputs are the values called `names`; weights are shared with it."""
    copy = model.clone()
    wanted = set(names)
    values = {str(o.name): o for n in copy.graph for o in n.outputs if o.name in wanted}
    copy.graph.outputs[:] = [values[n] for n in names]
    return copy


def _parts(groups: Sequence[Watched]) -> list[list[int]]:
    """Indices of groups whose tensors together stay below GROUP_BYTES."""
    parts: list[list[int]] = []
    room = 0
    for index, values in enumerate(groups):
        size = sum(4 * math.prod(shape_of(v) or (1,)) for v in values)
        if not parts or size > room:
            parts.append([])
            room = GROUP_BYTES
        parts[-1].append(index)
        room -= size
    return parts


def _finite(name: str, array: Array) -> Array:
    # the sum is finite where every number is, and much cheaper than asking each; float64 can't overflow
    if not math.isfinite(float(array.sum(dtype=np.float64))):
        raise PassError(
            f"tensor {name!r} is not finite on a calibration sample",
            hint="leave out the sample, or find the node with --verify-each",
            pass_id="quantize",
        )
    return array
