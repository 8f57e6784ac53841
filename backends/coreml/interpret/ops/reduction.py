"""Reductions. Sums of floats are taken in double precision."""

from __future__ import annotations

from typing import Any

import numpy as np

from effc.backends.coreml.interpret.ops.registry import op
from effc.core.measure import Array


def _axes(axes: Any) -> tuple[int, ...] | None:
    return None if axes is None else tuple(int(a) for a in np.asarray(axes).reshape(-1))


def _sum(x: Array, axes: Any, keep_dims: Any) -> Array:
    wide = np.float64 if x.dtype.kind == "f" else x.dtype
    return np.asarray(x.sum(axis=_axes(axes), keepdims=bool(keep_dims), dtype=wide))


@op("reduce_argmax")
def reduce_argmax(
    x: Array,
    axis: Array | int = -1,
    keep_dims: Array | bool = False,
    output_dtype: str = "int32",
) -> Array:
    return np.argmax(x, axis=int(axis), keepdims=bool(keep_dims)).astype(output_dtype)


@op("reduce_argmin")
def reduce_argmin(
    x: Array,
    axis: Array | int = -1,
    keep_dims: Array | bool = False,
    output_dtype: str = "int32",
) -> Array:
    return np.argmin(x, axis=int(axis), keepdims=bool(keep_dims)).astype(output_dtype)


@op("reduce_l1_norm")
def reduce_l1_norm(x: Array, axes: Any = None, keep_dims: Any = False) -> Array:
    return _sum(np.abs(x), axes, keep_dims).astype(x.dtype)


@op("reduce_l2_norm")
def reduce_l2_norm(x: Array, axes: Any = None, keep_dims: Any = False) -> Array:
    return np.sqrt(_sum(np.square(x.astype(np.float64)), axes, keep_dims)).astype(x.dtype)


@op("reduce_log_sum")
def reduce_log_sum(x: Array, axes: Any = None, keep_dims: Any = False) -> Array:
    return np.log(_sum(x, axes, keep_dims)).astype(x.dtype)


@op("reduce_log_sum_exp")
def reduce_log_sum_exp(x: Array, axes: Any = None, keep_dims: Any = False) -> Array:
    over = _axes(axes)
    top = np.asarray(x.max(axis=over, keepdims=True), np.float64)
    top = np.where(np.isfinite(top), top, 0)
    total = np.log(np.exp(x - top).sum(axis=over, keepdims=True)) + top
    if not keep_dims:
        total = np.squeeze(total, axis=over)
    return total.astype(x.dtype)


@op("reduce_max")
def reduce_max(x: Array, axes: Any = None, keep_dims: Any = False) -> Array:
    return np.asarray(x.max(axis=_axes(axes), keepdims=bool(keep_dims)))


@op("reduce_mean")
def reduce_mean(x: Array, axes: Any = None, keep_dims: Any = False) -> Array:
    over = _axes(axes)
    mean = x.mean(axis=over, keepdims=bool(keep_dims), dtype=np.float64)
    return np.asarray(mean).astype(x.dtype)


@op("reduce_min")
def reduce_min(x: Array, axes: Any = None, keep_dims: Any = False) -> Array:
    return np.asarray(x.min(axis=_axes(axes), keepdims=bool(keep_dims)))


@op("reduce_prod")
def reduce_prod(x: Array, axes: Any = None, keep_dims: Any = False) -> Array:
    return np.asarray(x.prod(axis=_axes(axes), keepdims=bool(keep_dims), dtype=x.dtype))


@op("reduce_sum")
def reduce_sum(x: Array, axes: Any = None, keep_dims: Any = False) -> Array:
    return _sum(x, axes, keep_dims).astype(x.dtype)


@op("reduce_sum_square")
def reduce_sum_square(x: Array, axes: Any = None, keep_dims: Any = False) -> Array:
    return _sum(np.square(x), axes, keep_dims).astype(x.dtype)
