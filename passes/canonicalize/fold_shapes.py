"""fold-shapes: shape arithmetic becomes constants."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir

from effc.core.elements import Elements, reshape_target
from effc.core.errors import FrontendError
from effc.core.ir import WORKING_OPSET, add_const, attr, graphs, is_op, shape_of
from effc.core.passinfra import Effect, Pass, PassContext
from effc.core.rewrite import bypass, erase
from effc.core.shapes import infer_node, infer_shapes


@dataclass(frozen=True, slots=True)
class FoldShapes(Pass):
    """Computes what follows from the shapes, and infers the shapes that follow from that.

        Shape(x) with x of 1x64x7x7                    ->   [1, 64, 7, 7]
        Gather(Shape(x), 1) with x of Nx64x7x7         ->   64
        Reshape(x, Concat(Gather(Shape(x), 0), [-1]))  ->   Reshape(x, [0, -1])

    In one sweep in topological order, through Shape, Size, Gather, Slice, Concat, Squeeze, Unsqueeze,
    Reshape, Cast, Where and integer arithmetic on tensors of at most 64 elements, also where only some
    of the elements are known. The target of a Reshape becomes a constant if at most one of its
    elements is neither a number nor the extent of the input at the same place; it declines if a zero
    is among the others, and such a Reshape asks that no other extent is zero at run time.
    Declines where a graph output is concerned: a node must make it.
    """

    id: ClassVar[str] = "fold-shapes"
    effect: ClassVar[Effect] = Effect.EXACT

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        if _lacks_types(model):
            infer_shapes(model)
        opset = model.graph.opset_imports.get("", WORKING_OPSET)
        sweep = _Sweep(opset)
        for graph in list(graphs(model)):
            sweep.run(graph)
        return sweep.count


class _Sweep:
    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.known = Elements()
        self.fresh: set[ir.Node] = set()  # nodes of whose inputs something new is known
        self.count = 0

    def run(self, graph: ir.Graph) -> None:
        for node in list(graph):
            if node.graph is None:
                continue
            if any(shape_of(v) is None for v in node.outputs) and (
                node in self.fresh or all(shape_of(v) is not None for v in node.inputs if v)
            ):
                if self._infer(node):
                    self.count += 1
                    self._touch(node.outputs)
            known = self.known.visit(node)
            if known is not None and known.ints is not None and node.op_type != "Constant":
                self._fold(graph, node, known.ints, known.scalar)
            elif is_op(node, "Reshape"):
                self._fix_target(graph, node)

    def _infer(self, node: ir.Node) -> bool:
        try:
            return infer_node(node, self.opset, self.known)
        except FrontendError:
            # kernels are laxer than schemas (a Range of one-element tensors): its shape stays unknown
            return False

    def _touch(self, values: Iterable[ir.Value]) -> None:
        for value in values:
            self.fresh.update(value.consumers())

    def _fold(self, graph: ir.Graph, node: ir.Node, ints: tuple[int, ...], scalar: bool) -> None:
        output = node.outputs[0]
        if output.is_graph_output() or output.dtype not in _DTYPES:
            return
        array = np.array(ints, _DTYPES[output.dtype])
        array = array.reshape(() if scalar else (-1,))
        value = add_const(graph, f"{output.name}_value", array)
        self.fresh.update(output.consumers())
        bypass(node, value)
        self.count += 1

    def _fix_target(self, graph: ir.Graph, node: ir.Node) -> None:
        data, shape = node.inputs[0], node.inputs[1]
        if shape is None or (shape.is_initializer() and not shape.is_graph_input()):
            return
        known = self.known.of(shape)
        if known is None or data is None or data.shape is None or attr(node, "allowzero", 0):
            return
        target = reshape_target(known, data)
        if target is None:
            return
        producer = shape.producer()
        node.replace_input_with(
            1, add_const(graph, f"{node.outputs[0].name}_shape", np.array(target, np.int64))
        )
        if producer is not None:
            erase(producer)
        self.count += 1
        self.fresh.add(node)
        if infer_node(node, self.opset, self.known):
            self._touch(node.outputs)


_DTYPES: dict[ir.DataType | None, np.dtype[Any]] = {
    ir.DataType.INT64: np.dtype(np.int64),
    ir.DataType.INT32: np.dtype(np.int32),
    ir.DataType.BOOL: np.dtype(np.bool_),
}


def _lacks_types(model: ir.Model) -> bool:
    return any(
        v.type is None and v.name != ""
        for g in graphs(model)
        for n in g
        if n.domain == "" and onnx.defs.has(n.op_type, "")
        for v in n.outputs
    )
