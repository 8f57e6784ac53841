"""Two negations in a row."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from effc.core.ir import graphs, replace, sole_producer
from effc.core.passinfra import Effect, Pass, PassContext
from effc.core.rewrite import apply


@dataclass(frozen=True, slots=True)
class RemoveDoubleNeg(Pass):
    """Neg(Neg(x)) -> x; declines where something else reads Neg(x)."""

    id: ClassVar[str] = "remove-double-neg"
    effect: ClassVar[Effect] = Effect.EXACT

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        return sum(apply(graph, [DoubleNeg()]) for graph in graphs(model))


class DoubleNeg:
    """The rule of the pass."""

    roots: ClassVar[frozenset[str]] = frozenset({"Neg"})

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        inner = sole_producer(node.inputs[0], "Neg")
        if inner is None or inner.inputs[0] is None or node.graph is None:
            return None
        source = inner.inputs[0]
        if node.outputs[0].is_graph_output() and (
            source.is_graph_input() or source.is_graph_output()
        ):
            return None  # an output can't be an input too, nor carry two names
        replace(node.outputs[0], source)
        node.graph.remove([node, inner], safe=True)
        return [use.node for use in source.uses()]
