"""The unrolled inner part of depthwise kernels: two outputs of a row at a time, products in pairs.

Of four bytes of a row, `sxtb16` gives (x0, x2) and (x1, x3); weights lie in pairs (w[t], w[t + 2]), and what
has no partner multiplies one half.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from effc.backends.tvm.mcu.ops.geometry import Windows
from effc.core.ir import Array


@dataclass(slots=True)
class _Words:
    """The weights of a channel as words of two halves, in the order of their first use."""

    halves: list[tuple[tuple[int, int] | None, tuple[int, int] | None]] = field(
        default_factory=list
    )

    def pair(self, row: int, tap: int) -> int:
        """The word with taps `tap` and `tap + 2` of `row`."""
        wanted = ((row, tap), (row, tap + 2))
        if wanted not in self.halves:
            self.halves.append(wanted)
        return self.halves.index(wanted)

    def single(self, row: int, tap: int) -> tuple[int, str]:
        """A word with this tap, and which half it is."""
        for index, (low, high) in enumerate(self.halves):
            if low == (row, tap):
                return index, "low"
            if high == (row, tap):
                return index, "high"
        for index, (low, high) in enumerate(self.halves):
            if high is None:
                self.halves[index] = (low, (row, tap))
                return index, "high"
        self.halves.append(((row, tap), None))
        return len(self.halves) - 1, "low"


@dataclass(frozen=True, slots=True)
class PairedRows:
    """The C text that adds a window's products to `a` and those of its neighbour to `b`."""

    text: str
    halves: tuple[tuple[tuple[int, int] | None, tuple[int, int] | None], ...]
    reach: int  # bytes that are read of a row, from the first output's window on

    @classmethod
    def of(cls, windows: Windows) -> PairedRows:
        """For the kernel and the horizontal stride of `windows`, undilated."""
        taps, stride = windows.kernel_w, windows.stride_w
        words = _Words()
        quads = -(-(stride + taps) // 4)
        plan: list[tuple[int, int, str, str, int, int]] = []
        for row in range(windows.kernel_h):
            for quad in range(quads):
                for acc, offset in (("a", 0), ("b", stride)):
                    for name, first in (("even", 4 * quad), ("odd", 4 * quad + 1)):
                        plan.append((row, quad, acc, name, first - offset, first + 2 - offset))
        for row, _, _, _, low, high in plan:  # pairs first: singles are found in them
            if 0 <= low and high < taps:
                words.pair(row, low)
        lines, at = [], (-1, -1)
        for row, quad, acc, name, low, high in plan:
            inside = 0 <= low < taps, 0 <= high < taps
            if not any(inside):
                continue
            if (row, quad) != at:
                at = (row, quad)
                lines.append(f"word = effc_load4(from + {row} * ROW + {4 * quad});")
                used = {
                    n
                    for r, q, _, n, *ends in plan
                    if (r, q) == at and any(0 <= t < taps for t in ends)
                }
                lines += [f"{n} = effc_{n}(word);" for n in ("even", "odd") if n in used]
            if all(inside):
                lines.append(f"{acc} = effc_dot2({name}, w{words.pair(row, low)}, {acc});")
                continue
            half = "low" if inside[0] else "high"
            word, place = words.single(row, low if inside[0] else high)
            lines.append(f"{acc} += effc_{half}({name}) * effc_{place}(w{word});")
        return cls("\n".join(f"        {x}" for x in lines), tuple(words.halves), 4 * quads)

    @property
    def declarations(self) -> str:
        """The weights of a channel as locals."""
        count = len(self.halves)
        given = ", ".join(f"w{k} = w[{k}]" for k in range(count))
        return f"const uint32_t {given};"

    def packed(self, taps: Array) -> Array:
        """int8 [C, KH, KW] as the kernel reads them, uint32 [C * words]."""
        found = np.zeros((taps.shape[0], len(self.halves), 2), np.int16)
        for k, word in enumerate(self.halves):
            for side, place in enumerate(word):
                if place is not None:
                    found[:, k, side] = taps[:, place[0], place[1]]
        return found.view("<u4").reshape(-1).astype(np.uint32)
