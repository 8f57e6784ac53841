"""QuantizeLinear and DequantizeLinear as fake quantization, with straight-through gradients.

Between the two the integers are held as floats of the same value, so that gradients pass: rounding has
the derivative 1 (Bengio et al. 2013, "Estimating or propagating gradients through stochastic neurons"),
clamping that of its inside. The scale's gradient is then that of learned step sizes (Esser et al. 2020, LSQ).
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from effc.core.ir import attr
from effc.core.quant import integer_range
from effc.core.torch_module.op import Function, Op, axis_of


def round_through(x: Tensor) -> Tensor:
    """Rounding to the nearest integer, halves to even; the gradient passes as it is."""
    rounded: Tensor = _RoundThrough.apply(x)  # type: ignore[no-untyped-call]
    return rounded


class _RoundThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def spread(parameter: Tensor, like: Tensor, axis: int, block: int) -> Tensor:
    """A scale or zero point, shaped to broadcast against `like`."""
    if parameter.numel() == 1:
        return parameter.reshape(())
    axis = axis_of(axis, like.ndim)
    if block:
        return parameter.repeat_interleave(block, axis).narrow(axis, 0, like.shape[axis])
    shape = [1] * like.ndim
    shape[axis] = -1
    return parameter.reshape(shape)


def _quantize(op: Op, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    if not op.run.quantized:
        return x
    axis, block = op.get("axis", 1), op.get("block_size", 0)
    low, high = integer_range(stored_type(op.node))
    q = round_through(x / spread(scale, x, axis, block))
    if zero is not None:
        q = q + spread(zero.to(q.dtype), x, axis, block)
    return q.clamp(low, high)


def stored_type(node: ir.Node) -> ir.DataType:
    """The integer type that a QuantizeLinear makes."""
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if zero is not None and zero.dtype not in (None, ir.DataType.UNDEFINED):
        return ir.DataType(zero.dtype)
    return ir.DataType(attr(node, "output_dtype", 0) or int(ir.DataType.UINT8))


def _dequantize(op: Op, q: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    if not op.run.quantized and q.is_floating_point():
        return q
    axis, block = op.get("axis", 1), op.get("block_size", 0)
    real = q if q.is_floating_point() else q.to(torch.int32)
    if zero is not None:
        real = real - spread(zero.to(real.dtype), q, axis, block)
    return real.to(scale.dtype) * spread(scale, q, axis, block)


def refusal(node: ir.Node) -> str:
    """Why a Q or DQ can't be computed here; empty where it can."""
    values = (node.inputs[0], *node.inputs[2:3], *node.outputs)
    kinds = [v.dtype.name for v in values if v is not None and v.dtype is not None]
    narrow = [k for k in kinds if k.startswith(("FLOAT8", "FLOAT4"))]
    return f"it quantizes to {narrow[0]}, not to integers" if narrow else ""


TABLE: dict[str, Function] = {"QuantizeLinear": _quantize, "DequantizeLinear": _dequantize}
