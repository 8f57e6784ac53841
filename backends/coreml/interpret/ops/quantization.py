"""quantize and dequantize, and the constants that are stored compressed (constexpr_*)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from effc.backends.coreml.interpret.blob import unpack
from effc.backends.coreml.interpret.ops.registry import Undefined, op
from effc.backends.coreml.interpret.values import NUMPY_TYPES
from effc.core.measure import Array


def _along(values: Array, axis: Any, rank: int) -> Array:
    """A scalar as it is, a vector over `axis`."""
    if values.ndim == 0:
        return values
    if axis is None:
        raise Undefined("a vector of scales needs an axis")
    shape = [1] * rank
    shape[int(axis)] = -1
    return values.reshape(shape)


@op("quantize", since=17)
def quantize(
    input: Array,
    scale: Array,
    output_dtype: str,
    zero_point: Array | None = None,
    axis: Array | None = None,
) -> Array:
    """clip(round(x / scale) + zero_point), rounding halves to even."""
    bounds = np.iinfo(output_dtype)
    q = np.rint(input / _along(scale, axis, input.ndim))
    if zero_point is not None:
        q = q + _along(zero_point.astype(np.float32), axis, input.ndim)
    return np.clip(q, bounds.min, bounds.max).astype(output_dtype)


@op("dequantize", since=17)
def dequantize(
    input: Array, scale: Array, zero_point: Array | None = None, axis: Array | None = None
) -> Array:
    centred = input.astype(np.float32)
    if zero_point is not None:
        centred = centred - _along(zero_point.astype(np.float32), axis, input.ndim)
    return centred * _along(scale, axis, input.ndim)


@op("constexpr_affine_dequantize", since=16)
def constexpr_affine_dequantize(
    quantized_data: Array, zero_point: Array, scale: Array, axis: Array
) -> Array:
    return dequantize(quantized_data, scale, zero_point, axis)


@op("constexpr_cast", since=16)
def constexpr_cast(source_val: Array, output_dtype: str) -> Array:
    return source_val.astype(NUMPY_TYPES[output_dtype])


@op("constexpr_lut_to_dense", since=16)
def lut_to_dense_packed(indices: Array, lut: Array, shape: Array) -> Array:
    """Indices packed from the least significant bit upwards, log2(len(lut)) bits each."""
    sizes = [int(s) for s in shape]
    bits = int(math.log2(lut.size))
    if 1 << bits != lut.size:
        raise Undefined(f"a table of {lut.size} values")
    count = math.prod(sizes)
    return lut[unpack(indices.tobytes(), bits, "uint8", count)].reshape(sizes)


def _table_of(
    positions: tuple[Array, ...], shape: tuple[int, ...], lut: Array
) -> tuple[Array, ...]:
    """Which table of `lut` [*groups, palettes, vector] holds for each position in `shape`."""
    groups = lut.shape[:-2]
    if len(groups) != len(shape) or any(n % g for n, g in zip(shape, groups, strict=True)):
        raise Undefined(f"tables {groups} for indices {shape}")
    return tuple(p // (n // g) for p, n, g in zip(positions, shape, groups, strict=True))


@op("constexpr_lut_to_dense", since=18)
def lut_to_dense(indices: Array, lut: Array, vector_axis: Array | None = None) -> Array:
    """lut [*groups, palettes, vector]; the vectors are laid out along `vector_axis`."""
    tables = _table_of(tuple(np.indices(indices.shape, sparse=True)), indices.shape, lut)
    entries = lut[(*tables, indices)]  # [*indices.shape, vector]
    return _spread(entries, vector_axis)


def _spread(entries: Array, vector_axis: Array | None) -> Array:
    """[*shape, vector] -> the vector's elements one after the other along `vector_axis`."""
    if entries.shape[-1] == 1:
        return entries[..., 0]
    if vector_axis is None:
        raise Undefined("vectors without a vector_axis")
    at = int(vector_axis) % (entries.ndim - 1)
    moved = np.moveaxis(entries, -1, at + 1)
    return moved.reshape(*moved.shape[:at], -1, *moved.shape[at + 2 :])


@op("constexpr_sparse_to_dense", since=16)
def sparse_to_dense_packed(nonzero_data: Array, mask: Array, shape: Array) -> Array:
    """One bit of `mask` for every element, from the least significant upwards."""
    sizes = [int(s) for s in shape]
    bits = unpack(mask.tobytes(), 1, "uint8", math.prod(sizes)).reshape(sizes)
    return sparse_to_dense(nonzero_data, bits)


@op("constexpr_sparse_to_dense", since=18)
def sparse_to_dense(nonzero_data: Array, mask: Array) -> Array:
    if int(mask.sum()) != nonzero_data.size:
        raise Undefined(f"{nonzero_data.size} values for {int(mask.sum())} places")
    dense = np.zeros(mask.shape, nonzero_data.dtype)
    dense[mask.astype(bool)] = nonzero_data
    return dense


@op("constexpr_blockwise_shift_scale", since=18)
def blockwise_shift_scale(data: Array, scale: Array, offset: Array | None = None) -> Array:
    """scale * (data - offset), where scale and offset hold one value for each block of `data`."""
    centred = data.astype(np.float32)
    if offset is not None:
        centred = centred - _blocks(offset.astype(np.float32), data.shape)
    return centred * _blocks(scale, data.shape)


def _blocks(values: Array, shape: tuple[int, ...]) -> Array:
    if values.ndim != len(shape) or any(n % s for n, s in zip(shape, values.shape, strict=True)):
        raise Undefined(f"scales {values.shape} for data {shape}")
    for axis, size in enumerate(shape):
        values = np.repeat(values, size // values.shape[axis], axis=axis)
    return values


@op("constexpr_lut_to_sparse", since=18)
def lut_to_sparse(
    indices_mask: Array,
    indices_nonzero_data: Array,
    lut: Array,
    vector_axis: Array | None = None,
) -> tuple[Array, Array]:
    """The mask grown along `vector_axis`, and the values in the order of the grown tensor."""
    places = np.nonzero(indices_mask)
    entries = lut[(*_table_of(places, indices_mask.shape, lut), indices_nonzero_data)]
    vector = lut.shape[-1]
    grid = np.zeros((*indices_mask.shape, vector), lut.dtype)
    grid[places] = entries
    kept = np.repeat(indices_mask[..., None], vector, axis=-1)
    mask = _spread(kept, vector_axis)
    return mask, _spread(grid, vector_axis)[mask.astype(bool)]


@op("constexpr_sparse_blockwise_shift_scale", since=18)
def sparse_blockwise_shift_scale(
    data_mask: Array, nonzero_data: Array, scale: Array, offset: Array | None = None
) -> tuple[Array, Array]:
    keep = data_mask.astype(bool)
    values = nonzero_data.astype(np.float32)
    if offset is not None:
        values = values - _blocks(offset.astype(np.float32), keep.shape)[keep]
    return data_mask, values * _blocks(scale, keep.shape)[keep]
