"""Straight-line vector code over registers: loads, stores and shuffles with constant indices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx

from effc.backends.tvm import tir

Expr = Any
Stmt = Any
Pick = tuple[int, int]  # which vector, which lane of it


class Registers:
    """Statements that move vectors from `source` to `out`, in the order of the calls."""

    def __init__(self, out: Any, source: Any, dtype: str) -> None:
        self.out, self.source, self.dtype = out, source, dtype
        self.statements: list[Stmt] = []
        self.allocated: list[Any] = []

    def statement(self) -> Stmt:
        """All of it."""
        return tir.seq(*(tirx.AllocBuffer(b) for b in self.allocated), *self.statements)

    def named(self, value: Expr, width: int) -> Expr:
        """`value` in a register: expressions are trees, and this one may be read twice."""
        register = tir.local("r", width, self.dtype)
        self.allocated.append(register)
        at = [lanes_at(0, width)]
        self.statements.append(tirx.BufferStore(register, value, at))
        return tirx.BufferLoad(register, at)

    def load(self, at: Expr, width: int) -> Expr:
        """`width` elements of the source."""
        return self.named(tirx.BufferLoad(self.source, [lanes_at(at, width)]), width)

    def store(self, value: Expr, at: Expr, width: int) -> None:
        """`width` elements into the output."""
        self.statements.append(tirx.BufferStore(self.out, value, [lanes_at(at, width)]))

    def zero(self, width: int) -> Expr:
        """Zeros."""
        return tirx.Broadcast(tirx.const(0, self.dtype), width)

    def pick(self, vectors: Sequence[Expr], picks: Sequence[Pick]) -> Expr:
        """The vector of these lanes, by shuffles of two vectors each."""
        width = len(picks)
        used = sorted({v for v, _ in picks})
        value = vectors[used[0]]
        if getattr(value.ty, "dtype", None) is not None and str(value.ty.dtype) == self.dtype:
            return self.named(tirx.Broadcast(value, width), width)
        pairs = used[1:] or [used[0]]
        placed = {used[0]} if used[1:] else set[int]()
        for turn, other in enumerate(pairs):
            indices = []
            for lane, (v, i) in enumerate(picks):
                if v == other:
                    indices.append(width + i if used[1:] else i)
                else:
                    indices.append(i if turn == 0 and v in placed else lane)
            sources = [value, vectors[other]] if used[1:] else [value]
            value = self.shuffled(sources, indices)
        return value

    def shuffled(self, vectors: Sequence[Expr], indices: Sequence[int]) -> Expr:
        """Lanes of the vectors put end to end."""
        constants = [tirx.const(i, "int32") for i in indices]
        return self.named(tirx.Shuffle(list(vectors), constants), len(indices))

    def transposed(self, rows: Sequence[Expr], lane: int) -> list[Expr]:
        """The columns of a square of `rows`; `lane` elements are 128 bits.

        Interleaving rows i and i + n/2, log2(n) times over, transposes n x n within 128 bits, where
        interleaving is one instruction; then blocks of 128 bits change places.
        """
        side = len(rows)
        n = min(lane, side)
        groups = []
        for q in range(0, side, n):
            group = list(rows[q : q + n])
            for _ in range(n.bit_length() - 1):
                group = [
                    self.shuffled((group[i], group[i + n // 2]), _interleaved(side, n, half))
                    for i in range(n // 2)
                    for half in (0, 1)
                ]
            groups.append(group)
        columns: list[Expr] = [None] * side
        for k in range(n):
            for b, value in enumerate(self._blocks([g[k] for g in groups], n)):
                columns[b * n + k] = value
        return columns

    def _blocks(self, vectors: list[Expr], n: int) -> list[Expr]:
        """Vectors of as many blocks of n elements as there are vectors, transposed by blocks."""
        count = len(vectors)
        if count == 1:
            return vectors

        def put(a: Expr, b: Expr, blocks: Sequence[int]) -> Expr:
            return self.shuffled((a, b), [k * n + i for k in blocks for i in range(n)])

        if count == 2:
            a, b = vectors
            return [put(a, b, (0, 2)), put(a, b, (1, 3))]
        a, b, c, d = vectors
        low, high = put(a, b, (0, 1, 4, 5)), put(a, b, (2, 3, 6, 7))
        low2, high2 = put(c, d, (0, 1, 4, 5)), put(c, d, (2, 3, 6, 7))
        pairs = ((low, low2), (high, high2))
        return [put(x, y, (k, k + 2, k + 4, k + 6)) for x, y in pairs for k in (0, 1)]


def lanes_at(at: Expr, width: int) -> Expr:
    """The indices of `width` elements from `at`."""
    start = tirx.const(at, "int32") if isinstance(at, int) else at
    return tirx.Ramp(start, 1, width) if width > 1 else start


def _interleaved(side: int, n: int, half: int) -> list[int]:
    """Lanes of two vectors, alternating, from one half of every n elements."""
    indices = []
    for block in range(0, side, n):
        for i in range(n // 2):
            at = block + half * (n // 2) + i
            indices += [at, side + at]
    return indices
