"""eliminate-common-subexpressions: what is computed twice is computed once."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from effc.core.ir import graphs, replace, replaceable
from effc.core.passinfra import Effect, Pass, PassContext
from effc.core.rewrite import erase

RANDOM_OPS = frozenset(
    {
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Multinomial",
        "Bernoulli",
    }
)
# content of this size is compared as it is; larger is first told apart by samples of this size each
_SMALL_BYTES = 4096
_SAMPLES = 16


@dataclass(frozen=True, slots=True)
class EliminateCommonSubexpressions(Pass):
    """y = f(x); z = f(x)   ->   y = f(x); z = y

    for nodes with the same operator, attributes and inputs, and for initializers with the same type,
    shape and bytes, within one graph. Large initializers are told apart by samples, and read whole
    only where those agree, so lazy weights stay lazy. Declines at random operators, at Dropout in
    training, at nodes with subgraphs, and where both results are graph outputs.
    """

    id: ClassVar[str] = "eliminate-common-subexpressions"
    effect: ClassVar[Effect] = Effect.EXACT

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        count = 0
        for graph in list(graphs(model)):
            count += _share_initializers(graph)
            count += _share_nodes(graph)
        return count


def _share_nodes(graph: ir.Graph) -> int:
    first: dict[Hashable, ir.Node] = {}
    count = 0
    for node in graph:
        key = _key(node)
        if key is None:
            continue
        known = first.setdefault(key, node)
        if known is node:
            continue
        pairs = list(zip(node.outputs, known.outputs, strict=True))
        if not all(replaceable(old, new) for old, new in pairs):
            continue
        for old, new in pairs:
            if new.shape is None:
                new.shape = old.shape
            replace(old, new)
        erase(node)
        count += 1
    return count


def _key(node: ir.Node) -> Hashable | None:
    if node.domain == "" and (node.op_type in RANDOM_OPS or _trains(node)):
        return None
    attributes = []
    for name, attribute in node.attributes.items():
        value = _attribute_key(attribute)
        if value is None:
            return None
        attributes.append((name, value))
    if len(attributes) > 1:
        attributes.sort()
    return (
        node.op_type,
        node.domain,
        node.overload,
        tuple(attributes),
        tuple(id(v) if v is not None else 0 for v in node.inputs),
        tuple(v.name != "" for v in node.outputs),
    )


def _trains(node: ir.Node) -> bool:
    return node.op_type == "Dropout" and len(node.inputs) > 2 and node.inputs[2] is not None


def _attribute_key(attribute: ir.Attr) -> tuple[int, str] | None:
    kind = attribute.type
    if attribute.is_ref() or kind in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        return None
    if kind == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        if tensor.nbytes > _SMALL_BYTES or tensor.dtype == ir.DataType.STRING:
            return None
        text = f"{tensor.dtype} {tensor.shape} {tensor.tobytes().hex()}"
        return int(kind), text
    if kind in (ir.AttributeType.FLOAT, ir.AttributeType.FLOATS):
        return int(kind), np.array(attribute.value, np.float64).tobytes().hex()  # -0.0 is not 0.0
    if kind in (
        ir.AttributeType.INT,
        ir.AttributeType.INTS,
        ir.AttributeType.STRING,
        ir.AttributeType.STRINGS,
    ):
        return int(kind), repr(attribute.value)
    return None


def _share_initializers(graph: ir.Graph) -> int:
    groups: defaultdict[Hashable, list[ir.Value]] = defaultdict(list)
    inputs = set(graph.inputs)
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is None or value in inputs or value.is_graph_output():
            continue
        if tensor.dtype != ir.DataType.STRING:
            groups[tensor.dtype, tensor.shape.numpy()].append(value)
    count = 0
    for values in groups.values():
        if len(values) > 1:
            count += _share(graph, values)
    return count


def _share(graph: ir.Graph, values: list[ir.Value]) -> int:
    sampled: defaultdict[bytes, list[ir.Value]] = defaultdict(list)
    for value in values:
        sampled[_sample(value)].append(value)
    count = 0
    for alike in sampled.values():
        if len(alike) < 2:
            continue
        first: dict[bytes, ir.Value] = {}
        for value in alike:
            kept = first.setdefault(_digest(value), value)
            if kept is not value:
                replace(value, kept)
                del graph.initializers[value.name or ""]
                count += 1
    return count


def _bytes(value: ir.Value) -> memoryview:
    tensor = value.const_value
    if tensor is None:
        return memoryview(b"")
    array = np.ascontiguousarray(tensor.numpy())
    return array.reshape(-1).view(np.uint8).data


def _sample(value: ir.Value) -> bytes:
    data = _bytes(value)
    if len(data) <= _SMALL_BYTES:
        return bytes(data)
    width = _SMALL_BYTES // _SAMPLES
    step = (len(data) - width) // (_SAMPLES - 1)
    return b"".join(bytes(data[i * step : i * step + width]) for i in range(_SAMPLES))


def _digest(value: ir.Value) -> bytes:
    data = _bytes(value)
    return bytes(data) if len(data) <= _SMALL_BYTES else hashlib.sha256(data).digest()
