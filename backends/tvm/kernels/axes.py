"""Spatial axes of a convolution: which input positions the taps of a kernel read for each output.

A transposed convolution with stride s is s phases, each an ordinary convolution with a subset of the
taps whose outputs lie s apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Axis:
    """Output o of `count` (stored at `first + o * spread`) reads input
    `o * stride + offset + j * step` for each j; `taps[j]` is the tap's index in the kernel.
    """

    size: int  # of the input
    count: int
    stride: int
    offset: int
    step: int
    taps: tuple[int, ...]
    first: int = 0
    spread: int = 1

    def reads(self, output: int, tap: int) -> int:
        """The input position; it may lie outside [0, size)."""
        return output * self.stride + self.offset + tap * self.step

    def inside(self, output: int, tap: int) -> bool:
        """Whether the input position exists."""
        return 0 <= self.reads(output, tap) < self.size

    @property
    def always_inside(self) -> bool:
        """Whether no output reads outside the input."""
        ends = (0, self.count - 1)
        edges = (0, len(self.taps) - 1)
        return all(self.inside(o, j) for o in ends for j in edges) if self.taps else True

    @property
    def is_pointwise(self) -> bool:
        """Whether output o reads input o and nothing else."""
        return (
            len(self.taps) == 1
            and (self.stride, self.offset, self.first, self.spread) == (1, 0, 0, 1)
            and self.count == self.size
        )


@dataclass(frozen=True, slots=True)
class Tile:
    """`tiles` tiles of `width` outputs from `begin` on with the same valid (tap, pixel) pairs."""

    begin: int
    width: int
    tiles: int
    valid: tuple[tuple[bool, ...], ...]  # [tap][pixel]

    @property
    def always_inside(self) -> bool:
        """Whether no pixel of it reads outside the input."""
        return all(all(row) for row in self.valid)


def forward_axis(size: int, kernel: int, stride: int, dilation: int, pads: tuple[int, int]) -> Axis:
    """The axis of a convolution or pooling (floor mode)."""
    count = (size + sum(pads) - dilation * (kernel - 1) - 1) // stride + 1
    return Axis(size, count, stride, -pads[0], dilation, tuple(range(kernel)))


def transposed_axes(
    size: int, count: int, kernel: int, stride: int, dilation: int, pad: int
) -> tuple[Axis, ...]:
    """The phases of a transposed convolution's axis: output y gets x[i] * w[k], y = i s - pad + k d."""
    phases = []
    for phase in range(min(stride, count)):
        taps = [k for k in range(kernel) if (phase + pad - k * dilation) % stride == 0]
        taps.reverse()  # input positions ascend
        reads = [(phase + pad - k * dilation) // stride for k in taps]
        step = reads[1] - reads[0] if len(reads) > 1 else 1
        outputs = -(-(count - phase) // stride)
        offset = reads[0] if reads else 0
        phases.append(Axis(size, outputs, 1, offset, step, tuple(taps), phase, stride))
    return tuple(phases)


def tile_axis(axis: Axis, widest: int) -> tuple[Tile, ...]:
    """The outputs of `axis` in as few, and as even, tiles as `widest` allows; equal neighbours merged."""
    number = -(-axis.count // widest)
    base, wide = divmod(axis.count, number)
    runs: list[Tile] = []
    begin = 0
    for i in range(number):
        width = base + (i < wide)
        valid = tuple(
            tuple(axis.inside(begin + p, j) for p in range(width)) for j in range(len(axis.taps))
        )
        last = runs[-1] if runs else None
        if last and last.width == width and last.valid == valid:
            runs[-1] = Tile(last.begin, width, last.tiles + 1, valid)
        else:
            runs.append(Tile(begin, width, 1, valid))
        begin += width
    return tuple(runs)


def merge(axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
    """Pointwise axes as one; others as they are."""
    if axes and all(a.is_pointwise for a in axes):
        size = math.prod(a.size for a in axes)
        return (Axis(size, size, 1, 0, 1, (0,)),)
    return axes
