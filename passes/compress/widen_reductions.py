"""widen-reductions: exponentials, powers and normalizations of half-precision networks in float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from effc.core.ir import add_const, const, graphs, is_op
from effc.core.passinfra import Effect, Pass, PassContext

# sums of squares, exponentials and logarithms, which overflow or round away in 16 bits
WIDE = frozenset({
    "LayerNormalization", "RMSNormalization", "InstanceNormalization", "GroupNormalization",
    "LpNormalization", "MeanVarianceNormalization", "Softmax", "LogSoftmax", "Pow", "Exp", "Log", "ReduceL2",
    "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp",
})  # fmt: skip
_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass(frozen=True, slots=True)
class WidenReductions(Pass):
    """f16(x) -> Cast16(f32(Cast32(x))) for LayerNormalization, Softmax, Pow and their like.

    For compilers that compute an operator in the type that the graph writes, such as TensorRT with strong
    typing: there half precision LayerNormalization and Pow overflow (65,504), and Softmax loses what is
    small. Constants are widened in place of a Cast, and a Cast to float32 behind the operator disappears.
    """

    id: ClassVar[str] = "widen-reductions"
    effect: ClassVar[Effect] = Effect.ROUNDED

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        count = 0
        for graph in graphs(model):
            for node in list(graph):
                first = node.inputs[0] if node.inputs else None
                if is_op(node, *WIDE) and first is not None and first.dtype in _HALVES:
                    _widen(graph, node)
                    count += 1
        return count


def _widen(graph: ir.Graph, node: ir.Node) -> None:
    for index, value in enumerate(node.inputs):
        if value is None or value.dtype not in _HALVES:
            continue
        array = const(value)
        made = value.producer()
        if array is not None:
            holder = value.graph if isinstance(value.graph, ir.Graph) else graph
            wide = add_const(holder, f"{value.name}/wide", array.astype(np.float32))
        elif made is not None and (before := _shortened(made)) is not None:
            wide = before
        else:
            wide = _cast(graph, node, value, _FLOAT, f"{node.name}/wide{index}")
        node.replace_input_with(index, wide)
    for output in node.outputs:
        if output.dtype not in _HALVES:
            continue
        short = output.dtype
        output.type = ir.TensorType(_FLOAT)
        users = list(output.uses())
        needs = output.is_graph_output() or not all(_is_cast_to_float(u.node) for u in users)
        if needs:
            _narrow(graph, node, output, short)
        for use in users:
            if _is_cast_to_float(use.node) and not use.node.outputs[0].is_graph_output():
                ir.convenience.replace_all_uses_with(use.node.outputs[0], output)


_FLOAT = ir.DataType.FLOAT


def _shortened(node: ir.Node) -> ir.Value | None:
    """What a Cast from float32 reads."""
    value = node.inputs[0] if is_op(node, "Cast") else None
    return value if _type(value) == _FLOAT else None


def _type(value: ir.Value | None) -> ir.DataType | None:
    return value.dtype if value is not None else None


def _is_cast_to_float(node: ir.Node) -> bool:
    return is_op(node, "Cast") and _type(node.outputs[0]) == _FLOAT


def _narrow(graph: ir.Graph, node: ir.Node, output: ir.Value, short: ir.DataType) -> None:
    """Let those who read `output` in 16 bits read a Cast; a graph output keeps its name and type."""
    users = [u for u in output.uses() if not _is_cast_to_float(u.node)]
    name = output.name
    cast = ir.node("Cast", [output], {"to": short}, name=f"{node.name}/short")
    graph.insert_after(node, [cast])
    result = cast.outputs[0]
    result.shape, result.type, result.name = output.shape, ir.TensorType(short), f"{name}/short"
    for use in users:
        use.node.replace_input_with(use.idx, result)
    if output.is_graph_output():
        for index, value in enumerate(graph.outputs):
            if value is output:
                graph.outputs[index] = result
        output.name, result.name = f"{name}/wide", name


def _cast(
    graph: ir.Graph, before: ir.Node, value: ir.Value, to: ir.DataType, name: str
) -> ir.Value:
    node = ir.node("Cast", [value], {"to": to}, name=name)
    graph.insert_before(before, [node])
    out: ir.Value = node.outputs[0]
    out.name, out.shape, out.type = name, value.shape, ir.TensorType(to)
    return out
