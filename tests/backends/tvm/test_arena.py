"""Arena offsets, checked byte by byte by a checker that knows nothing of the planner."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from effc.backends.tvm.arena import ALIGNMENT, Interval, intervals, place
from effc.backends.tvm.layout import TensorType
from effc.backends.tvm.program import Call, Program, View


@st.composite
def blocks(draw: st.DrawFn) -> list[Interval]:
    count = draw(st.integers(0, 24))
    found = []
    for i in range(count):
        first = draw(st.integers(0, 15))
        last = first + draw(st.integers(0, 6))
        found.append(Interval(f"t{i}", draw(st.integers(1, 1000)), first, last))
    return found


@given(blocks())
def test_no_two_live_blocks_share_a_byte(found: list[Interval]) -> None:
    plan = place(found)
    assert set(plan.offsets) == {b.name for b in found}
    for call in range(25):
        owner = np.full(plan.bytes, -1)
        for i, b in enumerate(found):
            if b.first <= call <= b.last:
                piece = owner[plan.offsets[b.name] : plan.offsets[b.name] + b.bytes]
                assert len(piece) == b.bytes
                assert (piece == -1).all()
                piece[:] = i
    assert all(o % ALIGNMENT == 0 for o in plan.offsets.values())


@given(blocks())
def test_the_bound_is_what_is_live_at_once(found: list[Interval]) -> None:
    plan = place(found)
    live = [
        sum(-(-b.bytes // ALIGNMENT) * ALIGNMENT for b in found if b.first <= c <= b.last)
        for c in range(25)
    ]
    assert plan.bound == max(live)
    assert plan.bound <= plan.bytes


def test_a_chain_needs_two_buffers() -> None:
    chain = [Interval(f"t{i}", 640, i, i + 1) for i in range(10)]
    plan = place(chain)
    assert plan.bytes == plan.bound == 1280
    assert "0.0 % over" in str(plan)


def test_views_extend_the_life_of_their_storage() -> None:
    program = Program(inputs=("x",), outputs=("y",))
    for name in ("x", "a", "piece", "b", "y"):
        program.tensors[name] = TensorType((64,), "float32")
    program.views["piece"] = View("a")
    program.calls = [
        Call("k", ("a", "x"), ("n0",), "t"),
        Call("k", ("b", "x"), ("n1",), "t"),
        Call("k", ("y", "piece", "b"), ("n2",), "t"),
    ]
    assert intervals(program) == [Interval("a", 256, 0, 2), Interval("b", 256, 1, 2)]
