"""Pooling of int8 and uint8: maxima of ONNX, averages of domain `effc.integer`; exact sums in int32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx

from effc.backends.tvm.isa import Isa
from effc.backends.tvm.kernels.epilogue import IDENTITY, Epilogue
from effc.backends.tvm.kernels.pool import GlobalPooling, Pooling, PoolSpec, pool_axes
from effc.backends.tvm.layout import TensorType
from effc.backends.tvm.ops.requantize import Target, scaled
from effc.backends.tvm.program import Kernel

Expr = Any


@dataclass(frozen=True, slots=True)
class Average:
    """clamp(rne(sum (x - zero_point) * f32(multiplier / f32(count))) + ...) as `to` says."""

    zero_point: int
    multiplier: float
    to: Target

    def of(self, total: Expr, count: Expr | int) -> Expr:
        """The stored average; `total` is the int32 sum of x - zero_point."""
        multiplier = tirx.const(self.multiplier, "float32")
        if isinstance(count, int):
            factor: Expr = float(np.float32(self.multiplier) / np.float32(count))
        else:
            factor = multiplier / tirx.Cast("float32", count)
        return self.to.store(scaled(total, factor))


def pool_bytes(
    spec: PoolSpec, name: str, isa: Isa, average: Average | None, epilogue: Epilogue = IDENTITY
) -> Kernel:
    """Params: output, input, the epilogue's operands. Without `average` a maximum."""
    axes = pool_axes(spec)
    kind = _BytePooling if average is None else _Averaging
    emit = kind(isa, spec.input, spec.output, axes, False, name, epilogue, spec)
    emit.average = average
    emit.number = spec.input.dtype if average is None else "int32"
    return emit.kernel()


@dataclass
class _BytePooling(Pooling):
    """A maximum of bytes, which needs no wider type."""

    average: Average | None = None

    def start(self) -> Expr:
        """What a maximum starts with."""
        return tirx.const(int(np.iinfo(self.number).min), self.number)


@dataclass
class _Averaging(_BytePooling):
    """A sum in int32, requantized."""

    def start(self) -> Expr:
        """What a sum starts with."""
        return tirx.const(0, "int32")

    def fetch(self, value: Expr) -> Expr:
        """x - zero_point: what lies outside counts as nothing."""
        assert self.average
        wide = tirx.Cast("int32", value)
        return wide - self.average.zero_point if self.average.zero_point else wide

    def final(self, total: Expr, places: Sequence[Expr]) -> Expr:
        """The average."""
        assert self.average
        return self.average.of(total, self.count(places))


def global_pool_bytes(
    input: TensorType, output: TensorType, average: Average, name: str, isa: Isa
) -> Kernel:
    """Averages over all positions: [N, C, *spatial] -> [N, C, 1...], both of one layout."""
    emit = _GlobalAveraging(isa, input, output, True, name, IDENTITY)
    emit.requantization = average
    return emit.kernel()


class _GlobalAveraging(GlobalPooling):
    number = "int32"
    clean = False
    requantization: Average

    def fetch(self, value: Expr) -> Expr:
        """The stored value; zero points are subtracted from the sum."""
        return tirx.Cast("int32", value)

    @property
    def start(self) -> Expr:
        """No sum yet."""
        return tirx.const(0, "int32")

    def mean(self, total: Expr) -> Expr:
        """The average."""
        zero = self.requantization.zero_point * math.prod(self.input.shape[2:])
        return self.requantization.of(total - zero if zero else total, self.area)
