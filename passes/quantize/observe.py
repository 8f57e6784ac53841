"""Observers: what calibration keeps of a stream of tensors, in memory that does not grow with it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Observer(ABC):
    """Sees the tensors of one group of values, one sample at a time."""

    @abstractmethod
    def see(self, arrays: list[Array]) -> None:
        """The tensors of one sample: finite float32 arrays of any shapes."""


@dataclass
class MinMax(Observer):
    """The least and the greatest number; with `momentum`, moving averages of those of each sample."""

    momentum: float = 0.0  # 0: over all samples; else average += momentum * (new - average)
    low: float = np.inf
    high: float = -np.inf

    def see(self, arrays: list[Array]) -> None:
        found = [(float(a.min()), float(a.max())) for a in arrays if a.size]
        if not found:
            return
        low, high = min(f[0] for f in found), max(f[1] for f in found)
        if self.momentum and self.low <= self.high:
            self.low += self.momentum * (low - self.low)
            self.high += self.momentum * (high - self.high)
        else:
            self.low, self.high = min(self.low, low), max(self.high, high)


BINS = 4096


@dataclass
class Histogram(Observer):
    """Counts in bins of width 2^k on the grid through 0, k the least for which BINS bins are enough.

    Where a number falls outside, neighbours are merged until it does not: the range doubles. So at least
    BINS / 2 - 1 bins span what was seen, and neither the order of the samples nor a second pass matters.
    """

    exponent: int = 0  # of the bins' width
    first: int = 0  # the first bin is [first, first + 1) * 2^exponent
    counts: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    low: float = np.inf
    high: float = -np.inf
    zeros: int = 0  # exact zeros, which no bin counts: quantization keeps them

    def see(self, arrays: list[Array]) -> None:
        for array in arrays:
            if array.size:
                self._add(np.ascontiguousarray(array, np.float32).reshape(-1))

    def _add(self, x: Array) -> None:
        low, high = float(x.min()), float(x.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        if self.low == self.high == 0:
            self.zeros += x.size
            return
        self._cover(low, high)
        # float32 holds the quotient by a power of two exactly; floor stays below 2^24
        scaled = x * np.float32(2.0**-self.exponent)
        np.floor(scaled, out=scaled)
        index = scaled.astype(np.int32)
        index -= self.first
        self.counts += np.bincount(index, minlength=self.counts.size)
        zeros = x.size - int(np.count_nonzero(x))
        self.counts[-self.first] -= zeros
        self.zeros += zeros

    def _cover(self, low: float, high: float) -> None:
        """Make the bins hold `low`, `high` and 0."""
        low, high = min(low, 0.0), max(high, 0.0)
        if self.counts.size == 0:
            self.exponent = max(int(np.ceil(np.log2((high - low) / BINS))), -126)
            self.first, self.counts = 0, np.zeros(1, np.int64)
        while True:
            width = 2.0**self.exponent
            first = min(self.first, int(np.floor(low / width)))
            last = max(self.first + self.counts.size - 1, int(np.floor(high / width)))
            if last - first < BINS:
                break
            self._merge()
        grown = np.zeros(last - first + 1, np.int64)
        grown[self.first - first : self.first - first + self.counts.size] = self.counts
        self.first, self.counts = first, grown

    def _merge(self) -> None:
        odd = self.first % 2
        padded = np.concatenate([np.zeros(odd, np.int64), self.counts])
        if padded.size % 2:
            padded = np.append(padded, 0)
        self.first = (self.first - odd) // 2
        self.counts = padded.reshape(-1, 2).sum(1)
        self.exponent += 1

    @property
    def centers(self) -> npt.NDArray[np.float64]:
        """The middles of the bins, moved into the range that was seen."""
        middles = (np.arange(self.counts.size) + self.first + 0.5) * 2.0**self.exponent
        return np.clip(middles, self.low, self.high)

    @property
    def total(self) -> int:
        return int(self.counts.sum()) + self.zeros
