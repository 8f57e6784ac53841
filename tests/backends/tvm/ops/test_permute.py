"""Vectors picked from vectors: the plan itself, simulated, and the machine code of a channel shuffle."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

pytest.importorskip("tvm")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from effc.backends.tvm.ops.permute import permuted  # noqa: E402
from effc.backends.tvm.ops.strided import Digit, Piece  # noqa: E402


def place(digits: tuple[Digit, ...], at: tuple[int, ...], stride: str) -> int:
    return sum(k * getattr(d, stride) for d, k in zip(digits, at, strict=True))


def moved(piece: Piece, elements: int) -> tuple[np.ndarray, np.ndarray]:
    """What the digits say: output places and the operand's places behind them."""
    steps = list(itertools.product(*(range(d.extent) for d in piece.digits)))
    out = [piece.out + place(piece.digits, s, "out") for s in steps]
    source = [piece.source + place(piece.digits, s, "source") for s in steps]
    assert 0 <= min(source) and max(source) < elements
    return np.array(out), np.array(source)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_the_plan_moves_every_element(data: st.DataObject) -> None:
    """Axes of the output in any order in the operand, some repeated or backwards, with a margin."""
    count = data.draw(st.integers(2, 5))
    extents = [data.draw(st.sampled_from([2, 3, 4, 5, 8, 16, 20])) for _ in range(count)]
    order = data.draw(st.permutations(range(count)))
    source, size = [0] * count, 1
    for axis in order:
        kind = data.draw(st.sampled_from(["as it is"] * 4 + ["repeated", "backwards"]))
        source[axis] = {"repeated": 0, "backwards": -size}.get(kind, size)
        if kind != "repeated":
            size *= extents[axis]
    digits, out = [], 1
    for extent, stride in reversed(list(zip(extents, source, strict=True))):
        digits.insert(0, Digit(extent, out, stride))
        out *= extent
    least = sum(min(0, (d.extent - 1) * d.source) for d in digits)
    before, behind = data.draw(st.integers(0, 40)), data.draw(st.integers(0, 40))
    piece, elements = Piece(tuple(digits), 0, before - least), before + size + behind
    found = permuted(piece, 64, elements)
    if found is None:
        return
    memory = np.random.default_rng(0).permutation(elements)
    result = np.full(out, -1)
    loops = (*found.outer, found.by)
    last = found.by.extent - found.step
    walks = [range(d.extent) for d in found.outer]
    walks.append(sorted({*range(0, last + 1, found.step), last}))  # type: ignore[arg-type]
    for at in itertools.product(*walks):
        base = piece.source + place(loops, at, "source")
        vectors = []
        for s in found.starts:
            assert 0 <= base + s and base + s + found.width <= elements
            vectors.append(memory[base + s : base + s + found.width])
        to = piece.out + place(loops, at, "out")
        result[to : to + found.width] = [vectors[k][i] for k, i in found.picks]
    places, sources = moved(piece, elements)
    np.testing.assert_array_equal(result[places], memory[sources])


def test_a_channel_shuffle_takes_two_vectors() -> None:
    pixels = 3136  # blocks of 16 channels: [4, pixels, 16] from [2 groups of 2 blocks, pixels, 16]
    plane = pixels * 16
    digits = (
        Digit(2, 2 * plane, plane), Digit(2, plane, 8), Digit(pixels, 16, 16), Digit(8, 2, 1),
        Digit(2, 1, 2 * plane),
    )  # fmt: skip
    found = permuted(Piece(digits, 0, 0), 64, 4 * plane)
    assert found is not None
    assert (found.width, found.step, len(found.starts)) == (64, 4, 2)


def test_long_runs_are_left_to_copies() -> None:
    assert permuted(Piece((Digit(9, 64, 128), Digit(64, 1, 1)), 0, 0), 64, 9 * 128) is None
