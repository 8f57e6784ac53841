"""Constants that stay compressed in the package: MIL's constexpr operators, chosen by what the IR says.

DequantizeLinear of constant integers: constexpr_affine_dequantize (8 bits, by tensor or by channel); from
iOS 18 on constexpr_blockwise_shift_scale (4 or 8 bits, blocks); before that 4 bits by tensor as a table.
Gather from a constant palette by constant indices: constexpr_lut_to_dense. A weight with many zeros:
constexpr_sparse_to_dense, from iOS 18 on also of integers and of palette indices.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from effc.backends.coreml.convert.call import NUMPY, Call, Refusal, Var
from effc.core.ir import Array, const, is_op
from effc.core.quant import QuantParams, integer_range

SMALL = 1024  # elements: a smaller constant is not worth a compressed form
SPARSE = 0.4  # the share of zeros from which on they are left out


def dequantized(c: Call, stored: Array, params: QuantParams, kind: str) -> Var:
    """Integers with scales, as they are; plain where that saves nothing or MIL has no such form."""
    number = NUMPY[kind]
    low, high = integer_range(params.dtype)
    small = stored.size < SMALL or stored.ndim == 0 or stored.ndim > 5
    if small or high - low > 255:
        return c.constant(params.dequantize(stored), kind)
    name = params.dtype.name.lower()
    if c.ios >= 18:
        c.scope.count(f"{name} weights")
        return _blockwise(c, stored, params, number)
    if params.block:
        raise Refusal(
            f"its weights share scales in blocks of {params.block}, which needs iOS 18 or macOS 15",
            "choose a newer target (--backend-option deployment=iOS18), or scales by channel",
        )
    if high - low < 255 and params.per_tensor:
        c.scope.count(f"{name} weights")
        codes = np.arange(low, high + 1)
        table = (codes - int(params.zero_point)) * params.scale
        return _table(c, stored.astype(np.int64) - low, table.astype(number))
    integer = np.int8 if low < 0 else np.uint8
    axis = np.int32(0 if params.per_tensor else c.axis(params.axis, stored.ndim))
    c.scope.count(f"{np.dtype(integer).name} weights")
    return c.mb.constexpr_affine_dequantize(
        quantized_data=stored.astype(integer),
        zero_point=params.zero_point.astype(integer),
        scale=params.scale.astype(number),
        axis=axis,
    )


def _blockwise(c: Call, stored: Array, params: QuantParams, number: type) -> Var:
    """iOS 18: integers of 4 or 8 bits, a scale for each block of each axis; zeros left out if many."""
    rank = stored.ndim
    scale, zero = params.scale, params.zero_point
    if not params.block:
        shape = [1] * rank
        if not params.per_tensor:
            shape[c.axis(params.axis, rank)] = scale.size
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    elif stored.shape[params.axis % rank] % params.block:
        raise Refusal(
            f"its blocks of {params.block} do not divide the axis", "choose another block"
        )
    data, offset = stored, zero
    if integer_range(params.dtype) in ((-2, 1), (0, 3)):  # 2 bits are stored as 4
        wide = ml_dtypes.int4 if integer_range(params.dtype)[0] < 0 else ml_dtypes.uint4
        data, offset = stored.astype(np.int8).astype(wide), zero.astype(np.int8).astype(wide)
    scale = scale.astype(number)
    kept = stored.astype(np.int16) != 0
    if params.symmetric and _pays(kept):
        c.scope.count("sparse weights")
        mask, nonzero = c.mb.constexpr_sparse_blockwise_shift_scale(
            data_mask=_mil(kept, "uint1"),
            nonzero_data=_mil(data[kept], data.dtype.name),
            scale=scale,
        )
        return c.mb.constexpr_sparse_to_dense(nonzero_data=nonzero, mask=mask)
    given = {"data": _mil(data, data.dtype.name), "scale": scale}
    if not params.symmetric:
        given["offset"] = _mil(offset, offset.dtype.name)
    return c.mb.constexpr_blockwise_shift_scale(**given)


def _mil(array: Array, name: str) -> Array:
    """coremltools marks integers of less than 8 bits by numpy types of its own."""
    from coremltools.converters.mil.mil import types

    if name in ("int8", "uint8"):
        return array.astype(name)
    return array.astype(np.int8).astype(types.nptype_from_builtin(types.string_to_builtin(name)))


def palette(c: Call) -> Var | None:
    """Gather(palette, indices), both constant: a palettized weight; None where it is none.

    The indices may be cast, and with groups of channels they have the places of their palettes added:
    Gather(palettes, Add(Cast(indices), starts)), as the pass palettize writes it.
    """
    lut = c.const(0)
    if lut is None or lut.ndim != 1 or c.attr("axis", 0) not in (0, -1):
        return None
    found = _indices(c.value(1))
    if found is None or lut.dtype not in (np.float32, np.float16):
        return None
    indices, starts = found
    if indices.size < SMALL or not 1 <= indices.ndim <= 5 or np.any(indices < 0):
        return None
    if starts is None:
        if lut.size > 256:
            return None
        c.scope.count("palettized weights")
        return _table(c, indices, lut.astype(c.numpy()))
    return _grouped(c, indices, starts, lut.astype(c.numpy()))


def _indices(value: ir.Value) -> tuple[Array, Array | None] | None:
    """Constant indices, and what is added to them by channel."""
    array = const(value)
    if array is not None:
        return array.astype(np.int64), None
    node = value.producer()
    if is_op(node, "Cast") and node is not None and node.inputs[0] is not None:
        array = const(node.inputs[0])
        return None if array is None else (array.astype(np.int64), None)
    if is_op(node, "Add") and node is not None:
        starts = const(node.inputs[1])
        first = None if node.inputs[0] is None else _indices(node.inputs[0])
        if starts is not None and first is not None and first[1] is None:
            return first[0], starts.astype(np.int64)
    return None


def _grouped(c: Call, indices: Array, starts: Array, lut: Array) -> Var:
    """A palette for each group of channels: a table with one row a group, from iOS 18 on."""
    axis = int(np.argmax(starts.shape)) if starts.size > 1 else 0
    flat = starts.reshape(-1)
    groups = len(np.unique(flat))
    k = lut.size // groups
    channels = indices.shape[axis]
    even = channels % groups == 0 and np.array_equal(
        flat, np.arange(channels) // (channels // groups) * k
    )
    if c.ios < 18 or not even or k > 256:
        raise Refusal(
            "its palettes are of groups of channels, which needs iOS 18 or macOS 15, and groups of one size",
            "choose a newer target (--backend-option deployment=iOS18), or palettize{group=0}",
        )
    c.scope.count("palettized weights")
    bits = next(b for b in (1, 2, 3, 4, 6, 8) if 1 << b >= k)
    full = np.zeros((groups, 1 << bits), lut.dtype)
    full[:, :k] = lut.reshape(groups, k)
    shape = [1] * indices.ndim
    shape[axis] = groups
    return c.mb.constexpr_lut_to_dense(
        indices=_mil(indices, f"uint{bits}"), lut=full.reshape(*shape, 1 << bits, 1)
    )


def _table(c: Call, indices: Array, lut: Array) -> Var:
    """One table for the tensor; its size is filled up to one that MIL packs (1, 2, 4, 6 or 8 bits)."""
    widths = (1, 2, 3, 4, 6, 8) if c.ios >= 18 else (1, 2, 4, 6, 8)
    bits = next(b for b in widths if 1 << b >= lut.size)
    full = np.zeros(1 << bits, lut.dtype)
    full[: lut.size] = lut
    if c.ios < 18:
        return c.mb.constexpr_lut_to_dense(
            indices=pack(indices.reshape(-1), bits),
            lut=full,
            shape=np.array(indices.shape, np.uint32),
        )
    table = full.reshape((1,) * indices.ndim + (1 << bits, 1))
    kept = lut[indices] != 0
    if _pays(kept):
        c.scope.count("sparse weights")
        mask, nonzero = c.mb.constexpr_lut_to_sparse(
            indices_mask=_mil(kept, "uint1"),
            indices_nonzero_data=_mil(indices[kept], f"uint{bits}"),
            lut=table,
        )
        return c.mb.constexpr_sparse_to_dense(nonzero_data=nonzero, mask=mask)
    return c.mb.constexpr_lut_to_dense(indices=_mil(indices, f"uint{bits}"), lut=table)


def pack(values: Array, bits: int) -> Array:
    """Numbers of `bits` bits, lowest bit first, in bytes."""
    spread = (values.astype(np.uint8)[:, None] >> np.arange(bits, dtype=np.uint8)) & 1
    return np.packbits(spread.reshape(-1), bitorder="little")


def weight(c: Call, array: Array) -> Array | Var:
    """A float weight for a linear operator: without its zeros where they are many."""
    kept = array != 0
    if array.size < SMALL or array.ndim > 5 or not _pays(kept):
        return array
    c.scope.count("sparse weights")
    if c.ios >= 18:
        return c.mb.constexpr_sparse_to_dense(nonzero_data=array[kept], mask=_mil(kept, "uint1"))
    return c.mb.constexpr_sparse_to_dense(
        nonzero_data=array[kept],
        mask=pack(kept.reshape(-1), 1),
        shape=np.array(array.shape, np.uint32),
    )


def _pays(kept: Array) -> bool:
    """Whether enough is zero; an empty list of values is none that MIL has."""
    count = int(np.count_nonzero(kept))
    return 0 < count <= (1 - SPARSE) * kept.size


def is_compressed(value: Var) -> bool:
    """Whether a MIL value is a constexpr's."""
    return value.op is not None and str(value.op.op_type).startswith("constexpr_")
