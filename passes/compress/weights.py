"""Which constants are weights: what a compressing pass may change, and which axis counts its outputs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from effc.core.ir import Array, add_const, attr, const, is_op

# operator -> its inputs that may hold a weight
SLOTS = {"Conv": (1,), "ConvTranspose": (1,), "Gemm": (0, 1), "MatMul": (0, 1), "Gather": (0,)}
# what the first pass that changes the function keeps, for those that recover it
ORIGINAL = "effc.original"


@dataclass(frozen=True, slots=True)
class Weight:
    """A float32 constant of at least two axes that only linear operators read."""

    value: ir.Value
    array: Array
    users: tuple[ir.Node, ...]
    axis: int  # of the output channels

    @property
    def name(self) -> str:
        return str(self.value.name)


def find_weights(
    model: ir.Model,
    *,
    ops: Collection[str] = tuple(SLOTS),
    keep: Collection[str] = (),
    least: int = 2,
) -> list[Weight]:
    """The weights of the main graph with at least `least` elements, in the order of their first use.

    Not those that anything else reads too, or a node named in `keep`, or that the caller may override.
    """
    found: dict[ir.Value, Weight] = {}
    for node in model.graph:
        if not is_op(node, *ops):
            continue
        for index in SLOTS[node.op_type]:
            value = node.inputs[index]
            if value is None or value in found or value.dtype != ir.DataType.FLOAT:
                continue
            array = const(value)
            if array is None or array.ndim < 2 or array.size < least:
                continue
            if value.is_graph_output() or not _only_weights(value, ops):
                continue
            users = tuple(dict.fromkeys(use.node for use in value.uses()))
            if not {str(u.name) for u in users}.isdisjoint(keep):
                continue
            found[value] = Weight(value, array, users, _output_axis(node, index, array.ndim))
    return list(found.values())


def _only_weights(value: ir.Value, ops: Collection[str]) -> bool:
    return all(is_op(use.node, *ops) and use.idx in SLOTS[use.node.op_type] for use in value.uses())


def _output_axis(node: ir.Node, index: int, rank: int) -> int:
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        transposed = bool(attr(node, "transB" if index == 1 else "transA", 0))
        return int(transposed != (index == 1))
    if node.op_type == "MatMul":
        return rank - 1 if index == 1 else rank - 2
    return 0


def set_array(weight: Weight, array: Array, suffix: str) -> str:
    """Let the users of `weight` read `array` instead, under a name of its own, which is returned."""
    graph = weight.users[0].graph
    assert isinstance(graph, ir.Graph)
    value = add_const(graph, f"{weight.name}/{suffix}", np.asarray(array, np.float32))
    put(weight, value)
    return str(value.name)


def put(weight: Weight, value: ir.Value) -> None:
    """Let the users of `weight` read `value` instead; the old constant goes where nothing reads it."""
    for user in weight.users:
        for i, source in enumerate(user.inputs):
            if source is weight.value:
                user.replace_input_with(i, value)
    graph = weight.users[0].graph
    if (
        isinstance(graph, ir.Graph)
        and not weight.value.uses()
        and weight.name in graph.initializers
    ):
        del graph.initializers[weight.name]


def insert(weight: Weight, nodes: Sequence[ir.Node]) -> None:
    """Put `nodes`, which compute the weight, before its first user; the last one's output is the weight."""
    graph = weight.users[0].graph
    assert isinstance(graph, ir.Graph)
    users = set(weight.users)
    first = next(n for n in graph if n in users)
    graph.insert_before(first, list(nodes))
    out = nodes[-1].outputs[0]
    out.name, out.shape, out.dtype = (
        f"{weight.name}/{nodes[-1].op_type.lower()}",
        ir.Shape(weight.array.shape),
        ir.DataType.FLOAT,
    )
    put(weight, out)


def keep_original(model: ir.Model) -> ir.Model:
    """The model as it was before anything changed its function, kept in `model.meta`."""
    if ORIGINAL not in model.meta:
        model.meta[ORIGINAL] = model.clone()
    original: ir.Model = model.meta[ORIGINAL]
    return original
