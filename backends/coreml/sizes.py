"""Which further shapes one input of a package takes: a list (EnumeratedShapes) or a range (RangeDim)."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import Any

from effc.core.errors import ConfigError

Shape = tuple[int, ...]

_HINT = "like image=1,3,192..320,192..320, or image=1,3,192,192;1,3,320,320"
_MOST = 128  # Core ML's limit for enumerated shapes
_EXTENT = 1 << 31


@dataclass(frozen=True, slots=True)
class Sizes:
    """The shapes of the input `name`, in the source's layout, besides the one that --shape gives.

    Either `shapes`, which are enumerated, or `bounds`: the least and the largest extent of each axis.
    """

    name: str
    shapes: tuple[Shape, ...] = ()
    bounds: tuple[tuple[int, int], ...] = ()

    def axes(self, usual: Shape) -> tuple[int, ...]:
        """The axes whose extent is not always that of `usual`; ConfigError where nothing is open."""
        every = [*self.shapes] or [
            tuple(b[0] for b in self.bounds),
            tuple(b[1] for b in self.bounds),
        ]
        shown = ",".join(map(str, usual))
        if any(len(s) != len(usual) for s in every):
            raise ConfigError(
                f"--backend-option sizes: {self.name!r} has {len(usual)} dimensions", hint=_HINT
            )
        if self.bounds and any(
            not a <= d <= b for d, (a, b) in zip(usual, self.bounds, strict=True)
        ):
            raise ConfigError(
                f"--backend-option sizes: the shape {shown} of {self.name!r} lies outside the range",
                hint=f"choose the usual one of the range: --shape {self.name}=...",
            )
        found = tuple(i for i, d in enumerate(usual) if any(s[i] != d for s in every))
        if not found:
            raise ConfigError(
                f"--backend-option sizes names only the shape {shown} itself", hint=_HINT
            )
        return found

    def cases(self, usual: Shape) -> tuple[Shape, ...]:
        """Shapes to prove the package at, besides `usual`: all that are enumerated; of a range the
        corners of the first two open axes, and two shapes inside, one of them odd."""
        axes = self.axes(usual)
        if self.shapes:
            return tuple(s for s in dict.fromkeys(self.shapes) if s != usual)
        found = []
        for corner in itertools.product((0, 1), repeat=min(len(axes), 2)):
            ends = dict(zip(axes, corner, strict=False))
            found.append(tuple(
                self.bounds[i][ends.get(i, corner[0])] if i in axes else d for i, d in enumerate(usual)
            ))  # fmt: skip
        for numerator in (1, 2):
            inside = [a + (b - a) * numerator // 3 for a, b in self.bounds]
            odd = [min(d | 1, b) for d, (_, b) in zip(inside, self.bounds, strict=True)]
            chosen = odd if numerator == 1 else inside
            found.append(tuple(chosen[i] if i in axes else d for i, d in enumerate(usual)))
        return tuple(s for s in dict.fromkeys(found) if s != usual)

    def accepts(self, shape: Shape) -> bool:
        if self.shapes:
            return shape in self.shapes
        return len(shape) == len(self.bounds) and all(
            a <= d <= b for d, (a, b) in zip(shape, self.bounds, strict=True)
        )

    def text(self) -> str:
        """`[1, 3, 192..320, 192..320]`, or the list."""
        if self.shapes:
            return " or ".join(str(list(s)) for s in self.shapes)
        return "[" + ", ".join(str(a) if a == b else f"{a}..{b}" for a, b in self.bounds) + "]"

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name, "shapes": [list(s) for s in self.shapes],
            "bounds": [list(b) for b in self.bounds],
        }  # fmt: skip

    @classmethod
    def from_description(cls, d: dict[str, Any]) -> Sizes:
        bounds = tuple((int(a), int(b)) for a, b in d["bounds"])
        return cls(d["name"], tuple(tuple(s) for s in d["shapes"]), bounds)


def parse_sizes(text: str) -> Sizes:
    """`NAME=D,D,...` with ranges `A..B`, or several shapes with `;` between them; ConfigError otherwise."""
    name, equals, rest = text.rpartition("=")
    parts = [part.strip() for part in rest.split(";") if part.strip()]
    parsed = [tuple(_extents(text, d) for d in part.split(",")) for part in parts]
    if not equals or not name or not parsed:
        raise ConfigError(f"--backend-option sizes={text}: no shapes in it", hint=_HINT)
    ranged = any(a != b for shape in parsed for a, b in shape)
    if ranged and len(parsed) > 1:
        raise ConfigError(
            f"--backend-option sizes={text}: ranges and a list of shapes exclude one another",
            hint=_HINT,
        )
    if len(parsed) > _MOST:
        raise ConfigError(f"--backend-option sizes: Core ML takes at most {_MOST} shapes")
    if ranged:
        return Sizes(name, bounds=parsed[0])
    return Sizes(name, tuple(dict.fromkeys(tuple(a for a, _ in shape) for shape in parsed)))


def _extents(text: str, part: str) -> tuple[int, int]:
    match = re.fullmatch(r"\s*([0-9]{1,10})\s*(?:\.\.\s*([0-9]{1,10})\s*)?", part)
    low = int(match[1]) if match else 0
    high = int(match[2]) if match and match[2] else low
    if not 1 <= low <= high < _EXTENT:
        raise ConfigError(f"--backend-option sizes={text}: {part!r} is no extent", hint=_HINT)
    return low, high
