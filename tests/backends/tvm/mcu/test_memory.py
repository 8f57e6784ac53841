"""Places of tensors: nothing that lives at once overlaps but as kernels allow, and little is wasted."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effc.backends.tvm.mcu.memory import Block, MemoryPlan, place, round_up


def check(blocks: list[Block], ahead: dict[tuple[str, str], int], plan: MemoryPlan) -> None:
    at = plan.offsets
    for a, b in itertools.combinations(blocks, 2):
        if a.last < b.first or b.last < a.first:
            continue
        apart = at[a.name] + a.bytes <= at[b.name] or at[b.name] + b.bytes <= at[a.name]
        over = any(
            (x.name, y.name) in ahead and at[x.name] + ahead[x.name, y.name] <= at[y.name]
            for x, y in ((a, b), (b, a))
        )
        assert apart or over, (a, b)
    assert all(offset % 4 == 0 for offset in at.values())
    assert plan.bytes == max((at[b.name] + round_up(b.bytes) for b in blocks), default=0)
    assert plan.bound <= plan.bytes


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 40), st.integers(0, 6), st.integers(0, 4)), min_size=1, max_size=8
    ),
    st.integers(0, 2**16),
)
def test_blocks_never_meet(drawn: list[tuple[int, int, int]], seed: int) -> None:
    blocks = [Block(f"t{i}", n, first, first + more) for i, (n, first, more) in enumerate(drawn)]
    ahead = {
        (a.name, b.name): (seed >> (i + j)) % 30
        for i, a in enumerate(blocks)
        for j, b in enumerate(blocks)
        if a is not b and b.last == a.first and b.first < a.first and (seed >> i) & 1
    }
    check(blocks, ahead, place(blocks, ahead))


def chain(*sizes: int) -> list[Block]:
    return [Block(f"t{i}", n, max(i - 1, 0), i) for i, n in enumerate(sizes)]


def test_chain_in_place() -> None:
    blocks = chain(100, 100, 100)
    ahead = {("t1", "t0"): 0, ("t2", "t1"): 0}
    plan = place(blocks, ahead)
    assert plan.bytes == plan.bound == 100
    assert place(blocks, {}).bytes == 200


@pytest.mark.parametrize("distance", [0, 8, 40])
def test_output_before_its_input(distance: int) -> None:
    blocks = chain(100, 80)
    plan = place(blocks, {("t1", "t0"): distance})
    assert plan.bytes == plan.bound == 100 + distance
    assert plan.offsets["t1"] + distance <= plan.offsets["t0"]


def test_output_larger_than_its_input() -> None:
    plan = place(chain(40, 100), {("t1", "t0"): 60})
    assert plan.bytes == plan.bound == 100
    assert plan.offsets["t0"] >= plan.offsets["t1"] + 60


def test_a_distance_beyond_the_output_is_none() -> None:
    assert place(chain(40, 20), {("t1", "t0"): 500}).bytes == 60


def test_the_same_blocks_give_the_same_plan() -> None:
    blocks = [Block(f"t{i}", (i * 37) % 50 + 1, i % 7, i % 7 + i % 3) for i in range(30)]
    assert place(blocks, {}) == place(list(blocks), {})
