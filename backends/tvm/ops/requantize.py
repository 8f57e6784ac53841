"""The arithmetic of domain `effc.integer`, bit for bit as core/integers specifies it.

TVM lets LLVM contract a product and a sum to one fused multiply-add. `apart` keeps a product what it is,
a float32: every product of the specification that is added to something goes through it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import tirx

from effc.backends.tvm.ops import math as m
from effc.backends.tvm.ops.contract import OpNode, Refused

Expr = Any
BYTES = ("int8", "uint8")


def apart(x: Expr) -> Expr:
    """`x`, rounded to its type before anything else is done with it."""
    return tirx.call_llvm_pure_intrin(m.dtype_of(x), "llvm.arithmetic.fence", x)


def real(q: Expr, zero_point: int, multiplier: Expr | float) -> Expr:
    """f32((q - zero_point) * multiplier); `q` of any integer type that int32 holds."""
    wide = m.cast(q, "int32")
    if zero_point:
        wide = wide - tirx.const(zero_point, "int32")
    return scaled(wide, multiplier)


def scaled(acc: Expr, multiplier: Expr | float) -> Expr:
    """f32(f32(acc) * multiplier) of an int32."""
    if isinstance(multiplier, float):
        multiplier = tirx.const(multiplier, "float32")
    return apart(m.cast(acc, "float32") * multiplier)


@dataclass(frozen=True, slots=True)
class Target:
    """What a result becomes: attributes `to`, `y_zero_point`, `low`, `high`."""

    dtype: str
    zero_point: int = 0
    low: int = 0
    high: int = 0

    def store(self, y: Expr) -> Expr:
        """clamp(rne(y) + zero_point, low, high) of a float32, or `y` itself.

        Clamped first: whole limits commute with rounding, and then any conversion to int32 is exact.
        """
        if self.dtype == "float32":
            return y
        low, high = (
            tirx.const(float(v - self.zero_point), "float32") for v in (self.low, self.high)
        )
        q = m.cast(m.nearbyint(tirx.max(tirx.min(y, high), low)), "int32")
        if self.zero_point:
            q = q + tirx.const(self.zero_point, "int32")
        return m.cast(q, self.dtype)


def target(node: OpNode) -> Target:
    """The target of a node of the domain; refuses other rounding rules and other types."""
    rounding = node.attr("rounding", "float32")
    if rounding != "float32":
        raise Refused(
            f"it is rounded by the rule {rounding!r}, and this backend's kernels by 'float32'",
            "make the integer operators with integerize{rounding=float32}",
        )
    dtype = node.outputs[0].dtype
    to = node.attr("to")
    if to is not None and ir.DataType(to).numpy().name != dtype:
        raise Refused(f"its output is {dtype} and its attribute `to` says {ir.DataType(to).name}")
    if dtype == "float32":
        return Target(dtype)
    byte(dtype)
    info = np.iinfo(dtype)
    low, high = node.attr("low", info.min), node.attr("high", info.max)
    return Target(dtype, node.attr("y_zero_point", 0), low, high)


def byte(dtype: str) -> str:
    """`dtype`, which must be int8 or uint8."""
    if dtype not in BYTES:
        raise Refused(
            f"an integer operator of {dtype}",
            "quantize to int8 or uint8, or leave the operator between DequantizeLinear and QuantizeLinear",
        )
    return dtype


def number(node: OpNode, name: str) -> float:
    """A required attribute of the type float."""
    value = node.attr(name)
    if value is None:
        raise Refused(f"its attribute {name!r} is missing", "make the node with integerize")
    return float(np.float32(value))
