"""An explicit choice of how a kernel is blocked, in place of the rule that needs no tuning."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Self

_LARGEST = 1 << 20


@dataclass(frozen=True, slots=True)
class Blocking:
    """How a convolution, depthwise convolution or matrix product is cut; None leaves it to the rule.

    Its text form names what is given: `tile=6,chunks=2,group=4,stationary=1,unroll=8`; "" is the rule.
    """

    tile: int | None = None  # output pixels of a register tile, at most
    chunks: int | None = None  # parts into which the blocks of output channels are cut
    group: int | None = None  # tiles of a task; rows of a task of a depthwise convolution
    stationary: bool | None = None  # whether tasks with the same weights are neighbours
    unroll: int | None = None  # input channels in the innermost loop's body, at most

    def __str__(self) -> str:
        values = ((f.name, getattr(self, f.name)) for f in fields(self))
        return ",".join(f"{name}={int(value)}" for name, value in values if value is not None)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The choice that `text` names; ValueError where it names none."""
        given: dict[str, int | bool] = {}
        for item in filter(None, text.split(",")):
            match = re.fullmatch(r"([a-z]+)=([0-9]{1,7})", item)
            if match is None or match[1] in given or match[1] not in cls.__slots__:
                raise ValueError(f"{text!r} is no blocking: {item!r}")
            number = int(match[2])
            switch = match[1] == "stationary"
            if not (0 <= number <= 1 if switch else 1 <= number <= _LARGEST):
                raise ValueError(f"{text!r} is no blocking: {item!r} is out of range")
            given[match[1]] = bool(number) if switch else number
        return cls(**given)  # type: ignore[arg-type]  # `stationary` alone is a bool
