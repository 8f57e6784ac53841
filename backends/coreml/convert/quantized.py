"""QuantizeLinear, DequantizeLinear, and what is a compressed constant in MIL.

A DequantizeLinear of a constant stays compressed in the package (constexpr_affine_dequantize; from iOS 18 on
constexpr_blockwise_shift_scale for 4 bits and blocks); a Gather from a constant palette by constant
indices becomes constexpr_lut_to_dense. On activations they are MIL's quantize and dequantize.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from effc.backends.coreml.convert.call import FLOATS, NUMPY, Call, Refusal, Var, kind_of
from effc.backends.coreml.convert.table import op
from effc.core.ir import const
from effc.core.quant import QuantParams, integer_range, quant_params

BYTES = (ir.DataType.INT8, ir.DataType.UINT8)
SMALL = 1024  # elements: a smaller constant is not worth a compressed form


@op("QuantizeLinear")
def quantize(c: Call) -> Var:
    params = _params(c)
    if c.dtype() not in FLOATS:
        raise Refusal("it quantizes integers", "cast to float before it")
    x = c.x()
    if params.dtype in BYTES and c.ios >= 17 and len(x.shape) >= 1:
        return c.mb.quantize(input=x, **_native(c, params, x), output_dtype=_name(params.dtype))
    low, high = integer_range(params.dtype)
    scale, zero = _spread(c, params, len(c.shape()))
    y = c.mb.round(x=c.mb.real_div(x=x, y=c.like(1, x) * scale.astype(c.numpy())))
    y = c.mb.add(x=y, y=zero.astype(c.numpy()))
    y = c.mb.minimum(x=c.mb.maximum(x=y, y=c.like(low, y)), y=c.like(high, y))
    return c.mb.cast(x=y, dtype="int32")


@op("DequantizeLinear")
def dequantize(c: Call) -> Var:
    params = _params(c)
    stored = c.const(0)
    kind = FLOATS.get(c.out_dtype())
    if kind is None:
        raise Refusal(f"it makes {c.out_dtype().name.lower()}", "use float32 or float16")
    if stored is not None:
        return compressed(c, stored, params, kind)
    x = c.raw()
    if params.dtype in BYTES and kind_of(x) == _name(params.dtype) and len(x.shape) >= 1:
        return c.mb.dequantize(input=x, **_native(c, params, x, kind))
    scale, zero = _spread(c, params, len(c.shape()))
    real = c.mb.cast(x=c.plain(x), dtype=kind)
    if zero.any():
        real = c.mb.sub(x=real, y=zero.astype(NUMPY[kind]))
    return c.mb.mul(x=real, y=scale.astype(NUMPY[kind]))


def _params(c: Call) -> QuantParams:
    params = quant_params(c.node)
    if params is None:
        scale = c.value(1)
        if scale.dtype == ir.DataType.FLOAT16 and const(scale) is not None:
            raise Refusal("its scale is float16", "store scales as float32")
        raise Refusal(
            "its scale or zero point is computed at run time, or its type is no integer",
            "use static quantization to integers",
        )
    return params


def _name(dtype: ir.DataType) -> str:
    return dtype.name.lower()


def _native(c: Call, params: QuantParams, x: Var, kind: str = "") -> dict[str, object]:
    """The parameters of MIL's quantize and dequantize: of the tensor, or of one axis."""
    if params.block:
        raise Refusal("it quantizes activations in blocks", "quantize them by tensor or by channel")
    number = NUMPY[kind or kind_of(x)]
    given: dict[str, object] = {"scale": params.scale.astype(number)}
    if params.zero_point.astype(np.int64).any():
        given["zero_point"] = params.zero_point
    if params.scale.ndim == 1:
        given["axis"] = np.int32(c.axis(params.axis))
    return given


def _spread(c: Call, params: QuantParams, rank: int) -> tuple[np.ndarray, np.ndarray]:
    scale, zero = params.scale, params.zero_point.astype(np.float32)
    if params.block:
        axis = c.axis(params.axis)
        extent = c.shape()[axis]
        return tuple(  # type: ignore[return-value]
            np.repeat(a, params.block, axis).take(range(extent), axis) for a in (scale, zero)
        )
    if scale.ndim == 1:
        shape = [1] * rank
        shape[c.axis(params.axis)] = scale.size
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    return scale, zero


def compressed(c: Call, stored: np.ndarray, params: QuantParams, kind: str) -> Var:
    """A constant that stays in integers, or plain where that saves nothing or MIL has no such form."""
    number = NUMPY[kind]
    low, high = integer_range(params.dtype)
    small = stored.size < SMALL or stored.ndim == 0 or stored.ndim > 5
    if small or high - low > 255:
        return c.constant(params.dequantize(stored), kind)
    if c.ios >= 18:
        c.scope.count(f"{_name(params.dtype)} weights")
        return _blockwise(c, stored, params, number)
    if params.block:
        return _blocks_before_18(c, stored, params, kind)
    if high - low < 255 and params.per_tensor:
        c.scope.count(f"{_name(params.dtype)} weights")
        codes = np.arange(low, high + 1)
        table = (codes - int(params.zero_point)) * params.scale
        return _table(c, stored.astype(np.int64) - low, table.astype(number))
    signed = np.int8 if low < 0 else np.uint8
    axis = np.int32(0 if params.per_tensor else c.axis(params.axis, stored.ndim))
    c.scope.count(f"{np.dtype(signed).name} weights")
    return c.mb.constexpr_affine_dequantize(
        quantized_data=stored.astype(signed), zero_point=params.zero_point.astype(signed),
        scale=params.scale.astype(number), axis=axis,
    )  # fmt: skip


def _blocks_before_18(c: Call, stored: np.ndarray, params: QuantParams, kind: str) -> Var:
    raise Refusal(
        f"its weights share scales in blocks of {params.block}, which needs iOS 18 or macOS 15",
        "choose a newer target, or scales by channel",
    )


def _blockwise(c: Call, stored: np.ndarray, params: QuantParams, number: type) -> Var:
    """iOS 18: integers of 4 or 8 bits, a scale for each block of each axis."""
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
    bits = {4: "int4", 8: "int8"}.get(_bits(params.dtype))
    data, offset = stored, zero
    if bits is None:  # 2 bits are stored as 4
        wide = ml_dtypes.int4 if integer_range(params.dtype)[0] < 0 else ml_dtypes.uint4
        data, offset = stored.astype(np.int8).astype(wide), zero.astype(np.int8).astype(wide)
    given = {"data": _mil_integers(data), "scale": scale.astype(number)}
    if zero.astype(np.int64).any():
        given["offset"] = _mil_integers(offset)
    return c.mb.constexpr_blockwise_shift_scale(**given)


def _bits(dtype: ir.DataType) -> int:
    low, high = integer_range(dtype)
    return int(high - low + 1).bit_length() - 1


def _mil_integers(array: np.ndarray) -> np.ndarray:
    """coremltools marks integers of less than 8 bits by a numpy type of its own."""
    from coremltools.converters.mil.mil import types

    name = array.dtype.name
    if name in ("int8", "uint8"):
        return array
    return array.astype(np.int8).astype(types.nptype_from_builtin(types.string_to_builtin(name)))


# -- palettes ------------------------------------------------------------------------------------


def palette(c: Call) -> Var | None:
    """Gather(palette [K], indices), both constant: a palettized weight; None where it is none."""
    lut, indices = c.const(0), c.const(1)
    if lut is None or indices is None or lut.ndim != 1 or c.attr("axis", 0) not in (0, -1):
        return None
    if (
        lut.dtype not in (np.float32, np.float16)
        or indices.size < SMALL
        or not 1 <= indices.ndim <= 5
    ):
        return None
    if lut.size > 256:
        return None
    c.scope.count("palettized weights")
    return _table(c, indices.astype(np.int64), lut.astype(c.numpy()))


def _table(c: Call, indices: np.ndarray, lut: np.ndarray) -> Var:
    """One table for the tensor; its size is filled up to one that MIL packs (1, 2, 4, 6 or 8 bits)."""
    widths = (1, 2, 3, 4, 6, 8) if c.ios >= 18 else (1, 2, 4, 6, 8)
    bits = next(b for b in widths if 1 << b >= lut.size)
    full = np.zeros(1 << bits, lut.dtype)
    full[: lut.size] = lut
    if c.ios >= 18:
        from coremltools.converters.mil.mil import types

        kind = types.nptype_from_builtin(types.string_to_builtin(f"uint{bits}"))
        shape = (1,) * indices.ndim + (1 << bits, 1)
        return c.mb.constexpr_lut_to_dense(
            indices=indices.astype(np.uint8).astype(kind), lut=full.reshape(shape)
        )
    return c.mb.constexpr_lut_to_dense(
        indices=pack(indices.reshape(-1), bits), lut=full,
        shape=np.array(indices.shape, np.uint32),
    )  # fmt: skip


def pack(values: np.ndarray, bits: int) -> np.ndarray:
    """Numbers of `bits` bits, lowest bit first, in bytes."""
    spread = (values.astype(np.uint8)[:, None] >> np.arange(bits, dtype=np.uint8)) & 1
    return np.packbits(spread.reshape(-1), bitorder="little")


@op("DynamicQuantizeLinear")
def dynamic_quantize(c: Call) -> tuple[Var, ...]:
    """uint8 by the range of each inference, which includes 0; of three outputs."""
    x = c.x()
    axes = list(range(c.rank()))
    zero = c.like(0, x)
    high = c.mb.maximum(x=_scalar(c, c.mb.reduce_max, x, axes), y=zero)
    low = c.mb.minimum(x=_scalar(c, c.mb.reduce_min, x, axes), y=zero)
    scale = c.mb.real_div(x=c.mb.sub(x=high, y=low), y=c.like(255, x))
    shift = c.mb.round(x=c.mb.sub(x=zero, y=c.mb.real_div(x=low, y=scale)))
    point = c.mb.minimum(x=c.mb.maximum(x=shift, y=zero), y=c.like(255, x))
    y = c.mb.add(x=c.mb.round(x=c.mb.real_div(x=x, y=scale)), y=point)
    y = c.mb.minimum(x=c.mb.maximum(x=y, y=zero), y=c.like(255, x))
    return c.mb.cast(x=y, dtype="int32"), scale, c.mb.cast(x=point, dtype="int32")


def _scalar(c: Call, function: object, x: Var, axes: list[int]) -> Var:
    if not axes:
        return x
    return c.reshaped(function(x=x, axes=axes, keep_dims=True), ())  # type: ignore[operator]
