"""Verification at the other shapes that an artifact takes: against the source, loaded anew for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice

import msgspec

from effc.core.artifact import Artifact, Verdict
from effc.core.data import Samples
from effc.core.measure import Device
from effc.core.passinfra import Effect
from effc.core.reference import record_goldens
from effc.core.source import Source
from effc.core.verify import judge, quantized_outputs

SAMPLES = 2  # at each shape


def at_further_shapes(
    verdict: Verdict,
    shapes: Sequence[Mapping[str, tuple[int, ...]]],
    device: Device,
    artifact: Artifact,
    load: Callable[[Mapping[str, tuple[int, ...]]], Source],
    samples: Callable[[Source], Samples],
    promise: Effect,
) -> Verdict:
    """`verdict`, or the one of the first of `shapes` at which the answers on `device` are wrong.

    The goldens are those of the source itself at that shape, in which no pass has fixed anything.
    """
    if verdict.status != "passed" or not shapes:
        return verdict
    largest = verdict.max_error or 0.0
    for shape in shapes:
        source = load(shape)
        feeds = list(islice(samples(source), SAMPLES))
        goldens = record_goldens(source.model, feeds)
        with device.runner(artifact) as runner:
            answers = [runner.infer(f) for f in feeds]

        def control(source: Source = source, feeds: list = feeds) -> list:  # type: ignore[type-arg]
            return record_goldens(source.model, feeds, optimize=True)

        found = judge(goldens, answers, promise, control, quantized_outputs(source.model))
        if found.status != "passed":
            where = ", ".join(f"{name} {list(dims)}" for name, dims in shape.items())
            return msgspec.structs.replace(found, reason=f"at {where}: {found.reason}")
        largest = max(largest, found.max_error or 0.0)
    return msgspec.structs.replace(
        verdict, reason=f"{verdict.reason}, also at {len(shapes)} other shapes", max_error=largest
    )
