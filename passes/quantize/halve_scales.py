"""halve-scales: quantizers between half-precision operators, without casts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from effc.core.ir import Array, add_const, attr, const, graphs, is_op
from effc.core.passinfra import Effect, Pass, PassContext

_FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
_LEAST = float(np.finfo(np.float16).smallest_normal)
_FLOOR = 2.0**-16  # a subnormal number that float16 still holds to 0.2 %


@dataclass(frozen=True, slots=True)
class HalveScales(Pass):
    """Cast16(DQ(q, s)) -> DQ(q, f16(s));  Q(Cast32(x), s) -> Q(x, f16(s)).

    The type of a scale is that of the real numbers, so a float16 scale saves the Casts that
    `convert-float16` leaves around quantizers, and with them the fusion that compilers look for between
    DequantizeLinear and what reads it (TensorRT with strong typing). All scales first become numbers
    that float16 holds, so that Q and DQ of a tensor stay equal whichever type they have.

    Weights of channels with smaller scales than float16's normal numbers are quantized again, with a scale
    of at least 2^-16. Declines other scales that are not normal numbers in float16.

    Source: ONNX QuantizeLinear, version 21.
    """

    id: ClassVar[str] = "halve-scales"
    effect: ClassVar[Effect] = Effect.ROUNDED

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        count = 0
        for graph in graphs(model):
            pairs = [n for n in graph if is_op(n, "QuantizeLinear", "DequantizeLinear")]
            if not any(_short_side(n) for n in pairs):
                continue
            scales: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
            for node in pairs:
                _raise_small(graph, node)
                count += _halve(graph, node, scales)
        return count


def _short_side(node: ir.Node) -> bool:
    """Whether the reals of a Q or DQ come from, or go to, float16."""
    if node.op_type == "QuantizeLinear":
        return _widened(node.inputs[0]) is not None
    uses = list(node.outputs[0].uses())
    return (
        bool(uses) and all(_narrows(u.node) for u in uses) and not node.outputs[0].is_graph_output()
    )


def _widened(value: ir.Value | None) -> ir.Value | None:
    """What a Cast from float16 to float32 reads."""
    made = value.producer() if value is not None else None
    if made is None or not is_op(made, "Cast") or value is None or value.dtype != _FLOAT:
        return None
    inner: ir.Value | None = made.inputs[0]
    return inner if inner is not None and inner.dtype == _HALF else None


def _narrows(node: ir.Node) -> bool:
    return is_op(node, "Cast") and node.outputs[0].dtype == _HALF


def _halve(
    graph: ir.Graph, node: ir.Node, scales: dict[ir.Value, tuple[ir.Value, ir.Value]]
) -> int:
    value = node.inputs[1]
    scale = const(value)
    if value is None or scale is None or scale.dtype != np.float32:
        return 0
    weight = const(node.inputs[0]) is not None
    half = _representable(scale, _FLOOR if weight else _LEAST)
    if half is None:
        return 0
    if value not in scales:
        scales[value] = (
            add_const(graph, f"{value.name}/rounded", half.astype(np.float32)),
            add_const(graph, f"{value.name}/half", half),
        )
    rounded, short = scales[value]
    if not _short_side(node):
        node.replace_input_with(1, rounded)
        return 1
    node.replace_input_with(1, short)
    if node.op_type == "QuantizeLinear":
        node.replace_input_with(0, _widened(node.inputs[0]))
        return 1
    output = node.outputs[0]
    output.type = ir.TensorType(_HALF)
    for use in list(output.uses()):
        cast = use.node.outputs[0]
        if cast.is_graph_output():
            use.node.op_type = "Identity"
            use.node.attributes.clear()
        else:
            ir.convenience.replace_all_uses_with(cast, output)
    return 1


def _raise_small(graph: ir.Graph, node: ir.Node) -> None:
    """Give the weight that a DQ holds scales that float16 has, its integers rounded again."""
    if not is_op(node, "DequantizeLinear") or not _short_side(node) or attr(node, "block_size", 0):
        return
    stored, scale = const(node.inputs[0]), const(node.inputs[1])
    zero = const(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    if stored is None or scale is None or scale.dtype != np.float32 or stored.dtype != np.int8:
        return
    small = scale < _LEAST
    if not small.any() or not (scale > 0).all() or (zero is not None and zero.any()):
        return
    held = np.maximum(scale, _FLOOR).astype(np.float16).astype(np.float32)
    raised = np.where(small, held, scale)
    factor = (scale / raised).reshape(
        [-1 if i == attr(node, "axis", 1) % stored.ndim else 1 for i in range(stored.ndim)]
        if scale.ndim
        else []
    )
    integers = np.clip(np.rint(stored * factor), -127, 127).astype(np.int8)
    arrays: tuple[Array, Array] = (integers, raised.astype(np.float32))
    for index, array in enumerate(arrays):
        old = node.inputs[index]
        name = old.name if old is not None else node.name
        node.replace_input_with(index, add_const(graph, f"{name}/raised", array))


def _representable(scale: Array, least: float) -> Array | None:
    """The scale in float16, None where it is under `least` or too large."""
    with np.errstate(over="ignore"):
        half: Array = scale.astype(np.float16)
    fits = np.isfinite(half).all() and (np.abs(half.astype(np.float32)) >= least).all()
    return half if fits else None
