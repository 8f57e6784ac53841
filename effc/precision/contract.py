"""The contract: the fastest mix of int8 and float whose drop stays within the user's budget.

Every group of nodes gets its cost (noise at the outputs when it alone is quantized) and its gain (measured
seconds). Groups that do not gain stay float. Then groups go back to float, dearest noise for the least time
first, until the budget holds: doubling, then bisection, so about 2 log2(n) evaluations of the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from effc.core.passinfra import PassContext
from effc.core.quant_units import only, quantized_nodes, restore
from effc.passes.quantize.narrow_weights import NarrowWeights, narrowable
from effc.precision.score import Judge, Score
from effc.precision.timing import NodeTimes

PROBE_SAMPLES = 32  # of the noise of single groups
SLOWER = 1.03
LEAST_SECONDS = 2e-7  # less is a call or two of the clock

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
        more = self.quantized_seconds - self.float_seconds
        return more > LEAST_SECONDS and self.quantized_seconds > SLOWER * self.float_seconds


@dataclass(frozen=True, slots=True)
class Trial:
    """One mix: which nodes stayed float, what it lost, and its estimated time and size."""

    label: str
    kept: tuple[str, ...]
    score: Score
    seconds: float | None  # measured whole plus the groups' differences
    bytes: int  # of constants
    narrowed: tuple[str, ...] = ()  # nodes with weights of 4 bits


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

    def holds(count: int) -> bool:
        progress(f"{count} of {len(rest)} groups in float", len(trials) / 12)
        trials[count] = mix(quantized, judge, [*slow, *rest[:count]], times)
        return trials[count].score.drop <= max_drop

    chosen = trials.pop(least(holds, len(rest)))
    return [*trials.values(), chosen]


def shrink(
    mixed: ir.Model, base: Trial, judge: Judge, max_drop: float, progress: Progress
) -> list[Trial]:
    """`mixed`, which `base` describes, with weights of 4 bits in as many nodes as the budget allows.

    Nodes go in the order of noise for each byte saved; the last trial is the chosen one.
    """
    names = [str(n.name) for n in mixed.graph if narrowable(n, mixed)]
    probe = judge.first(PROBE_SAMPLES)
    cost = {}
    for i, name in enumerate(names):
        progress(f"4 bits in {name}", 0.7 * i / len(names))
        one = clone(mixed)
        saved = constant_bytes(one)
        NarrowWeights(4, (name,)).run(one, PassContext())
        cost[name] = probe.score(one).noise / max(saved - constant_bytes(one), 1)
    order = sorted(names, key=lambda n: cost[n])
    trials: dict[int, Trial] = {}

    def holds(count: int) -> bool:
        """Whether all but the `count` dearest nodes can have 4 bits."""
        progress(f"{len(order) - count} nodes in 4 bits", 0.7 + 0.3 * len(trials) / 12)
        chosen = tuple(order[: len(order) - count])
        model = clone(mixed)
        NarrowWeights(4, chosen).run(model, PassContext())
        label = f"{base.label}, {len(chosen)} nodes with 4-bit weights"
        trials[count] = Trial(
            label, base.kept, judge.score(model), base.seconds, constant_bytes(model), chosen
        )
        return trials[count].score.drop <= max_drop

    last = least(holds, len(order))
    if trials[last].score.drop > max_drop:
        return [*trials.values(), base]
    chosen = trials.pop(last)
    return [*trials.values(), chosen]


def least(holds: Callable[[int], bool], most: int) -> int:
    """The least count in 0..most for which `holds`, by doubling and bisection; `most` where none does.

    Each count is tried once; `holds` is taken to be monotone.
    """
    low, high = -1, 0  # low does not hold, high does
    while not holds(high):
        if high == most:
            return most
        low, high = high, min(max(1, 2 * high), most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


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
