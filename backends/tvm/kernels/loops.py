"""Small pieces that several kernels share: task decoding, bounds of taps, vector statements."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tvm import tirx

from effc.backends.tvm import tir
from effc.backends.tvm.kernels.axes import Axis
from effc.backends.tvm.layout import TensorType

Expr = Any
Stmt = Any


def int32(value: int) -> Expr:
    """An index constant."""
    return tirx.const(value, "int32")


def bound(stmts: list[Stmt], name: str, expr: Expr) -> Expr:
    """A variable for `expr`; its definition is appended to `stmts`."""
    var = tirx.Var(name, "int32")
    stmts.append(tirx.Bind(var, expr + int32(0)))
    return var


def decode(task: Expr, order: Sequence[tuple[str, int]], stmts: list[Stmt]) -> Mapping[str, Expr]:
    """The coordinates of a row-major task number; axes of extent one are constants."""
    value: dict[str, Expr] = {}
    rest = task
    left = [key for key, extent in order if extent > 1]
    for key, extent in reversed(order):
        if extent == 1:
            value[key] = int32(0)
            continue
        value[key] = bound(stmts, key, rest % extent if key != left[0] else rest)
        rest = rest // extent
    return value


def tap_bounds(axis: Axis, base: Expr) -> tuple[Any, Any]:
    """First valid tap and number of valid taps where tap 0 reads input position `base`."""
    if axis.always_inside:
        return 0, len(axis.taps)
    lo = tirx.max((axis.step - 1 - base) // axis.step, 0)
    hi = tirx.min((axis.size - base + axis.step - 1) // axis.step, len(axis.taps))
    return lo, tirx.max(hi - lo, 0)


def spatial_strides(tensor: TensorType) -> list[int]:
    """Elements between neighbours on each spatial axis of [N, C, *spatial]."""
    spatial = tensor.shape[2:]
    inner = tensor.layout.block or 1
    return [math.prod(spatial[i + 1 :]) * inner for i in range(len(spatial))]


def vector(lanes: int, body: Callable[[Expr], Stmt]) -> Stmt:
    """`body` for all lanes at once."""
    if lanes == 1:
        return body(int32(0))
    return tir.loop("l", lanes, body, tir.VECTORIZED)


def load(buffer: Any, at: Expr) -> Expr:
    """An element."""
    return tirx.BufferLoad(buffer, [at])


def unflatten(flat: Expr, shape: Sequence[int]) -> list[Expr]:
    """Row-major coordinates of `flat`."""
    index: list[Expr] = []
    for i, extent in enumerate(shape):
        stride = math.prod(shape[i + 1 :])
        at = flat // stride if stride > 1 else flat
        index.append(at % extent if i else at)
    return index
