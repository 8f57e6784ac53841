"""What the rules of `integerize` share: reading quantized tensors, making integer operators."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from effc.core.integers import DOMAIN
from effc.core.integers.rounding import multiplier_for
from effc.core.ir import Array, add_const, const, is_op, sole_use
from effc.core.quant import QuantParams, integer_range, quant_params
from effc.passes.fuse.expressions import bounds
from effc.passes.fuse.rewriting import drop_value, graph_of, result_name, substitute

EIGHT_BITS = (ir.DataType.UINT8, ir.DataType.INT8)
_TFLITE_BIAS_TOLERANCE = (
    0.02  # what TensorFlow Lite lets pass, and then takes the integers as they are
)
_BIAS_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Tensor8:
    """A value of 8-bit integers and what they mean."""

    value: ir.Value
    params: QuantParams

    @property
    def scale(self) -> float:
        return float(self.params.scale)

    @property
    def zero(self) -> int:
        return int(self.params.zero_point)

    @property
    def range(self) -> tuple[int, int]:
        """The least and the greatest of stored value minus zero point."""
        low, high = integer_range(self.params.dtype)
        return low - self.zero, high - self.zero


def tensor8(value: ir.Value | None) -> Tensor8 | None:
    """The 8-bit tensor with one scale that `value` is the dequantized form of."""
    node = value.producer() if value is not None else None
    if not is_op(node, "DequantizeLinear"):
        return None
    params = quant_params(node)
    assert node is not None
    stored = node.inputs[0]
    if params is None or stored is None or not usable(params):
        return None
    return Tensor8(stored, params)


def usable(params: QuantParams) -> bool:
    """Whether these are 8 bits and one positive scale for the tensor."""
    scale = params.scale
    return params.per_tensor and params.dtype in EIGHT_BITS and 0 < float(scale) < math.inf


@dataclass(frozen=True)
class Target8:
    """A QuantizeLinear to be replaced: its parameters, and the activation before it as bounds."""

    node: ir.Node
    params: QuantParams
    low: int
    high: int

    @property
    def scale(self) -> float:
        return float(self.params.scale)

    @property
    def attributes(self) -> dict[str, int]:
        return {
            "y_zero_point": int(self.params.zero_point),
            "low": self.low,
            "high": self.high,
            "to": self.params.dtype.value,
        }


def target8(node: ir.Node) -> tuple[Target8, ir.Value] | None:
    """A QuantizeLinear with one scale, and the value before it and before the clamps in front of it.

    clamp(v, a, b) quantized is v quantized, clamped to the quantized a and b: rounding is monotonic.
    """
    params = quant_params(node)
    x = node.inputs[0]
    if params is None or x is None or not usable(params):
        return None
    low, high = integer_range(params.dtype)
    while True:
        before = x.producer()
        found = None
        if before is not None and is_op(before, "Relu", "Clip") and sole_use(x) is not None:
            found = bounds(before)
        if found is None:
            return Target8(node, params, low, high), x
        x, least, most = found
        low, high = (
            min(max(end, _quantized(params, least)), _quantized(params, most))
            for end in (low, high)
        )


def _quantized(params: QuantParams, real: float) -> int:
    return int(params.quantize(np.array(real, np.float32)))


@dataclass
class Maker:
    """Makes integer operators with one rounding rule."""

    rounding: str = "float32"
    constants: dict[tuple[Any, ...], ir.Value] = field(default_factory=dict)

    def number(self, real: float, rule: str = "") -> float | list[int]:
        """A multiplier as an attribute."""
        made = multiplier_for(rule or self.rounding, real)
        return float(made) if made.ndim == 0 else [int(v) for v in made]

    def node(
        self,
        like: ir.Node,
        op: str,
        inputs: Sequence[ir.Value | None],
        attributes: dict[str, Any],
        rule: str = "",
    ) -> ir.Node:
        """A node of the integer domain, in no graph yet, named as `like`."""
        rule = rule or self.rounding
        given = {k: v for k, v in attributes.items() if v is not None}
        if rule != "float32" and op != "Lookup":
            given["rounding"] = rule
        return ir.node(op, inputs, given, domain=DOMAIN, name=like.name)

    def constant(
        self, near: ir.Node, name: str, array: Array, key: tuple[Any, ...] = ()
    ) -> ir.Value:
        """An initializer; what has the same `key` is made once."""
        graph = graph_of(near)
        if key and (key := (graph, *key)) in self.constants:
            found = self.constants[key]
            if found.graph is graph:
                return found
        made = add_const(graph, f"{result_name(near)}/{name}", array)
        if key:
            self.constants[key] = made
        return made


def put(target: ir.Node, new: ir.Node) -> Iterable[ir.Node]:
    """`new` in the place of `target`; the nodes to look at again."""
    feeds = [v for v in target.inputs if v is not None]
    substitute(target, new)
    for value in feeds:
        drop_value(value)
    return (new, *new.outputs[0].consumers())


def integer_bias(value: ir.Value | None, scale: Array, rule: str) -> Array | None:
    """The bias `value` in units of `scale` (float64 [n], the input's times the weights'), int64 [n].

    An int32 constant of that scale is taken as it is; other constants are rounded to it, which is off
    by at most half a unit of the accumulator. None where `value` is no constant of one number a channel.
    """
    node = value.producer() if value is not None else None
    stored = const(value)
    if is_op(node, "DequantizeLinear"):
        assert node is not None
        params, stored = quant_params(node), const(node.inputs[0])
        if params is None or stored is None or params.block or not params.symmetric:
            return None
        own = params.scale.astype(np.float64)
        tolerance = _TFLITE_BIAS_TOLERANCE if rule == "tflite" else _BIAS_TOLERANCE
        if own.size not in (1, scale.size):
            return None
        if np.all(np.abs(own - scale) <= tolerance * scale):
            whole = _per_channel(stored, scale.size)
            return None if whole is None else whole.astype(np.int64)
        stored = params.dequantize(stored)
    if stored is None or stored.dtype.kind != "f":
        return None
    real = _per_channel(stored, scale.size)
    if real is None or not np.isfinite(real).all():
        return None
    units = np.rint(real.astype(np.float64) / scale)
    return units.astype(np.int64) if np.abs(units).max(initial=0) < 2.0**40 else None


def _per_channel(array: Array, count: int) -> Array | None:
    """`array` as [count], where all its other axes are 1."""
    if array.size == 1:
        return np.broadcast_to(array.reshape(()), (count,))
    return array.reshape(-1) if array.size == count and count in array.shape else None


def fits(low: Any, high: Any) -> bool:
    """Whether all sums between `low` and `high` are 32-bit integers."""
    return bool(np.min(low) >= -(2**31) and np.max(high) < 2**31)


def dims(value: ir.Value | None) -> list[int | str] | None:
    """The extents of `value`, those that are chosen later by name; None where one has no name."""
    if value is None or value.shape is None:
        return None
    found = [d if isinstance(d, int) else d.value for d in value.shape]
    return [d for d in found if d is not None] if None not in found else None


def same_shape(a: ir.Value | None, b: ir.Value | None) -> bool:
    """Whether both are known to have one shape, whatever the extents that are chosen later."""
    found = dims(a)
    return found is not None and found == dims(b)


def whole_dims(value: ir.Value | None, start: int) -> list[int] | None:
    """The extents of `value` from axis `start` on; None where there is none, or one is not known."""
    if value is None or value.shape is None:
        return None
    found = list(value.shape)[start:]
    return (
        [d for d in found if isinstance(d, int)] if all(isinstance(d, int) for d in found) else None
    )
