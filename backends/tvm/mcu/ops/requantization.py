"""Biases, multipliers and bounds of sums, as the kernels hold them."""

from __future__ import annotations

import re
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
    reach: Array  # int64 [OC]: no sum's absolute value is larger

    @classmethod
    def of(cls, node: ir.Node, taps: Array, dtype: str, *, fold: bool = True) -> Channels:
        """Of a product with weights int8 [OC, ...]; Refusal where a sum might exceed 32 bits.

        With `fold`, the kernel multiplies x as it is stored, and the zero point goes into the bias.
        """
        count = taps.shape[0]
        bias, m = const(node.inputs[2]), const(node.inputs[3])
        if m is None or (node.inputs[2] is not None and bias is None):
            raise Refusal("its bias or multiplier is computed", "quantize with constants")
        total = np.zeros(count, np.int64) if bias is None else bias.astype(np.int64)
        flat = taps.reshape(count, -1).astype(np.int64)
        real = dtype == "float32"
        zero = attr(node, "x_zero_point")
        least, most = (-128, 127) if fold and not real else (-128 - zero, 127 - zero)
        if fold and not real:
            total = total - zero * flat.sum(1)
        positive, negative = flat.clip(0).sum(1), flat.clip(None, 0).sum(1)
        low = total + least * positive + most * negative
        high = total + most * positive + least * negative
        partial = np.abs(total) + 255 * (positive - negative)
        if partial.max(initial=0) >= 2**31:
            raise Refusal("its sums might exceed 32 bits", "quantize its bias or weights smaller")
        if real:
            return cls(total.astype(np.int32), m.reshape(-1), np.zeros(count, np.int64), partial)
        wanted_fixed(node)
        pair = np.broadcast_to(m.reshape(2, -1).astype(np.int64), (2, count))
        reach = np.maximum(np.abs(low), np.abs(high))
        m_s = [
            narrowed(int(m), int(s), int(a), int(b))
            for m, s, a, b in zip(*pair, low, high, strict=True)
        ]
        fixed = np.array(m_s, np.int64).reshape(count, 2)
        return cls(total.astype(np.int32), fixed[:, 0], fixed[:, 1], reach)

    def constant(self, node: ir.Node, taps: Array) -> tuple[Channels, Array]:
        """The same, channels whose result can't vary written so that one multiplication gives it.

        Their weights become 0. Trained networks have such channels: weights of 0 beside a bias at the end
        of its range.
        """
        bounded = bounds(node)
        ends = []
        flat = taps.reshape(taps.shape[0], -1).astype(np.int64)
        positive, negative = flat.clip(0).sum(1), flat.clip(None, 0).sum(1)
        for acc in (
            self.bias - 128 * positive + 127 * negative,
            self.bias + 127 * positive - 128 * negative,
        ):
            scaled = (acc * self.multiplier + ((1 << self.shift) >> 1)) >> self.shift
            least, most = (bounded[k] - bounded["Y_ZERO"] for k in ("LOW", "HIGH"))
            ends.append(np.clip(scaled, least, most))
        fixed = (ends[0] == ends[1]) & ((self.shift != 32) | (flat != 0).any(1))
        if not fixed.any():
            return self, taps
        still = np.where(fixed, ends[0], 0)
        bias = np.where(fixed, 4 * still, self.bias).astype(np.int32)
        made = Channels(
            bias,
            np.where(fixed, 1 << 30, self.multiplier),
            np.where(fixed, 32, self.shift),
            np.where(fixed, np.abs(4 * still), self.reach),
        )
        taps = taps.copy()
        taps[fixed] = 0
        return made, taps

    @property
    def common(self) -> bool:
        """Whether all channels have one shift."""
        return bool((self.shift == self.shift[:1]).all())

    @property
    def left(self) -> Array | None:
        """Bits by which sums go left, so that one high multiplication is left to do: 32 - shift.

        None where a shift is more than 32, or a sum might then exceed 32 bits.
        """
        bits = 32 - self.shift
        if (bits < 0).any() or (self.reach << np.maximum(bits, 0) >= 2**31).any():
            return None
        return bits

    @property
    def words(self) -> dict[str, str]:
        """Parameter and local variable of the shifts, for the templates."""
        given = not self.common
        return {
            "SHIFT_PARAMETER": "const uint8_t *shift," if given else "",
            "BITS": "const int bits = shift[n];" if given else "",
        }

    def expand(self, text: str) -> str:
        """`text` with REQUANTIZE(acc, m, shift) written out."""

        def put(found: re.Match[str]) -> str:
            acc, m, shift = (g.strip() for g in found.groups())
            bits = self.left
            if bits is None:
                by = str(self.shift[0]) if self.common else shift
                return f"effc_requantize({acc}, {m}, {by}, Y_ZERO, LOW, HIGH)"
            if self.common and not bits[0]:
                return f"effc_clamp(effc_high_product({acc}, {m}, Y_ZERO), LOW, HIGH)"
            by = str(bits[0]) if self.common else shift
            return f"effc_clamp(effc_high_product(effc_left({acc}, {by}), {m}, Y_ZERO), LOW, HIGH)"

        return re.sub(r"\bREQUANTIZE\(([^,]+),([^,]+),([^)]+)\)", put, text)

    def arguments(
        self, low: Lowering, node: ir.Node, *, residual: bool = False
    ) -> tuple[Argument, ...]:
        """Bias, multipliers, and, where channels differ, shifts."""
        found: tuple[Argument, ...] = (
            low.constant(f"{node.name} bias", self.bias),
            low.constant(f"{node.name} m", self.multiplier.astype(np.int32)),
        )
        if self.common:
            return found
        bits = None if residual else self.left
        shift = self.shift if bits is None else bits
        return (*found, low.constant(f"{node.name} shift", shift.astype(np.uint8)))


def narrowed(multiplier: int, shift: int, low_acc: int, high_acc: int) -> tuple[int, int]:
    """A pair with shift 32 that rounds all sums from `low_acc` to `high_acc` to the same 8 bits.

    The pair itself where there is none.

    Shifts above 32 are those of very small multipliers, so that there are few steps to keep in place:
    step k is the least sum whose result is k.
    """
    if shift <= 32 or not multiplier:
        return multiplier, shift if multiplier else 32
    half, low, high = 1 << (shift - 1), 0, (1 << 31) - 1
    first = max((low_acc * multiplier + half) >> shift, -256)
    last = min((high_acc * multiplier + half) >> shift, 256)
    for k in range(first + 1, last + 1):
        step = -((half - (k << shift)) // multiplier)  # ceil((k * 2^shift - half) / multiplier)
        for acc, least in ((step, True), (step - 1, False)):
            # `least`: acc * m' >= edge, otherwise acc * m' < edge
            edge = (k << 32) - (1 << 31)
            if acc > 0:
                if least:
                    low = max(low, -(-edge // acc))
                else:
                    high = min(high, (edge - 1) // acc)
            elif acc < 0:
                if least:
                    high = min(high, edge // acc)
                else:
                    low = max(low, -(-(edge - 1) // acc))
    for acc, k in ((high_acc, last), (low_acc, first)):  # the ends stay in their steps
        start, end = (k << 32) - (1 << 31), (k << 32) + (1 << 31) - 1
        if acc > 0:
            low, high = max(low, -(-start // acc)), min(high, end // acc)
        elif acc < 0:
            low, high = max(low, -(end // -acc)), min(high, start // acc)
    if low > high:
        return multiplier, shift
    near = (multiplier + (1 << (shift - 33))) >> (shift - 32)
    return min(max(near, low), high), 32


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
