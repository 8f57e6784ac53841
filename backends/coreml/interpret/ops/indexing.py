"""Gathering and scattering.

Up to iOS 16 a negative index counts from the end; from iOS 17 on it is out of bounds. Out of bounds has
no documented result, so it is refused, also where `validate_indices` is false.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from effc.backends.coreml.interpret.ops.registry import Undefined, op
from effc.core.measure import Array


def _within(indices: Array, size: int, negative: bool) -> Array:
    indices = indices.astype(np.int64)
    lowest = -size if negative else 0
    wrong = (indices < lowest) | (indices >= size)
    if wrong.any():
        raise Undefined(f"index {indices[wrong].flat[0]} is outside [{lowest}, {size})")
    return np.where(indices < 0, indices + size, indices)


def _gather(x: Array, indices: Array, axis: int, batch_dims: int, negative: bool) -> Array:
    axis %= x.ndim
    batch_dims %= indices.ndim + 1
    indices = _within(indices, x.shape[axis], negative)
    if not batch_dims:
        return np.take(x, indices, axis=axis)
    if batch_dims > axis or x.shape[:batch_dims] != indices.shape[:batch_dims]:
        raise Undefined(f"batch_dims {batch_dims} for axis {axis}, {x.shape} and {indices.shape}")
    rest = indices.shape[batch_dims:]
    lead = x.shape[:batch_dims]
    result = np.empty((*lead, *x.shape[batch_dims:axis], *rest, *x.shape[axis + 1 :]), x.dtype)
    for at in np.ndindex(*lead):
        result[at] = np.take(x[at], indices[at], axis=axis - batch_dims)
    return result


@op("gather")
def gather(x: Array, indices: Array, axis: Array | int = 0, batch_dims: Array | int = 0) -> Array:
    return _gather(x, indices, int(axis), int(batch_dims), negative=True)


@op("gather", since=17)
def gather_positive(
    x: Array,
    indices: Array,
    axis: Array | int = 0,
    batch_dims: Array | int = 0,
    validate_indices: Array | bool = False,
) -> Array:
    return _gather(x, indices, int(axis), int(batch_dims), negative=False)


def _along(x: Array, indices: Array, axis: int, negative: bool) -> Array:
    axis %= x.ndim
    others = [i for i in range(x.ndim) if i != axis]
    if indices.ndim != x.ndim or any(indices.shape[i] > x.shape[i] for i in others):
        raise Undefined(f"indices {indices.shape} for {x.shape}")
    x = x[tuple(slice(None) if i == axis else slice(indices.shape[i]) for i in range(x.ndim))]
    return np.take_along_axis(x, _within(indices, x.shape[axis], negative), axis)


@op("gather_along_axis")
def gather_along_axis(x: Array, indices: Array, axis: Array | int = 0) -> Array:
    return _along(x, indices, int(axis), negative=True)


@op("gather_along_axis", since=17)
def gather_along_axis_positive(
    x: Array, indices: Array, axis: Array | int = 0, validate_indices: Array | bool = False
) -> Array:
    return _along(x, indices, int(axis), negative=False)


def _tuples(indices: Array, shape: tuple[int, ...], negative: bool) -> tuple[Array, ...]:
    """The last axis of `indices` taken apart, one array for each leading dimension of `shape`."""
    depth = indices.shape[-1]
    if depth > len(shape):
        raise Undefined(f"indices of {depth} coordinates for rank {len(shape)}")
    return tuple(_within(indices[..., i], shape[i], negative) for i in range(depth))


def _gather_nd(x: Array, indices: Array, batch_dims: int, negative: bool) -> Array:
    if not batch_dims:
        return x[_tuples(indices, x.shape, negative)]
    lead = x.shape[:batch_dims]
    if indices.shape[:batch_dims] != lead:
        raise Undefined(f"batch_dims {batch_dims} for {x.shape} and {indices.shape}")
    parts = [x[at][_tuples(indices[at], x[at].shape, negative)] for at in np.ndindex(*lead)]
    return np.stack(parts).reshape(*lead, *parts[0].shape)


@op("gather_nd")
def gather_nd(x: Array, indices: Array, batch_dims: Array | int = 0) -> Array:
    return _gather_nd(x, indices, int(batch_dims), negative=True)


@op("gather_nd", since=17)
def gather_nd_positive(
    x: Array, indices: Array, batch_dims: Array | int = 0, validate_indices: Array | bool = False
) -> Array:
    return _gather_nd(x, indices, int(batch_dims), negative=False)


UFUNCS = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
}


def _update(data: Array, where: tuple[Any, ...], updates: Array, mode: str) -> Array:
    """Updates that meet the same element come in their order."""
    result = data.copy()
    if mode == "update":
        result[where] = updates
    elif mode == "div" and data.dtype.kind != "f":
        quotient = data.astype(np.float64)
        np.divide.at(quotient, where, updates)
        result = np.trunc(quotient).astype(data.dtype)
    elif mode in UFUNCS:
        UFUNCS[mode].at(result, where, updates)
    else:
        raise Undefined(f"mode {mode!r}")
    return result


def _scatter(data: Array, indices: Array, updates: Array, axis: int, mode: str, neg: bool) -> Array:
    axis %= data.ndim
    where = (slice(None),) * axis + (_within(indices, data.shape[axis], neg),)
    return _update(data, where, updates, mode)


@op("scatter")
def scatter(
    data: Array, indices: Array, updates: Array, axis: Array | int = 0, mode: str = "add"
) -> Array:
    return _scatter(data, indices, updates, int(axis), mode, True)


@op("scatter", since=17)
def scatter_positive(
    data: Array,
    indices: Array,
    updates: Array,
    axis: Array | int = 0,
    mode: str = "add",
    validate_indices: Array | bool = False,
) -> Array:
    return _scatter(data, indices, updates, int(axis), mode, False)


def _scatter_along(
    data: Array, indices: Array, updates: Array, axis: int, mode: str, negative: bool
) -> Array:
    axis %= data.ndim
    where: list[Array] = list(np.indices(indices.shape, sparse=True))
    where[axis] = _within(indices, data.shape[axis], negative)
    return _update(data, tuple(where), updates, mode)


@op("scatter_along_axis")
def scatter_along_axis(
    data: Array, indices: Array, updates: Array, axis: Array | int = 0, mode: str = "add"
) -> Array:
    return _scatter_along(data, indices, updates, int(axis), mode, True)


@op("scatter_along_axis", since=17)
def scatter_along_axis_positive(
    data: Array,
    indices: Array,
    updates: Array,
    axis: Array | int = 0,
    mode: str = "add",
    validate_indices: Array | bool = False,
) -> Array:
    return _scatter_along(data, indices, updates, int(axis), mode, False)


@op("scatter_nd")
def scatter_nd(data: Array, indices: Array, updates: Array, mode: str = "add") -> Array:
    return _update(data, _tuples(indices, data.shape, True), updates, mode)


@op("scatter_nd", since=17)
def scatter_nd_positive(
    data: Array,
    indices: Array,
    updates: Array,
    mode: str = "add",
    validate_indices: Array | bool = False,
) -> Array:
    return _update(data, _tuples(indices, data.shape, False), updates, mode)
