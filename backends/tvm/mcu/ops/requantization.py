"""Biases, multipliers and bounds of sums, as the kernels hold them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from effc.backends.tvm.mcu.lowering import Lowering, Refusal, static
from effc.backends.tvm.mcu.program import Argument
from effc.core.ir import Array, attr, const


@dataclass(frozen=True, slots=True)
class Channels:
    """`bias` int32 [OC], with the zero point of x folded in; `multiplier` int64 [OC] or float32.

    `shift` is [OC]; for real outputs it is unused.
    """

    bias: Array
    multiplier: Array
    shift: Array

    @classmethod
    def of(cls, node: ir.Node, taps: Array, dtype: str, *, fold: bool = True) -> Channels:
        """Of a product with weights int8 [OC, ...]; Refusal where a sum might exceed 32 bits."""
        count = taps.shape[0]
        bias, m = const(node.inputs[2]), const(node.inputs[3])
        if m is None or (node.inputs[2] is not None and bias is None):
            raise Refusal("its bias or multiplier is computed", "quantize with constants")
        total = np.zeros(count, np.int64) if bias is None else bias.astype(np.int64)
        flat = taps.reshape(count, -1).astype(np.int64)
        real = dtype == "float32"
        if fold and not real:
            total = total - attr(node, "x_zero_point") * flat.sum(1)
        reach = np.abs(total) + 256 * np.abs(flat).sum(1)
        if reach.max(initial=0) >= 2**31:
            raise Refusal("its sums might exceed 32 bits", "quantize its bias or weights smaller")
        if real:
            return cls(total.astype(np.int32), m.reshape(-1), np.zeros(count, np.int64))
        wanted_fixed(node)
        pair = np.broadcast_to(m.reshape(2, -1).astype(np.int64), (2, count))
        return cls(total.astype(np.int32), pair[0], pair[1])

    def numbers(self, node: ir.Node) -> dict[str, int]:
        """SHIFT is 0 where channels have different ones."""
        same = bool((self.shift == self.shift[0]).all()) if self.shift.size else True
        shift = int(self.shift[0]) if same and self.shift.size else 0
        return {"SHIFT": shift, **bounds(node)}

    def arguments(self, low: Lowering, node: ir.Node) -> tuple[Argument, ...]:
        """Bias, multipliers, shifts or NULL."""
        same = self.numbers(node)["SHIFT"]
        return (
            low.constant(f"{node.name} bias", self.bias),
            low.constant(f"{node.name} m", self.multiplier.astype(np.int32)),
            None if same else low.constant(f"{node.name} shift", self.shift.astype(np.uint8)),
        )


def bounds(node: ir.Node) -> dict[str, int]:
    """Y_ZERO, LOW and HIGH."""
    return {
        "Y_ZERO": attr(node, "y_zero_point"),
        "LOW": attr(node, "low"),
        "HIGH": attr(node, "high"),
    }


def wanted_fixed(node: ir.Node) -> None:
    """Refusal of nodes that round by another rule."""
    rule = attr(node, "rounding", "float32")
    if rule != "fixed":
        raise Refusal(f"it rounds by the rule {rule}", "integerize with rounding=fixed")


def wanted_int8(value: ir.Value) -> None:
    """Refusal of other types than int8, which products take."""
    if static(value)[1] != "int8":
        raise Refusal(
            f"{value.name!r} is {static(value)[1]}, and products take int8",
            "quantize activations as int8",
        )
