"""compute-bfloat16: what convert-float16 stored in bfloat16 is also computed in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import ml_dtypes
import onnx_ir as ir

from effc.core.ir import add_const, const, is_op
from effc.core.passinfra import Effect, Pass, PassContext

LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# of the same range as float32, so that nothing overflows; what rounds badly in 8 bits is not here
FOLLOW = frozenset(
    """Relu Clip LeakyRelu HardSwish HardSigmoid Sigmoid Tanh MaxPool AveragePool GlobalAveragePool Reshape
    Flatten Transpose Squeeze Unsqueeze Concat Add Mul Slice Split DepthToSpace SpaceToDepth""".split()
)
_FLOAT, _SHORT = ir.DataType.FLOAT, ir.DataType.BFLOAT16


@dataclass(frozen=True, slots=True)
class ComputeBfloat16(Pass):
    """Conv(x, Cast32(w)) -> Cast32(Conv(Cast16(x), w)) for bfloat16 weights w, and Conv's like.

    For compilers with bfloat16 arithmetic (TensorRT from Ampere on). Cheap operators between such ones
    follow, so that casts stand only where a region begins or ends; inputs and outputs of the model keep
    their types. Declines what has no bfloat16 weight: `convert-float16{dtype=bfloat16}` makes them.
    """

    id: ClassVar[str] = "compute-bfloat16"
    effect: ClassVar[Effect] = Effect.ROUNDED

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        graph = model.graph
        region: set[ir.Node] = set()
        for node in graph:
            if is_op(node, *LINEAR) and _stored(node.inputs[1]) is not None:
                region.add(node)
            elif is_op(node, *FOLLOW) and _follows(node, region):
                region.add(node)
        if region:
            _rewrite(graph, region)
        return len(region)


def _stored(value: ir.Value | None) -> ir.Value | None:
    """The bfloat16 constant behind the Cast that makes `value`."""
    made = value.producer() if value is not None else None
    if made is None or not is_op(made, "Cast") or made.inputs[0] is None:
        return None
    inner: ir.Value = made.inputs[0]
    return inner if inner.dtype == _SHORT and const(inner) is not None else None


def _follows(node: ir.Node, region: set[ir.Node]) -> bool:
    """Whether every float tensor that `node` reads is made in the region; constants come along."""
    floats = [v for v in node.inputs if v is not None and v.dtype == _FLOAT]
    made = [v for v in floats if const(v) is None]
    typed = all(v.dtype == _FLOAT for v in node.outputs[:1])
    return typed and bool(made) and all(v.producer() in region for v in made)


def _rewrite(graph: ir.Graph, region: set[ir.Node]) -> None:
    inside = {o for n in region for o in n.outputs if o.dtype == _FLOAT}
    short: dict[ir.Value, ir.Value] = {}
    wide: dict[ir.Value, ir.Value] = {}
    for node in list(graph):
        for index, value in enumerate(node.inputs):
            if value is None:
                continue
            if node in region and value.dtype == _FLOAT and value not in inside:
                if value not in short:
                    short[value] = _shortened(graph, value)
                node.replace_input_with(index, short[value])
            elif node not in region and value in inside:
                if value not in wide:
                    wide[value] = _cast(graph, value, _FLOAT, "wide")
                node.replace_input_with(index, wide[value])
    for value in inside:
        value.type = ir.TensorType(_SHORT)
    for index, output in enumerate(graph.outputs):
        if output in inside:
            name = output.name
            result = wide[output] if output in wide else _cast(graph, output, _FLOAT, "wide")
            output.name, result.name = f"{name}/bfloat16", name
            graph.outputs[index] = result


def _shortened(graph: ir.Graph, value: ir.Value) -> ir.Value:
    stored, array = _stored(value), const(value)
    if stored is not None:
        return stored
    if array is not None:
        return add_const(graph, f"{value.name}/bfloat16", array.astype(ml_dtypes.bfloat16))
    return _cast(graph, value, _SHORT, "bfloat16")


def _cast(graph: ir.Graph, value: ir.Value, to: ir.DataType, suffix: str) -> ir.Value:
    node = ir.node("Cast", [value], {"to": to}, name=f"{value.name}/{suffix}")
    out: ir.Value = node.outputs[0]
    out.name, out.shape, out.type = f"{value.name}/{suffix}", value.shape, ir.TensorType(to)
    made = value.producer()
    if made is not None:
        graph.insert_after(made, [node])
    else:
        graph.insert_before(graph[0], [node])
    return out
