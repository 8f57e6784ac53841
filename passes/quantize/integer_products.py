"""Conv, ConvTranspose, Gemm and MatMul on quantized tensors, with bias and residual input."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from effc.core.integers.rounding import multiplier_for
from effc.core.ir import Array, attr, const, is_op, sole_use
from effc.core.quant import quant_params
from effc.passes.quantize.integer_form import (
    EIGHT_BITS,
    Maker,
    Target8,
    Tensor8,
    fits,
    integer_bias,
    put,
    tensor8,
    whole_dims,
)

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_INT8 = (-128, 127)
_WEIGHTS = (  # narrower ones are kept as int8
    *EIGHT_BITS,
    *(ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT2, ir.DataType.UINT2),
)


@dataclass
class Product:
    """An operator whose output is a scaled 32-bit sum, ready to become a node."""

    node: ir.Node
    op: str
    x: Tensor8
    w: ir.Value
    bias: Array | None  # int64 [n]
    scale: Array  # float64 [n] or [1]: of the sum
    attributes: dict[str, Any]

    def make(self, maker: Maker, target: Target8 | None, z: Tensor8 | None = None) -> ir.Node:
        """The integer node: to 8 bits as `target` has it, or to real numbers."""
        # TensorFlow Lite's dense layers round once
        dense = self.op == "MatMul" and self.bias is not None
        rule = "fixed" if dense and maker.rounding == "tflite" else maker.rounding
        attributes = {"x_zero_point": self.x.zero, **self.attributes}
        residual: list[ir.Value] = []
        if target is None:
            m = self.scale.astype(np.float32)
            attributes["to"] = ir.DataType.FLOAT.value
        else:
            real = self.scale / target.scale
            m = multiplier_for(maker.rounding, real)
            if rule != maker.rounding:  # m * 2^(s - 31) is m * 2^-(31 - s)
                m = np.stack([m[0], 31 - m[1]]).astype(np.int32)
            attributes |= target.attributes
            if z is not None:
                residual = [z.value]
                attributes |= {
                    "z_zero_point": z.zero,
                    "z_multiplier": _residual_multiplier(rule, z.scale / target.scale, m),
                }
        bias = None
        if self.bias is not None and self.bias.any():
            bias = maker.constant(self.node, "bias", self.bias.astype(np.int32))
        held = maker.constant(self.node, "multiplier", m)
        return maker.node(
            self.node, self.op, [self.x.value, self.w, bias, held, *residual], attributes, rule
        )


def _residual_multiplier(rule: str, real: float, m: Array) -> float | list[int]:
    if rule == "float32":
        return float(np.float32(real))
    least = int(m[1].min())
    shift = min(21 - int(np.frexp(real)[1]), least)
    return [int(np.rint(real * 2.0**shift)), shift]


def product_of(value: ir.Value | None, maker: Maker) -> Product | None:
    """The product that makes `value`; an Add of a constant behind it is its bias."""
    node = value.producer() if value is not None else None
    if is_op(node, "Add"):
        assert node is not None
        for k in (0, 1):
            a, b = node.inputs[k], node.inputs[1 - k]
            before = a.producer() if a is not None else None
            if a is None or not is_op(before, *PRODUCTS) or sole_use(a) is None:
                continue
            assert before is not None
            # a bias has one number a channel, in the channels' place
            shape, channel = _bias_shape(b), (-1 if is_op(before, "Gemm", "MatMul") else 1)
            rank = len(a.shape) if a.shape is not None else 0
            if shape is None or not rank or len(shape) > rank:
                continue
            whole = (1,) * (rank - len(shape)) + shape
            if any(d != 1 for i, d in enumerate(whole) if i != channel % rank):
                continue
            if len(before.inputs) > 2 and before.inputs[2] is not None:
                continue
            return _product(before, maker, b)
        return None
    if not is_op(node, *PRODUCTS):
        return None
    assert node is not None
    return _product(node, maker, node.inputs[2] if len(node.inputs) > 2 else None)


def _bias_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    node = value.producer() if value is not None else None
    if is_op(node, "DequantizeLinear"):
        assert node is not None
        value = node.inputs[0]
    array = const(value)
    return None if array is None else array.shape


def _product(node: ir.Node, maker: Maker, bias: ir.Value | None) -> Product | None:
    x = tensor8(node.inputs[0])
    if x is None:
        return None
    if is_op(node, "Conv", "ConvTranspose"):
        return _convolution(node, maker, x, bias)
    return _matrix(node, maker, x, bias)


def _weights(node: ir.Node) -> tuple[Array, Array, Array, int, ir.Value] | None:
    """The constant weights of `node`: stored, scale (float64), zero point, axis of the scale, value."""
    source = node.inputs[1].producer() if node.inputs[1] is not None else None
    params = quant_params(source)
    if source is None or params is None or params.dtype not in _WEIGHTS or params.block:
        return None
    value = source.inputs[0]
    stored = const(value)
    scale = params.scale.astype(np.float64)
    if value is None or stored is None or not (np.isfinite(scale).all() and (scale > 0).all()):
        return None
    return stored, scale, params.zero_point.astype(np.int64), params.axis % stored.ndim, value


def _signed(
    maker: Maker, node: ir.Node, stored: Array, zero: Array, axis: int, value: ir.Value
) -> tuple[Array, ir.Value] | None:
    """Weights as int8 without a zero point, if they can be that."""
    if stored.dtype == np.int8 and not zero.any():
        return stored, value
    shape = [1] * stored.ndim
    if zero.ndim:
        shape[axis] = zero.size
    centred = stored.astype(np.int64) - zero.reshape(shape if zero.ndim else ())
    if centred.size and (centred.min() < _INT8[0] or centred.max() > _INT8[1]):
        return None
    made = centred.astype(np.int8)
    key = ("signed", value, zero.tobytes(), axis)
    return made, maker.constant(node, "weights", made, key)


def _convolution(node: ir.Node, maker: Maker, x: Tensor8, bias: ir.Value | None) -> Product | None:
    found = _weights(node)
    if found is None or attr(node, "auto_pad", "NOTSET") not in ("NOTSET", ""):
        return None
    stored, scale, zero, axis, value = found
    turned = is_op(node, "ConvTranspose")
    group = attr(node, "group", 1)
    if scale.ndim and axis != (1 if turned else 0):
        return None
    if turned and (attr(node, "output_shape") is not None):
        return None
    signed = _signed(maker, node, stored, zero, axis, value)
    if signed is None:
        return None
    w, value = signed
    count = w.shape[1] * group if turned else w.shape[0]
    if scale.ndim and turned:
        scale = np.tile(scale, group)
    scale = x.scale * np.broadcast_to(scale, (count,))
    units = _bias_units(bias, scale, maker.rounding)
    if units is None:
        return None
    if turned:
        per = w.reshape(group, -1, *w.shape[1:]).astype(np.int64)
        flat = per.swapaxes(1, 2).reshape(count, -1)
    else:
        flat = w.reshape(count, -1).astype(np.int64)
    if not _safe(x, flat, units):
        return None
    names = ("strides", "pads", "dilations", "group", "output_padding")
    kept = {n: attr(node, n) for n in names}
    return Product(node, node.op_type, x, value, units, scale, kept)


def _bias_units(bias: ir.Value | None, scale: Array, rule: str) -> Array | None:
    if bias is None:
        return np.zeros(scale.size, np.int64)
    return integer_bias(bias, scale, rule)


def _safe(x: Tensor8, flat: Array, bias: Array) -> bool:
    """Whether bias + sum x * w fits in 32 bits for every x of its type; flat is [n, everything else]."""
    low, high = x.range
    plus, minus = np.maximum(flat, 0).sum(1), np.minimum(flat, 0).sum(1)
    return fits(bias + low * plus + high * minus, bias + high * plus + low * minus)


def _matrix(node: ir.Node, maker: Maker, x: Tensor8, bias: ir.Value | None) -> Product | None:
    gemm = is_op(node, "Gemm")
    factor = 1.0
    if gemm:
        factor = float(attr(node, "alpha", 1.0))
        if (
            attr(node, "transA", 0)
            or factor != 1.0
            or (bias is not None and attr(node, "beta", 1.0) != 1.0)
        ):
            return None
    turned = bool(gemm and attr(node, "transB", 0))
    found = _weights(node)
    if found is not None and found[0].ndim == 2:
        return _dense(node, maker, x, bias, found, turned)
    w = tensor8(node.inputs[1])
    if w is None or turned or bias is not None:
        return None
    depth = whole_dims(w.value, -2)
    rank = len(x.value.shape) if x.value.shape is not None else 0
    if rank < 2 or depth is None or len(depth) < 2:
        return None
    if depth[0] * max(map(abs, x.range)) * max(map(abs, w.range)) >= 2**31:
        return None
    scale = np.array([x.scale * w.scale])
    return Product(node, "MatMul", x, w.value, None, scale, {"w_zero_point": w.zero})


def _dense(
    node: ir.Node,
    maker: Maker,
    x: Tensor8,
    bias: ir.Value | None,
    found: tuple[Array, Array, Array, int, ir.Value],
    turned: bool,
) -> Product | None:
    stored, scale, zero, axis, value = found
    if scale.ndim and axis != (0 if turned else 1):
        return None
    rank = len(x.value.shape) if x.value.shape is not None else 2
    if rank < 2:
        return None
    signed = _signed(maker, node, stored, zero, axis, value)
    w_zero = 0
    if signed is None:
        if zero.any() and zero.ndim:
            return None
        signed, w_zero = (stored, value), int(zero)
    w, value = signed
    if turned:
        w = np.ascontiguousarray(w.T)
        value = maker.constant(node, "weights", w, ("turned", value))
    scale = x.scale * np.broadcast_to(scale, (w.shape[1],))
    units = _bias_units(bias, scale, maker.rounding)
    if units is None or not _safe(x, w.T.astype(np.int64) - w_zero, units):
        return None
    return Product(node, "MatMul", x, value, units, scale, {"w_zero_point": w_zero})


@dataclass
class RealProducts:
    """op(DQ(x), DQ(w)) whose output stays real -> an integer operator to FLOAT."""

    maker: Maker
    roots: ClassVar[frozenset[str]] = frozenset(PRODUCTS)

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        value = node.outputs[0]
        if value.dtype not in (None, ir.DataType.FLOAT):
            return None
        reader = sole_use(value)
        if reader is not None and is_op(reader, "Add"):
            whole = product_of(reader.outputs[0], self.maker)
            if whole is not None and whole.node is node:
                return put(reader, whole.make(self.maker, None))
        found = product_of(value, self.maker)
        return None if found is None else put(node, found.make(self.maker, None))
