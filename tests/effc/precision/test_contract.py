"""The search holds the budget, keeps slow groups float, and what it reports is what the mix does."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from effc import passes
from effc.core.data import SyntheticSamples
from effc.core.measure import LayerTime
from effc.core.passinfra import PassContext
from effc.core.quant_units import quantized_nodes, restore
from effc.core.specs import static_specs
from effc.passes.quantize.synthetic import ScaledNoise as Noise
from effc.precision.contract import (
    Group,
    Trial,
    clone,
    constant_bytes,
    least,
    measure_groups,
    mix,
    pareto,
    search,
    shrink,
)
from effc.precision.score import Judge, Score
from effc.precision.timing import NodeTimes, assign
from effc.zoo import build


def quiet(what: str, share: float) -> None: ...


@pytest.fixture(scope="module")
def case() -> tuple[ir.Model, ir.Model, Judge]:
    """tiny-resnet in float and with weights of 4 bits, which costs visibly."""
    model = build("tiny-resnet")
    passes.parse(f"{passes.CANONICALIZE},{passes.FUSE}").run(model, PassContext())
    samples = Noise(SyntheticSamples(static_specs(model.graph.inputs), count=12), {})
    quantized = model.clone()
    context = PassContext(samples=samples)
    passes.parse("quantize{scheme=vnni,weight-bits=4}").run(quantized, context)
    return model, quantized, Judge.record(model, samples)


def timed(names: list[str], slow: set[str]) -> NodeTimes:
    """Every node alone; integers take half the time, but twice as long for the `slow` ones."""
    integer = tuple(2e-3 if n in slow else 0.5e-3 for n in names)
    total = float(len(names)) * 1e-3
    return NodeTimes(tuple((n,) for n in names), (1e-3,) * len(names), integer, total, sum(integer))


def test_the_budget_holds_with_few_nodes_in_float(case: tuple[ir.Model, ir.Model, Judge]) -> None:
    model, quantized, judge = case
    names = [str(n.name) for n in quantized_nodes(quantized)]
    times = timed(names, {names[2]})
    groups = measure_groups(model, quantized, judge, times, quiet)
    everything = judge.score(quantized)
    budget = 100 * math.sqrt(everything.noise) / 3
    judge = Judge(judge.feeds, judge.labels, judge.answers, "")  # noise is a finer measure
    trials = search(quantized, judge, groups, times, budget, quiet)
    chosen = trials[-1]
    assert chosen.score.drop <= budget < judge.score(quantized).drop
    assert names[2] in chosen.kept and 1 < len(chosen.kept) < len(names)
    made = clone(quantized)
    restore(made, chosen.kept)
    assert judge.score(made) == chosen.score
    # one group fewer does not hold
    by_name = {g.names: g for g in groups}
    fewer = [by_name[(n,)] for n in chosen.kept[:-1]]
    assert mix(quantized, judge, fewer, times).score.drop > budget


def test_a_budget_of_nothing_ends_in_float(case: tuple[ir.Model, ir.Model, Judge]) -> None:
    model, quantized, judge = case
    groups = measure_groups(model, quantized, judge, None, quiet)
    judge = Judge(judge.feeds, judge.labels, judge.answers, "")
    chosen = search(quantized, judge, groups, None, 0.0, quiet)[-1]
    assert set(chosen.kept) == {str(n.name) for n in quantized_nodes(quantized)}
    assert chosen.score.sqnr_db > 100


def test_noise_of_single_groups_adds_up(case: tuple[ir.Model, ir.Model, Judge]) -> None:
    model, quantized, judge = case
    groups = measure_groups(model, quantized, judge, None, quiet)
    assert all(g.score.noise > 0 for g in groups if "conv" in g.names[0])
    whole = judge.score(quantized).noise
    assert 0.3 * whole < sum(g.score.noise for g in groups) < 3 * whole


def test_pareto_has_no_dominated_mix() -> None:
    rng = np.random.default_rng(0)
    trials = [
        Trial(str(i), (), Score("top-1", float(d), 30.0), float(s), 0)
        for i, (d, s) in enumerate(rng.uniform(size=(40, 2)))
    ]
    best = pareto(trials)
    assert best
    for t in trials:
        beaten = any(
            b.score.drop <= t.score.drop and (b.seconds or 0) <= (t.seconds or 0) and b is not t
            for b in trials
        )
        assert beaten != (t in best)


def test_nodes_that_share_a_kernel_change_together() -> None:
    def layer(name: str, nodes: tuple[str, ...], seconds: float) -> LayerTime:
        return LayerTime(name, "conv", nodes, seconds)

    floats = [layer("a", ("conv1", "relu"), 1.0), layer("b", ("conv2", "add"), 2.0)]
    integers = [
        layer("q", ("x/quantized",), 0.125),
        layer("a", ("conv1",), 0.25),
        layer("b", ("conv2",), 0.5),
        layer("c", ("add",), 0.25),
    ]
    times = assign({"conv1", "conv2", "add"}, floats, integers, (3.0, 1.125))
    pairs = zip(times.float_seconds, times.quantized_seconds, strict=True)
    found = dict(zip(times.groups, pairs, strict=True))
    assert found == {("conv1",): (1.0, 0.25), ("add", "conv2"): (2.0, 0.75)}
    assert times.quantized_total == 1.125
    assert Group(("conv1",), Score("noise", 0, 0), None, 1.0).gain is None


def test_4_bits_where_the_budget_allows(case: tuple[ir.Model, ir.Model, Judge]) -> None:
    model, _, judge = case
    judge = Judge(judge.feeds, judge.labels, judge.answers, "")
    quantized = model.clone()
    samples = Noise(SyntheticSamples(static_specs(model.graph.inputs), count=12), {})
    passes.parse("quantize{scheme=vnni}").run(quantized, PassContext(samples=samples))
    base = Trial("int8", (), judge.score(quantized), None, constant_bytes(quantized))
    budget = 3 * base.score.drop
    chosen = shrink(quantized, base, judge, budget, quiet)[-1]
    assert chosen.score.drop <= budget and 0 < len(chosen.narrowed) < 10
    assert chosen.bytes < base.bytes
    assert shrink(quantized, base, judge, base.score.drop / 2, quiet)[-1] == base


@given(st.integers(0, 40), st.integers(0, 45))
def test_least_finds_the_first_that_holds(most: int, first: int) -> None:
    tried: list[int] = []

    def holds(count: int) -> bool:
        tried.append(count)
        return count >= first

    assert least(holds, most) == min(first, most)
    assert len(tried) == len(set(tried)) and max(tried) <= most
