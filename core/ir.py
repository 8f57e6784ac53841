"""The IR of effc is onnx_ir; this module adds only the questions that passes keep asking of it."""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Array = npt.NDArray[Any]

# What convert-opset brings every model to, so that passes and backends know one form of each operator.
# 23 is the newest that the oldest onnxruntime and onnx we support know, and holds Attention,
# RMSNormalization, LayerNormalization and Gelu.
WORKING_OPSET = 23
WORKING_IR_VERSION = 11


def is_op(node: ir.Node | None, *op_types: str) -> bool:
    """Whether `node` is one of these operators of the standard ONNX domain."""
    return node is not None and node.op_type in op_types and node.domain in ("", "ai.onnx")


def const(value: ir.Value | None, max_bytes: int | None = None) -> Array | None:
    """The array that `value` always holds, or None if it is absent, computed, or larger than `max_bytes`.

    An initializer that is also a graph input can be overridden by the caller and is no constant.
    """
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None or (max_bytes is not None and tensor.nbytes > max_bytes):
        return None
    return tensor.numpy()


def scalar(value: ir.Value | None) -> float | None:
    """The number that `value` always holds if it is a constant of one element."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.size != 1:
        return None
    return float(tensor.numpy().reshape(()))


def sole_producer(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The node of one of these ops that makes `value`, provided that nothing else can see `value`."""
    node = value.producer() if value is not None else None
    if value is None or node is None or not is_op(node, *op_types):
        return None
    return node if sole_use(value) is not None else None


def sole_use(value: ir.Value) -> ir.Node | None:
    """The only node that reads `value`, and reads it once; None also for a graph output."""
    uses = tuple(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    node: ir.Node = uses[0].node
    return node


def shape_of(value: ir.Value | None) -> tuple[int, ...] | None:
    """The static shape of `value`, or None if its rank or any extent is unknown."""
    if value is None or value.shape is None:
        return None
    dims = tuple(value.shape)
    return dims if all(isinstance(d, int) for d in dims) else None  # type: ignore[return-value]


def attr(node: ir.Node, name: str, default: Any = None) -> Any:
    """The plain Python value of an attribute (ints and floats lists become tuples)."""
    found = node.attributes.get(name)
    if found is None or found.value is None:
        return default
    value = found.value
    return tuple(value) if isinstance(value, (list, tuple)) else value


def constant_tensor(node: ir.Node) -> ir.TensorProtocol | None:
    """The tensor of a Constant node, whichever attribute holds it; None where it is sparse."""
    tensor = attr(node, "value")
    if tensor is not None:
        return tensor  # type: ignore[no-any-return]
    for name, dtype in (
        ("value_int", np.int64),
        ("value_ints", np.int64),
        ("value_float", np.float32),
        ("value_floats", np.float32),
    ):
        plain = attr(node, name)
        if plain is not None:
            return ir.tensor(np.array(plain, dtype))
    text = attr(node, "value_string")
    if text is not None:
        return ir.StringTensor([text.encode()], shape=ir.Shape([]))
    texts = attr(node, "value_strings")
    if texts is not None:
        return ir.StringTensor([t.encode() for t in texts], shape=ir.Shape([len(texts)]))
    return None


def add_const(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """Register `array` as an initializer under `name`, or under `name_1`, ... where that is taken."""
    unique, n = name, 0
    while unique in graph.initializers:
        n += 1
        unique = f"{name}_{n}"
    value = ir.Value(
        name=unique,
        const_value=ir.Tensor(np.asarray(array, order="C"), name=unique),
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
    )
    graph.register_initializer(value)
    return value


def replace(old: ir.Value, new: ir.Value) -> None:
    """Let every reader of `old`, the graph's outputs included, read `new`; the output keeps its name."""
    if old.is_graph_output() and not new.is_graph_output() and not new.is_graph_input():
        name, old.name = old.name, f"{old.name}.replaced"
        new.name = name
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def replaceable(old: ir.Value, new: ir.Value) -> bool:
    """Whether `replace(old, new)` keeps the graph's outputs: their names, and that a node makes them.

    False where `old` is a graph output and `new` an input, an initializer, an output already, or a
    value of another graph.
    """
    if not old.is_graph_output():
        return True
    producer, made = new.producer(), old.producer()
    if producer is None or made is None or new.is_graph_output():
        return False
    return producer.graph is made.graph


def graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """The main graph, then every subgraph of its nodes, outer before inner."""
    work = [model.graph]
    for graph in work:
        yield graph
        for node in graph:
            if node.op_type in _HOLD_GRAPHS or node.domain != "":
                work.extend(subgraphs(node))


# of the standard operators; asking only these for their attributes makes the walk three times as fast
_HOLD_GRAPHS = frozenset({"If", "Loop", "Scan", "SequenceMap"})


def subgraphs(node: ir.Node) -> list[ir.Graph]:
    """The graphs among the attributes of one node."""
    found: list[ir.Graph] = []
    if node.attributes:
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
                found.append(attribute.as_graph())
            elif attribute.type == ir.AttributeType.GRAPHS and not attribute.is_ref():
                found.extend(attribute.as_graphs())
    return found


def elements(shape: tuple[int, ...]) -> int:
    """The number of elements of a static shape."""
    return math.prod(shape)


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """A graph is millions of objects that live on: looking through them again and again took a third."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
