"""Two artifacts or models side by side: their answers on the same inputs, sizes, MACs, latency."""

from __future__ import annotations

import msgspec

from effc.bench import OnRound, bench
from effc.core.artifact import OutputError
from effc.core.cost import model_cost
from effc.core.data import LabelledSamples
from effc.core.measure import Array
from effc.core.verify import compare_outputs
from effc.machine import Machine
from effc.runnable import Runnable, pairing, renamed


class Side(msgspec.Struct, frozen=True):
    """One of the two. `parameters` and `macs` are None for an artifact, which holds no graph."""

    name: str
    bytes: int
    parameters: int | None
    macs: int | None
    median_ms: float
    interval_ms: tuple[float, float]


class Comparison(msgspec.Struct, frozen=True):
    """`outputs` tell how far `b` is from `a`; `ratio` is b's median latency over a's."""

    a: Side
    b: Side
    outputs: tuple[OutputError, ...]
    samples: int
    synthetic: bool
    ratio: float | None
    verdict: str
    threads: int
    machine: Machine


def compare(
    a: Runnable,
    b: Runnable,
    samples: LabelledSamples,
    *,
    threads: int = 1,
    seconds: float = 2.0,
    on_round: OnRound = lambda done, total: None,
) -> Comparison:
    """Run both on `samples` (of a's inputs), then time both. ConfigError where their interfaces differ."""
    to_input = pairing(a.inputs, b.inputs, "input")
    to_output = pairing(a.outputs, b.outputs, "output")
    answers_a: list[dict[str, Array]] = []
    answers_b: list[dict[str, Array]] = []
    with a.runner(threads) as ours, b.runner(threads) as theirs:
        for feeds in samples:
            answers_a.append(ours.infer(feeds))
            found = theirs.infer(renamed(feeds, to_input))
            answers_b.append({name: found[other] for name, other in to_output.items()})
    errors = tuple(sorted(compare_outputs(answers_a, answers_b), key=lambda e: -e.max_rel))
    timed = bench([b, a], threads=[threads], seconds=seconds, on_round=on_round)
    row_b, row_a = timed.rows
    return Comparison(
        _side(a, row_a.median_ms, row_a.interval_ms),
        _side(b, row_b.median_ms, row_b.interval_ms),
        errors,
        len(answers_a),
        samples.synthetic,
        row_b.ratio,
        row_b.verdict,
        threads,
        timed.machine,
    )


def _side(runnable: Runnable, median: float, interval: tuple[float, float]) -> Side:
    cost = model_cost(runnable.model) if runnable.model is not None else None
    return Side(
        runnable.name,
        runnable.bytes,
        cost.parameters if cost else None,
        cost.macs if cost else None,
        median,
        interval,
    )
