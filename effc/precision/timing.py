"""Time of each node on the device: the same model built at two precisions, layer by layer."""

from __future__ import annotations

import contextlib
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from effc import passes
from effc.core.artifact import Artifact, Manifest, Verdict
from effc.core.backend import Backend
from effc.core.measure import Device, Feeds, LayerTime, Measurement, interleaved
from effc.core.passinfra import PassContext
from effc.core.specs import static_specs
from effc.core.target import Target

REPEATS = 30


@dataclass(frozen=True, slots=True)
class NodeTimes:
    """Seconds of groups of nodes that run together, as floats and quantized; threads = 1."""

    groups: tuple[tuple[str, ...], ...]  # names of the nodes
    float_seconds: tuple[float, ...]
    quantized_seconds: tuple[float, ...]
    float_total: float  # of the whole model, conversions included
    quantized_total: float

    def gain(self, group: int) -> float:
        """Seconds that quantizing the group saves; negative: it costs."""
        return self.float_seconds[group] - self.quantized_seconds[group]


def measure_nodes(
    float_model: ir.Model,
    quantized_model: ir.Model,
    names: Iterable[str],
    backend: Backend[Any],
    target: Target,
    device: Device,
    feeds: Feeds,
) -> NodeTimes:
    """Build both models (neither is changed) and time their layers; `names` are the nodes of interest.

    Nodes that share a kernel in either program form one group, since they can only change together.
    """
    with tempfile.TemporaryDirectory(prefix="effc-") as folder:
        built = [
            _build(model, Path(folder) / name, backend, target)
            for name, model in (("float", float_model), ("quantized", quantized_model))
        ]
        with device.runner(built[0]) as one, device.runner(built[1]) as two:
            totals: list[Measurement] = interleaved([one, two], feeds, seconds=0.6)
            layers = [_fastest([r.layers(feeds, REPEATS) for _ in range(3)]) for r in (one, two)]
    return assign(set(names), layers[0], layers[1], [t.median or 0.0 for t in totals])


def measure_whole(
    models: Sequence[ir.Model],
    backend: Backend[Any],
    target: Target,
    device: Device,
    feeds: Feeds,
) -> list[float]:
    """Median seconds of each model on one thread, timed in turn."""
    with tempfile.TemporaryDirectory(prefix="effc-") as folder, contextlib.ExitStack() as stack:
        runners = [
            stack.enter_context(
                device.runner(_build(model, Path(folder) / str(i), backend, target))
            )
            for i, model in enumerate(models)
        ]
        return [m.median or 0.0 for m in interleaved(runners, feeds, seconds=1.0)]


def _build(model: ir.Model, folder: Path, backend: Backend[Any], target: Target) -> Artifact:
    copy = model.clone()
    passes.parse(backend.legalize(target)).run(copy, PassContext(target))
    folder.mkdir()
    files = backend.compile(backend.lower(copy, target), target, folder)
    manifest = Manifest(
        1, {}, target.profile.name, backend.id, target.precision,
        static_specs(model.graph.inputs), static_specs(model.graph.outputs),
        {p.relative_to(folder).as_posix(): "" for p in files.values()}, (), "", {},
        Verdict("not run", "built to be timed"),
    )  # fmt: skip
    return Artifact(folder, manifest)


def _fastest(runs: Sequence[Sequence[LayerTime]]) -> list[LayerTime]:
    return [min(same, key=lambda x: x.seconds) for same in zip(*runs, strict=True)]


def assign(
    names: set[str],
    floats: Sequence[LayerTime],
    integers: Sequence[LayerTime],
    totals: Sequence[float],
) -> NodeTimes:
    parent = {n: n for n in names}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for layer in (*floats, *integers):
        inside = [n for n in layer.nodes if n in names]
        for other in inside[1:]:
            parent[root(other)] = root(inside[0])
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        groups[root(name)].append(name)
    seconds: list[Mapping[str, float]] = []
    for layers in (floats, integers):
        spent: defaultdict[str, float] = defaultdict(float)
        for layer in layers:
            owners = {root(n) for n in layer.nodes if n in names}
            for owner in owners:
                spent[owner] += layer.seconds / len(owners)
        seconds.append(spent)
    order = list(groups)
    return NodeTimes(
        tuple(tuple(groups[g]) for g in order),
        tuple(seconds[0].get(g, 0.0) for g in order),
        tuple(seconds[1].get(g, 0.0) for g in order),
        totals[0],
        totals[1],
    )
