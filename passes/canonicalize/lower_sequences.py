"""lower-sequences: sequences of tensors become tensors."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from effc.core.ir import WORKING_OPSET, add_const, attr, const, graphs, is_op, replaceable
from effc.core.passinfra import Effect, Pass, PassContext
from effc.core.rewrite import Rule, apply, bypass, erase
from effc.core.shapes import infer_node


@dataclass(frozen=True, slots=True)
class LowerSequences(Pass):
    """Replaces sequences whose elements are known one by one, as torch's exporter makes them.

        SequenceAt(SplitToSequence(x, [a, b]), 1)        ->   Split(x, [a, b]), its second output
        SequenceAt(SequenceConstruct(a, b, c), -1)       ->   c
        ConcatFromSequence(SequenceConstruct(a, b))      ->   Concat(a, b)

    Behind a sequence no shape is known, so every other pass stops there: the shapes behind it are
    inferred at once. Declines where an index or the split is computed, the extent that is
    split is not static, `keepdims=0` (elements without the axis), new_axis=1, or another operator
    reads the sequence.
    """

    id: ClassVar[str] = "lower-sequences"
    effect: ClassVar[Effect] = Effect.EXACT

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        opset = model.graph.opset_imports.get("", WORKING_OPSET)
        rules: list[Rule] = [_Split(opset), _At(), _Concat()]
        return sum(apply(graph, rules) for graph in list(graphs(model)))


@dataclass(frozen=True)
class _Split:
    roots: ClassVar[frozenset[str]] = frozenset({"SplitToSequence"})
    opset: int

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        x, sequence = node.inputs[0], node.outputs[0]
        if x is None or x.shape is None or self.opset < 13 or sequence.is_graph_output():
            return None
        axis = attr(node, "axis", 0) % len(x.shape)
        extent = x.shape[axis]
        sizes = _sizes(node, extent) if isinstance(extent, int) else None
        if sizes is None:
            return None
        readers: list[tuple[ir.Node, int]] = []
        for reader in sequence.consumers():
            at = const(reader.inputs[1]) if is_op(reader, "SequenceAt") else None
            if at is None or not -len(sizes) <= int(at) < len(sizes):
                return None
            readers.append((reader, int(at) % len(sizes)))
        graph = node.graph
        if not isinstance(graph, ir.Graph) or not readers:
            return None
        held = add_const(graph, f"{sequence.name}.sizes", np.array(sizes, np.int64))
        split = ir.node("Split", [x, held], {"axis": axis}, num_outputs=len(sizes), name=node.name)
        split.metadata_props.update(node.metadata_props)
        graph.insert_before(node, split)
        for i, part in enumerate(split.outputs):
            part.name = f"{sequence.name}.{i}"
            part.type = x.type
            part.shape = ir.Shape([*x.shape[:axis], sizes[i], *x.shape[axis + 1 :]])
        around: list[ir.Node] = [split]
        for reader, i in readers:
            part = split.outputs[i]
            if replaceable(reader.outputs[0], part):
                around += bypass(reader, part)
            else:  # two outputs of the graph are the same part
                copy = ir.node("Identity", [part])
                graph.insert_before(reader, copy)
                around += bypass(reader, copy.outputs[0])
        erase(node)
        return [*around, *_infer_from(split, self.opset)]


def _infer_from(node: ir.Node, opset: int) -> list[ir.Node]:
    """Infer shapes behind `node` as far as something is learnt; the sequences that were met."""
    met: list[ir.Node] = []
    work = deque(n for o in node.outputs for n in o.consumers())
    while work:
        reader = work.popleft()
        if is_op(reader, "SplitToSequence"):
            met.append(reader)
        elif infer_node(reader, opset):
            work.extend(n for o in reader.outputs for n in o.consumers())
    return met


def _sizes(node: ir.Node, extent: int) -> list[int] | None:
    """The extents that SplitToSequence makes of one, or None where that is computed."""
    given = node.inputs[1] if len(node.inputs) > 1 else None
    if given is None:
        return [1] * extent if attr(node, "keepdims", 1) else None
    held = const(given)
    if held is None:
        return None
    if held.ndim == 1:
        return [int(s) for s in held]
    step = int(held)
    return [min(step, extent - i) for i in range(0, extent, step)] if step > 0 else None


class _At:
    roots: ClassVar[frozenset[str]] = frozenset({"SequenceAt"})

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        made = node.inputs[0].producer() if node.inputs[0] is not None else None
        at = const(node.inputs[1])
        if made is None or not is_op(made, "SequenceConstruct") or at is None:
            return None
        if not -len(made.inputs) <= int(at) < len(made.inputs):
            return None
        value = made.inputs[int(at)]
        if value is None or not replaceable(node.outputs[0], value):
            return None
        return bypass(node, value)


class _Concat:
    roots: ClassVar[frozenset[str]] = frozenset({"ConcatFromSequence"})

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        made = node.inputs[0].producer() if node.inputs[0] is not None else None
        if made is None or not is_op(made, "SequenceConstruct") or attr(node, "new_axis", 0):
            return None
        new = ir.node("Concat", made.inputs, {"axis": attr(node, "axis")}, name=node.name)
        new.metadata_props.update(node.metadata_props)
        graph = node.graph
        if not isinstance(graph, ir.Graph):
            return None
        graph.insert_before(node, new)
        new.outputs[0].type, new.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
        return [new, *bypass(node, new.outputs[0])]
