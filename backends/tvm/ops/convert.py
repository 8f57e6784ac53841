"""Rules that change the element type: Cast, CastLike, QuantizeLinear, DequantizeLinear, BitCast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import tirx

from effc.backends.tvm.ops import math as m
from effc.backends.tvm.ops.broadcast import is_float, widened
from effc.backends.tvm.ops.contract import Lazy, OpNode, Refused, rule
from effc.backends.tvm.ops.math import const, dtype_of
from effc.backends.tvm.ops.requantize import apart
from effc.backends.tvm.tir import let

Expr = Any


def converted(x: Expr, dtype: str) -> Expr:
    """ONNX Cast of one value; floats go to integers by truncation, out of range undefined."""
    source = dtype_of(x)
    if dtype == "bfloat16":  # lives as float32 until it is stored
        dtype = "float32"
    if source == dtype:
        return x
    if dtype == "bool":
        return tirx.NE(x, const(0, x))
    if source == "bool":
        return tirx.Select(x, const(1, dtype), const(0, dtype))
    if {source, dtype} == {"float64", "float16"}:
        return m.cast(m.cast(x, "float32"), dtype)
    if is_float(source) and not is_float(dtype):
        x = widened(x)
        if dtype in ("int8", "uint8", "int16", "uint16"):
            return m.cast(m.cast(x, "int32"), dtype)
        return m.cast(m.cast(x, "int64"), dtype) if dtype == "uint32" else m.cast(x, dtype)
    if source.startswith(("int", "uint")) and dtype == "float16":
        return m.cast(m.cast(x, "float32"), dtype)
    return m.cast(x, dtype)


@rule("Cast")
def _cast(node: OpNode, inputs: Sequence[Lazy | None]) -> Lazy:
    x, dtype = inputs[0], node.outputs[0].dtype
    assert x is not None
    return lambda index: converted(x(index), dtype)


@rule("CastLike", static=(1,), by_shape=True)
def _cast_like(node: OpNode, inputs: Sequence[Lazy | None]) -> Lazy:
    return _cast(node, inputs)  # type: ignore[return-value]


@rule("BitCast")
def _bit_cast(node: OpNode, inputs: Sequence[Lazy | None]) -> Lazy:
    x, source, dtype = inputs[0], node.input(0).dtype, node.outputs[0].dtype
    assert x is not None
    if np.dtype(source).itemsize != np.dtype(dtype).itemsize or "bool" in (source, dtype):
        raise Refused(f"BitCast from {source} to {dtype}", "use types of the same width")
    return lambda index: x(index) if source == dtype else m.bits(x(index), dtype)


def _parameter(node: OpNode, inputs: Sequence[Lazy | None], i: int) -> Lazy | None:
    """Scale or zero point at a logical index: one number, one along `axis`, or one a block."""
    value = inputs[i] if i < len(inputs) else None
    if value is None:
        return None
    shape, rank = node.input(i).shape, len(node.input(0).shape)
    axis = node.attr("axis", 1) % max(rank, 1)
    block = node.attr("block_size", 0)

    def read(index: tuple[Expr, ...]) -> Expr:
        if len(shape) == rank and rank and block:
            return value(tuple(i // block if a == axis else i for a, i in enumerate(index)))
        if len(shape) == 1 and shape[0] > 1:
            return value((index[axis],))
        return value((0,) * len(shape))

    return read


_RANGES = {"uint8": (0, 255), "int8": (-128, 127), "uint16": (0, 65535), "int16": (-32768, 32767)}


@rule("QuantizeLinear", cost=8)
def _quantize(node: OpNode, inputs: Sequence[Lazy | None]) -> Lazy:
    x, scale, zero = inputs[0], _parameter(node, inputs, 1), _parameter(node, inputs, 2)
    dtype = node.outputs[0].dtype
    assert x is not None and scale is not None
    if dtype not in _RANGES:
        raise Refused(f"QuantizeLinear to {dtype}", "quantize to int8, uint8, int16 or uint16")
    low, high = _RANGES[dtype]

    def read(index: tuple[Expr, ...]) -> Expr:
        v = m.cast(x(index), "float32")
        y = m.nearbyint(v / m.cast(scale(index), "float32"))
        if zero is not None:
            y = y + m.cast(zero(index), "float32")
        y = let(y, lambda y: tirx.Select(y > const(low, y), y, const(low, y)))  # nan: low
        return m.cast(m.cast(m.minimum(y, high), "int32"), dtype)

    return read


@rule("DequantizeLinear", cost=4)
def _dequantize(node: OpNode, inputs: Sequence[Lazy | None]) -> Lazy:
    x, scale, zero = inputs[0], _parameter(node, inputs, 1), _parameter(node, inputs, 2)
    assert x is not None and scale is not None

    def read(index: tuple[Expr, ...]) -> Expr:
        v = m.cast(x(index), "int32")
        if zero is not None:
            v = v - m.cast(zero(index), "int32")
        y = apart(m.cast(v, "float32") * m.cast(scale(index), "float32"))
        return converted(y, node.outputs[0].dtype)

    return read
