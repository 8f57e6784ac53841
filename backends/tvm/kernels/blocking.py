"""Register and cache blocking of convolutions and matrix products, from the ISA alone (no tuning)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from effc.backends.tvm.isa import Isa

STREAM = 24.0  # bytes a cycle that the second-level cache delivers while FMAs run
FAR = 12.0  # and what comes from beyond it
LATENCY = 4.0  # cycles of an FMA


@dataclass(frozen=True, slots=True)
class Run:
    """`count` chunks of `width` blocks, from block `begin` and chunk `first` on; the last block of the
    last chunk holds `valid` channels (all other blocks are full)."""

    first: int
    begin: int
    width: int
    count: int
    valid: int


def even(total: int, parts: int) -> list[int]:
    """`total` in `parts` sizes that differ by one at most, wide ones first."""
    base, wide = divmod(total, parts)
    return [base + (i < wide) for i in range(parts)]


def chunk_runs(blocks: int, parts: int, lanes: int, last_valid: int) -> tuple[Run, ...]:
    """`blocks` blocks as `parts` chunks; a chunk with a partial last block is a run of its own."""
    runs: list[Run] = []
    begin = 0
    for i, width in enumerate(even(blocks, parts)):
        valid = last_valid if i == parts - 1 else lanes
        last = runs[-1] if runs else None
        if last and last.width == width and last.valid == valid == lanes:
            runs[-1] = Run(last.first, last.begin, width, last.count + 1, valid)
        else:
            runs.append(Run(i, begin, width, 1, valid))
        begin += width
    return tuple(runs)


@dataclass(frozen=True, slots=True)
class Rule:
    """What register tiles of a kind of kernel fit, and what their stores cost; here those of float32."""

    body: int = 120  # products in the innermost loop's body

    def fits(self, isa: Isa, pixels: int, blocks: int) -> bool:
        """Whether accumulators, weights and input values stay in registers.

        x86 broadcasts one input value at a time; NEON multiplies by an element of a vector, and LLVM
        then keeps a vector of input channels for each pixel.
        """
        inputs = pixels if isa.name == "neon" else 1
        return pixels * blocks + blocks + inputs <= isa.registers - 1

    def step_cycles(self, isa: Isa, pixels: int, blocks: int) -> float:
        """Cycles of the arithmetic of a reduction step."""
        return pixels * blocks / 2

    def store_cycles(self, pixels: int, blocks: int) -> float:
        """Cycles from the accumulators to memory."""
        return 1.5 * pixels * blocks


FLOATS = Rule()


def step_cycles(
    isa: Isa, pixels: int, blocks: int, *, streamed: bool, rule: Rule = FLOATS
) -> float:
    """Cycles of one reduction step (one input channel of one tap) of a register tile.

    `streamed`: the weights come from the second-level cache.
    """
    work = rule.step_cycles(isa, pixels, blocks)
    loads = (pixels + blocks) / 2
    stream = blocks * isa.lanes * 4 / STREAM if streamed else 0.0
    return max(work, loads, LATENCY, stream) + 0.1 * (loads + stream)


def tile_cycles(isa: Isa, pixels: int, blocks: int, steps: int, rule: Rule = FLOATS) -> float:
    """Cycles of one register tile: `steps` reduction steps, set-up and the store."""
    streamed = blocks * steps * isa.lanes * 4 > isa.l1 // 2
    each = step_cycles(isa, pixels, blocks, streamed=streamed, rule=rule)
    return steps * each + 20 + rule.store_cycles(pixels, blocks)


def choose(
    isa: Isa,
    counts: dict[int, int],
    blocks: int,
    steps: int,
    *,
    most: int | None = None,
    reread: int = 0,
    rule: Rule = FLOATS,
) -> tuple[int, int]:
    """The widest tile and the number of chunks that cost least.

    `counts[n]` is the number of runs of n adjacent output positions; a run is cut into even tiles.
    `most` bounds the blocks of a chunk; `reread` bytes come from beyond the second-level cache for
    every chunk.
    """
    found = min(
        costs(isa, counts, blocks, steps, most=most, reread=reread, rule=rule),
        key=lambda c: c[0],
        default=(0.0, 1, blocks),
    )
    return found[1], found[2]


def costs(
    isa: Isa,
    counts: dict[int, int],
    blocks: int,
    steps: int,
    *,
    most: int | None = None,
    reread: int = 0,
    rule: Rule = FLOATS,
) -> Iterator[tuple[float, int, int]]:
    """Cycles, widest tile and number of chunks of every blocking that fits; arguments as of `choose`."""
    for parts in range(1, blocks + 1):
        chunks = even(blocks, parts)
        if chunks[0] > (most or blocks):
            continue
        for width in range(1, isa.registers):
            if not rule.fits(isa, width, chunks[0]):
                break
            cycles = parts * reread / FAR
            for length, times in counts.items():
                tiles = even(length, -(-length // width))
                for t in set(tiles):
                    for u in set(chunks):
                        number = tiles.count(t) * chunks.count(u) * times
                        cycles += number * tile_cycles(isa, t, u, steps, rule)
            yield cycles, width, parts
