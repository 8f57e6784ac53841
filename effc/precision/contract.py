"""The contract: the fastest mix of int8 and float whose drop stays within the user's budget.

Every group of nodes gets its cost (noise at the outputs when it alone is quantized) and its gain (measured
seconds). Groups that do not gain stay float. Then groups go back to float, dearest noise for the least time
first, until the budget holds: doubling, then bisection, so about 2 log2(n) evaluations of the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from effc.core.quant_units import only, quantized_nodes, restore
from effc.precision.score import Judge, Score
from effc.precision.timing import NodeTimes

PROBE_SAMPLES = 32  # of the noise of single groups
SLOWER = 1.03

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Group:
    """Nodes that change together: what quantizing them alone costs, and what it gains."""

    names: tuple[str, ...]
    score: Score  # the model with only this group quantized
    float_seconds: float | None  # None: not measured
    quantized_seconds: float | None

    @property
    def gain(self) -> float | None:
        """Seconds saved by quantizing; None where nothing was measured."""
        if self.float_seconds is None or self.quantized_seconds is None:
            return None
        return self.float_seconds - self.quantized_seconds

    @property
    def slow(self) -> bool:
        """Whether integers are slower here, beyond what repeated timing differs by."""
        if self.float_seconds is None or self.quantized_seconds is None:
            return False
        return self.quantized_seconds > SLOWER * self.float_seconds


@dataclass(frozen=True, slots=True)
class Trial:
    """One mix: which nodes stayed float, what it lost, and its estimated time and size."""

    label: str
    kept: tuple[str, ...]
    score: Score
    seconds: float | None  # measured whole plus the groups' differences
    bytes: int  # of constants


def measure_groups(
    float_model: ir.Model,
    quantized: ir.Model,
    judge: Judge,
    times: NodeTimes | None,
    progress: Progress,
) -> list[Group]:
    """The groups of `quantized`, each probed alone."""
    names = [str(n.name) for n in quantized_nodes(quantized)]
    members = times.groups if times is not None else tuple((n,) for n in names)
    probe = judge.first(PROBE_SAMPLES)
    found = []
    for i, group in enumerate(members):
        progress(f"sensitivity of {group[0]}", i / len(members))
        alone = clone(quantized)
        only(alone, group)
        found.append(
            Group(
                group,
                probe.score(alone),
                times.float_seconds[i] if times else None,
                times.quantized_seconds[i] if times else None,
            )
        )
    return found


def search(
    quantized: ir.Model,
    judge: Judge,
    groups: Sequence[Group],
    times: NodeTimes | None,
    max_drop: float,
    progress: Progress,
) -> list[Trial]:
    """Mixes in the order tried; the last is the chosen one. `max_drop` is in the judge's points."""
    slow = [g for g in groups if g.slow]
    rest = sorted(
        (g for g in groups if g not in slow),
        key=lambda g: g.score.noise / max(g.gain or 1.0, 1e-9),
        reverse=True,
    )
    trials: dict[int, Trial] = {}

    def attempt(count: int) -> bool:
        if count not in trials:
            progress(f"{count} of {len(rest)} groups in float", len(trials) / 12)
            trials[count] = mix(quantized, judge, [*slow, *rest[:count]], times)
        return trials[count].score.drop <= max_drop

    low, high = -1, 0  # low does not hold, high does
    while not attempt(high):
        if high == len(rest):
            break
        low, high = high, min(max(1, 2 * high), len(rest))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if attempt(middle) else (middle, high)
    chosen = trials.pop(high)
    return [*trials.values(), chosen]


def mix(quantized: ir.Model, judge: Judge, kept: Sequence[Group], times: NodeTimes | None) -> Trial:
    """`quantized` with the groups `kept` in float, scored."""
    names = tuple(n for g in kept for n in g.names)
    model = clone(quantized)
    restore(model, names)
    seconds = None
    if times is not None:
        seconds = times.quantized_total + sum(g.gain or 0.0 for g in kept)
    label = f"int8, {len(names)} nodes float" if names else "int8"
    return Trial(label, names, judge.score(model), seconds, constant_bytes(model))


def pareto(trials: Sequence[Trial]) -> list[Trial]:
    """Those that no other beats in drop and time (bytes, where no time is known); the fastest first."""

    def cost(t: Trial) -> float:
        return t.seconds if t.seconds is not None else float(t.bytes)

    best: list[Trial] = []
    for t in sorted(trials, key=lambda t: (cost(t), t.score.drop, -t.score.sqnr_db)):
        if not best or t.score.drop < best[-1].score.drop:
            best.append(t)
    return best


def constant_bytes(model: ir.Model) -> int:
    """Bytes of the initializers that a node reads, as they are stored."""
    constants = model.graph.initializers.values()
    return sum(v.const_value.nbytes for v in constants if v.const_value and v.uses())


def clone(model: ir.Model) -> ir.Model:
    """A copy that also knows what `model.meta` knows (float weights of quantized ones)."""
    copy = model.clone()
    for key in model.meta:
        copy.meta[key] = model.meta[key]
    return copy
