"""Where every intermediate tensor lies in the one block of memory that an inference needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from effc.backends.tvm.program import Program

ALIGNMENT = 64  # bytes: a cache line, and the widest vector register


@dataclass(frozen=True, slots=True)
class Interval:
    """A block of `bytes` that is in use from call `first` to call `last`, both included."""

    name: str
    bytes: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class ArenaPlan:
    """Offsets in bytes; `bytes` is the size of the arena, `bound` what no plan can go below."""

    offsets: Mapping[str, int]
    bytes: int
    bound: int

    def __str__(self) -> str:
        over = (self.bytes / self.bound - 1) * 100 if self.bound else 0.0
        return f"arena {self.bytes} B, lower bound {self.bound} B (live at once), {over:.1f} % over"


def plan_arena(program: Program) -> ArenaPlan:
    """Offsets of all storages that are neither constant nor the caller's."""
    return place(intervals(program))


def intervals(program: Program) -> list[Interval]:
    """The live range of every storage of the arena, in the order of first use."""
    outside = {program.root(n) for n in (*program.inputs, *program.outputs)}
    outside |= set(program.constants)
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for i, call in enumerate(program.calls):
        for name in call.args:
            root = program.root(name)
            if root not in outside:
                first.setdefault(root, i)
                last[root] = i
    return [Interval(n, program.tensors[n].bytes, first[n], last[n]) for n in first]


def place(blocks: Sequence[Interval]) -> ArenaPlan:
    """Greedy by size: the largest block first, each into the smallest gap that holds it.

    Source: Pisarchyk and Lee, "Efficient memory management for deep neural net inference" (2020),
    offset calculation by greedy-by-size; the gap is the best fit instead of the first. Three orders
    are tried and the smallest arena wins.
    """
    sizes = {b.name: -(-b.bytes // ALIGNMENT) * ALIGNMENT for b in blocks}
    orders = (
        sorted(blocks, key=lambda b: (-sizes[b.name], b.first, b.name)),
        sorted(blocks, key=lambda b: (-sizes[b.name] * (b.last - b.first + 1), b.name)),
        sorted(blocks, key=lambda b: (b.first, -sizes[b.name], b.name)),
    )
    plans = [_place(order, sizes) for order in orders]
    offsets = min(plans, key=lambda o: max((o[n] + sizes[n] for n in o), default=0))
    total = max((offsets[n] + sizes[n] for n in offsets), default=0)
    return ArenaPlan(offsets, total, _bound(blocks, sizes))


def _place(order: Sequence[Interval], sizes: Mapping[str, int]) -> dict[str, int]:
    offsets: dict[str, int] = {}
    placed: list[Interval] = []
    for block in order:
        size = sizes[block.name]
        taken = sorted(
            (offsets[p.name], offsets[p.name] + sizes[p.name])
            for p in placed
            if p.first <= block.last and block.first <= p.last
        )
        end, best, best_gap = 0, None, None
        for low, high in taken:
            gap = low - end
            if gap >= size and (best_gap is None or gap < best_gap):
                best, best_gap = end, gap
            end = max(end, high)
        offsets[block.name] = end if best is None else best
        placed.append(block)
    return offsets


def _bound(blocks: Sequence[Interval], sizes: Mapping[str, int]) -> int:
    """The largest sum of sizes that are live during one call."""
    change: dict[int, int] = {}
    for b in blocks:
        change[b.first] = change.get(b.first, 0) + sizes[b.name]
        change[b.last + 1] = change.get(b.last + 1, 0) - sizes[b.name]
    live = most = 0
    for i in sorted(change):
        live += change[i]
        most = max(most, live)
    return most
