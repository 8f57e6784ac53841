"""QuantizeLinear and DequantizeLinear: MIL's quantize and dequantize; of constants, see compressed.py."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from effc.backends.coreml.convert.call import FLOATS, NUMPY, Call, Refusal, Var, kind_of
from effc.backends.coreml.convert.compressed import dequantized
from effc.backends.coreml.convert.table import op
from effc.core.ir import const, is_op
from effc.core.quant import QuantParams, integer_range, quant_params

BYTES = (ir.DataType.INT8, ir.DataType.UINT8)


@op("QuantizeLinear")
def quantize(c: Call) -> Var:
    params = _params(c)
    if c.dtype() not in FLOATS:
        raise Refusal("it quantizes integers", "cast to float before it")
    x = _before_cast(c, params)
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
    if _only_cast(c) and _fits_half(params):
        kind = "fp16"  # the scales in half precision instead of a cast, which would be no constant
    if stored is not None:
        return dequantized(c, stored, params, kind)
    x = c.raw()
    if params.dtype in BYTES and kind_of(x) == _name(params.dtype) and len(x.shape) >= 1:
        return c.mb.dequantize(input=x, **_native(c, params, x, kind))
    scale, zero = _spread(c, params, len(c.shape()))
    real = c.mb.cast(x=c.plain(x), dtype=kind)
    if zero.any():
        real = c.mb.sub(x=real, y=zero.astype(NUMPY[kind]))
    return c.mb.mul(x=real, y=scale.astype(NUMPY[kind]))


def _only_cast(c: Call) -> bool:
    """Whether every reader casts the result to float16."""
    out = c.node.outputs[0]
    readers = [use.node for use in out.uses()]
    half = ir.DataType.FLOAT16
    return (
        bool(readers)
        and not out.is_graph_output()
        and all(is_op(n, "Cast") and n.outputs[0].dtype == half for n in readers)
    )


def _before_cast(c: Call, params: QuantParams) -> Var:
    """What is quantized; half precision that is only cast to float32 for it, as it is."""
    cast = c.value(0).producer()
    if cast is not None and is_op(cast, "Cast") and _fits_half(params):
        source = cast.inputs[0]
        if source is not None and source.dtype == ir.DataType.FLOAT16:
            found = c.scope.find(source)
            if found is not None and params.dtype in BYTES and c.ios >= 17:
                return found
    return c.x()


def _fits_half(params: QuantParams) -> bool:
    """Whether every scale is a normal number of float16."""
    span = np.finfo(np.float16)
    return bool(np.all((params.scale >= span.tiny) & (params.scale <= span.max)))


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
