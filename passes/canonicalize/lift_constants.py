"""lift-constants: constants become initializers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from effc.core.ir import constant_tensor, graphs, is_op
from effc.core.passinfra import Effect, Pass, PassContext
from effc.core.rewrite import bypass


@dataclass(frozen=True, slots=True)
class LiftConstants(Pass):
    """Constant nodes, and initializers that are also graph inputs, become plain initializers.

        y = Constant<value = c>()                ->   initializer y = c
        graph (x, w = c) with initializer w      ->   graph (x), initializer w = c

    The second is a contract of effc: old exporters (IR version 3) list every weight among the inputs,
    where a caller could override it; effc optimizes the model with the values in the file, so such
    inputs are gone from what it builds. Declines at a Constant that is a graph output (an output
    must be made by a node), and at sparse constants.
    """

    id: ClassVar[str] = "lift-constants"
    effect: ClassVar[Effect] = Effect.EXACT

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        count = 0
        inputs = model.graph.inputs
        for value in [v for v in inputs if v.is_initializer()]:
            inputs.remove(value)
            count += 1
        if count:  # older versions demand that initializers are inputs
            model.ir_version = max(model.ir_version, 4)
        for graph in list(graphs(model)):
            for node in [n for n in graph if is_op(n, "Constant")]:
                count += _lift(graph, node)
        return count


def _lift(graph: ir.Graph, node: ir.Node) -> int:
    output = node.outputs[0]
    tensor = constant_tensor(node)
    if tensor is None or output.is_graph_output():
        return 0
    name = output.name or ""
    while not name or name in graph.initializers:
        name += "_const"
    if output.name == name:
        output.name = f"{name}_made"
    value = ir.Value(
        name=name,
        const_value=tensor,
        shape=ir.Shape(tensor.shape.numpy()),
        type=ir.TensorType(tensor.dtype),
    )
    graph.register_initializer(value)
    bypass(node, value)
    return 1
