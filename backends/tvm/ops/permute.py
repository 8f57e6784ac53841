"""Bytes in a new order by whole vectors, where any shuffle of two vectors is one instruction.

A vector of the output is picked from the few vectors of the operand that hold its elements: channel
shuffles in blocks of channels, every second pixel, repeated pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from effc.backends.tvm.ops.strided import Digit, Piece

NARROW = 4  # extents up to this are shuffled vector by vector, larger ones by tiles


@dataclass(frozen=True, slots=True)
class Permutation:
    """Element i of the `width` elements at an output place is element `picks[i][1]` of the vector that
    begins `starts[picks[i][0]]` elements behind the source place. Places walk `outer`, then `by` in
    steps of `step`."""

    outer: tuple[Digit, ...]
    by: Digit
    step: int
    width: int
    starts: tuple[int, ...]
    picks: tuple[tuple[int, int], ...]


def permuted(piece: Piece, lanes: int, elements: int) -> Permutation | None:
    """How vectors of `lanes` (or half of them) make `piece` of an operand of `elements`.

    None where runs or every n-th element of a long axis are moved, which have better ways, and where
    the elements of one vector come from too many places.
    """
    inner = piece.digits[-1]
    if inner.extent >= lanes // 2 and 1 <= inner.source <= NARROW:
        return None
    outer, inside, span = list(piece.digits), list[Digit](), 1
    while outer and outer[-1].out == span and span * outer[-1].extent <= lanes:
        inside.insert(0, outer.pop())
        span *= inside[0].extent
    by = outer.pop() if outer and outer[-1].out == span else Digit(1, span, 0)
    step = 1 << (min(lanes // span, by.extent).bit_length() - 1)
    width = step * span
    if width < lanes // 2 or width & (width - 1):
        return None
    places = [0]
    for d in (replace(by, extent=step), *inside):
        places = [p + k * d.source for p in places for k in range(d.extent)]
    ends = [(d.extent - 1) * d.source for d in outer] + [(by.extent - step) * by.source]
    low = piece.source + sum(min(e, 0) for e in ends)
    high = piece.source + sum(max(e, 0) for e in ends)
    starts = _windows(places, width, -low, elements - width - high)
    if starts is None:
        return None
    picks = []
    for p in places:
        k = next(k for k, s in enumerate(starts) if s <= p < s + width)
        picks.append((k, p - starts[k]))
    return Permutation(tuple(outer), by, step, width, tuple(starts), tuple(picks))


def _windows(places: Sequence[int], width: int, least: int, most: int) -> list[int] | None:
    """Where few vectors of `width` begin, in [least, most], that hold all `places`."""
    starts: list[int] = []
    left = sorted(set(places))
    while left:
        last = max(p for p in left if p < left[0] + width)
        start = next((s for s in (left[0], last - width + 1) if least <= s <= most), None)
        if start is None or len(starts) == NARROW:
            return None
        starts.append(start)
        left = [p for p in left if p >= start + width]
    return starts
