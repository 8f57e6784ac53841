"""The nodes of a Q/DQ model that compute on quantized tensors, and bringing single ones back to reals.

A node is quantized as long as DequantizeLinear feeds it. Restoring it bypasses the pairs in front of it and
puts its float weights back; a pair that still feeds a quantized neighbour stays, for that neighbour.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from effc.core.ir import add_const, const, is_op
from effc.core.rewrite import erase

# the float arrays that quantized or adapted constants stand for, by the name of the value that a node
# reads (the output of DequantizeLinear, or the constant).
# In `model.meta`, which is never serialized, so an imported model has none.
FLOAT_WEIGHTS = "effc.float_weights"

Array = npt.NDArray[Any]

# operators that only move or choose elements: nothing is gained or lost by quantizing just them
MOVERS = frozenset(
    "Concat DepthToSpace Expand Flatten Gather GatherElements GatherND Identity MaxPool Pad Reshape Resize "
    "Slice SpaceToDepth Split Squeeze Tile Transpose Unsqueeze Clip Relu".split()
)


def quantized_nodes(model: ir.Model) -> list[ir.Node]:
    """The nodes that compute on quantized tensors: fed by DequantizeLinear, movers and Q/DQ apart."""
    return [
        node
        for node in model.graph
        if not is_op(node, "QuantizeLinear", "DequantizeLinear", *MOVERS) and _fed(node)
    ]


def _fed(node: ir.Node) -> bool:
    return any(v is not None and is_op(v.producer(), "DequantizeLinear") for v in node.inputs)


def restore(model: ir.Model, names: Collection[str]) -> int:
    """Let the nodes called `names` compute on reals again; the number of nodes restored.

    Movers that no quantized node reads from any more are restored with them, and pairs that nothing
    reads go. A weight gets its float array back if `model.meta` still knows it, else it stays the
    DequantizeLinear of its integers, which is a constant too.
    """
    weights: Mapping[str, Array] = model.meta.get(FLOAT_WEIGHTS, {})
    count = 0
    for node in model.graph:
        if node.name in names and not is_op(node, "QuantizeLinear", "DequantizeLinear"):
            count += _restore(node, weights)
    if count:
        _settle(model.graph, weights)
    return count


def only(model: ir.Model, names: Collection[str]) -> int:
    """Restore every quantized node but those called `names`."""
    others = {str(n.name) for n in quantized_nodes(model)} - set(names)
    return restore(model, others)


def _restore(node: ir.Node, weights: Mapping[str, Array]) -> bool:
    changed = False
    for index, value in enumerate(node.inputs):
        producer = value.producer() if value is not None else None
        if value is not None and producer is None and str(value.name) in weights and node.graph:
            original = add_const(node.graph, f"{value.name}/float", weights[str(value.name)])
            node.replace_input_with(index, original)  # a float constant that was adapted
        if value is None or producer is None or not is_op(producer, "DequantizeLinear"):
            continue
        real = _real(producer, weights)
        if real is not None:
            node.replace_input_with(index, real)
            erase(producer)
        changed = True
    return changed


def _real(pair: ir.Node, weights: Mapping[str, Array]) -> ir.Value | None:
    """What stands before the quantization that `pair` (a DequantizeLinear) ends."""
    stored = pair.inputs[0]
    if stored is None or pair.graph is None:
        return None
    made = stored.producer()
    if made is not None and is_op(made, "QuantizeLinear"):
        return made.inputs[0]
    array = weights.get(str(pair.outputs[0].name))
    if array is None or const(stored) is None:
        return None
    return add_const(pair.graph, f"{pair.outputs[0].name}/float", array)


def _settle(graph: ir.Graph, weights: Mapping[str, Array]) -> None:
    """Remove pairs that nothing reads, and restore movers whose result is not quantized any more."""
    for node in reversed(list(graph)):
        if node.graph is None:
            continue
        dead = not any(o.uses() or o.is_graph_output() for o in node.outputs)
        if is_op(node, "QuantizeLinear", "DequantizeLinear") and dead:
            erase(node)
        elif is_op(node, *MOVERS) and _fed(node) and not _quantized_again(node):
            _restore(node, weights)


def _quantized_again(node: ir.Node) -> bool:
    return any(is_op(use, "QuantizeLinear") for o in node.outputs for use in o.consumers())
