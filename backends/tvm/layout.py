"""How a logical tensor lies in memory: plain row-major, or channels in blocks (NCHWc).

Every kernel is written over *logical* indices; the layout is the bijection to memory. A blocked
tensor of logical shape [N, C, *spatial] is stored as [N, ceil(C/b), *spatial, b]; lanes past C hold
zeros, always: a kernel that writes a blocked tensor writes zeros there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Layout:
    """`block` is the number of channels in a block; 0 means plain row-major."""

    block: int = 0

    def physical_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        if not self.block:
            return tuple(shape)
        n, c, *spatial = shape
        return (n, -(-c // self.block), *spatial, self.block)

    def flat_index(self, shape: Sequence[int], index: Sequence[Any]) -> Any:
        """The element offset of logical `index`; works on integers and on TIR expressions."""
        if not index:
            return 0
        if self.block:
            n, c, *spatial = index
            b = self.block
            index = (n, c // b, *spatial, c % b)
        flat: Any = index[0]
        for extent, i in zip(self.physical_shape(shape)[1:], index[1:], strict=True):
            flat = flat * extent + i
        return flat

    def pack(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Logical array -> physical array."""
        if not self.block:
            return np.ascontiguousarray(array)
        n, c, *spatial = array.shape
        b = self.block
        padded = np.pad(array, [(0, 0), (0, -c % b)] + [(0, 0)] * len(spatial))
        blocks = padded.reshape(n, -1, b, *spatial)
        return np.ascontiguousarray(np.moveaxis(blocks, 2, -1))

    def unpack(self, array: npt.NDArray[Any], shape: Sequence[int]) -> npt.NDArray[Any]:
        """Physical array -> logical array of `shape`."""
        if not self.block:
            return array.reshape(tuple(shape))
        blocks = np.moveaxis(array.reshape(self.physical_shape(shape)), -1, 2)
        merged = blocks.reshape(shape[0], -1, *shape[2:])
        return np.ascontiguousarray(merged[:, : shape[1]])


PLAIN = Layout()


@dataclass(frozen=True, slots=True)
class TensorType:
    """A tensor as a kernel sees it: logical shape, numpy dtype name, layout."""

    shape: tuple[int, ...]
    dtype: str
    layout: Layout = PLAIN

    @property
    def elements(self) -> int:
        """Stored elements, padding lanes included."""
        return math.prod(self.layout.physical_shape(self.shape))

    @property
    def bytes(self) -> int:
        return self.elements * np.dtype("uint8" if self.dtype == "bool" else self.dtype).itemsize
