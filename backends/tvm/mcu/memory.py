"""Offsets of tensors and scratch in one block of RAM, outputs over inputs where kernels allow it.

Besides lying apart, an output may start at least `ahead` bytes before an input that dies with the call:
then the kernel writes only over what it has read. For a convolution that is a few rows, so that input and
output together take little more than the larger of them.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

ALIGNMENT = 4  # bytes: words, and floats


@dataclass(frozen=True, slots=True)
class Block:
    """`bytes` that are in use from call `first` to call `last`, both included."""

    name: str
    bytes: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Offsets in bytes; `bytes` is the size of the arena, `bound` what no plan can go below.

    `peak` is the call at which the bound is reached.
    """

    offsets: Mapping[str, int]
    bytes: int
    bound: int
    peak: int

    def __str__(self) -> str:
        over = (self.bytes / self.bound - 1) * 100 if self.bound else 0.0
        return f"arena {self.bytes} B, lower bound {self.bound} B (live at once), {over:.1f} % over"


NOTHING = MemoryPlan({}, 0, 0, 0)
Ahead = Mapping[tuple[str, str], int]  # (output, input that dies with it) -> bytes


def place(blocks: Sequence[Block], ahead: Ahead, tries: int = 300) -> MemoryPlan:
    """Greedy best fit in four orders and `tries` more, until the bound is met; the smallest arena wins.

    Deterministic.

    Source of the greedy: Pisarchyk and Lee, "Efficient memory management for deep neural net inference"
    (2020); of the overlap: the diagonal memory optimization of Gural and Murmann, "Memory-optimal direct
    convolutions" (2019), and TinyEngine's in-place depthwise convolution.
    """
    ahead = {pair: round_up(d) for pair, d in ahead.items()}
    sizes = {b.name: round_up(b.bytes) for b in blocks}
    bound, peak = _bound(blocks, sizes, ahead)
    neighbours = {
        b.name: [o for o in blocks if o is not b and o.first <= b.last and b.first <= o.last]
        for b in blocks
    }
    best: dict[str, int] = {}
    least = -1
    for order in _orders(blocks, sizes, tries):
        offsets: dict[str, int] = {}
        for block in order:
            offsets[block.name] = _fit(block, offsets, neighbours[block.name], sizes, ahead)
        total = max((offsets[n] + sizes[n] for n in offsets), default=0)
        if least < 0 or total < least:
            least, best = total, offsets
        if least <= bound:
            break
    return MemoryPlan(best, max(least, 0), bound, peak)


def round_up(size: int) -> int:
    """`size` as whole words."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def _orders(blocks: Sequence[Block], sizes: Mapping[str, int], tries: int) -> Iterable[list[Block]]:
    by_size = sorted(blocks, key=lambda b: (-sizes[b.name], b.first, b.name))
    yield by_size
    yield sorted(blocks, key=lambda b: (-sizes[b.name] * (b.last - b.first + 1), b.name))
    yield sorted(blocks, key=lambda b: (b.first, -sizes[b.name], b.name))
    yield sorted(blocks, key=lambda b: (-b.last, -sizes[b.name], b.name))
    rng = random.Random(0)
    spans = {b.name: sizes[b.name] for b in blocks}
    for _ in range(min(tries, 1_000_000 // max(len(blocks), 1) ** 2 + 8)):
        yield sorted(blocks, key=lambda b: (-spans[b.name] * rng.uniform(0.3, 1.0), b.name))


def _fit(
    block: Block,
    offsets: Mapping[str, int],
    near: Sequence[Block],
    sizes: Mapping[str, int],
    ahead: Ahead,
) -> int:
    """The lowest place for `block` beside what is placed."""
    size = sizes[block.name]
    forbidden = []  # open intervals of offsets
    for other in near:
        at = offsets.get(other.name)
        if at is None:
            continue
        low, high = at - size, at + sizes[other.name]
        over = ahead.get((block.name, other.name))
        if over is not None:
            low = max(low, at - over)
        under = ahead.get((other.name, block.name))
        if under is not None:
            high = min(high, at + under)
        if low < high:
            forbidden.append((low, high))
    place = 0
    for low, high in sorted(forbidden):
        if low < place < high:
            place = high
    return place


def _bound(blocks: Sequence[Block], sizes: Mapping[str, int], ahead: Ahead) -> tuple[int, int]:
    """The largest sum of sizes that are live during one call, less what may overlap there, and the call."""
    most, peak = 0, 0
    for call in sorted({b.first for b in blocks}):
        live = {b.name for b in blocks if b.first <= call <= b.last}
        pairs = {p: d for p, d in ahead.items() if p[0] in live and p[1] in live}
        total = sum(_together(group, pairs, sizes) for group in _groups(live, pairs))
        if total > most:
            most, peak = total, call
    return most, peak


def _groups(live: Iterable[str], pairs: Ahead) -> list[set[str]]:
    """Blocks that overlap with one another, directly or through others."""
    groups = [{name} for name in sorted(live)]
    for a, b in pairs:
        first, second = (next(g for g in groups if n in g) for n in (a, b))
        if first is not second:
            first |= second
            groups.remove(second)
    return groups


def _together(group: set[str], pairs: Ahead, sizes: Mapping[str, int]) -> int:
    """Bytes that the blocks of a group take at least."""
    inside = {p: d for p, d in pairs.items() if p[0] in group}
    reach = [sizes[b] + min(d, sizes[a]) for (a, b), d in inside.items()]
    outputs = {a for a, _ in inside}
    # what lies below one output lies apart, unless it is an output itself
    apart = [sum(sizes[b] for a, b in inside if a == o and b not in outputs) for o in outputs]
    return max([*(sizes[n] for n in group), *reach, *apart])
