"""The verifier: whether a model in the IR is one that ONNX defines and effc can take.

It judges the structure (names, definitions, order, operators, attributes, element types) and what a
weight's numbers must satisfy; shapes of intermediate values are `effc.core.shapes`' business.
Source: https://onnx.ai/onnx/repo-docs/IR.html and the operator schemas of the onnx package.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from effc.core.check_ops import check_op, quoted, where
from effc.core.errors import FrontendError
from effc.core.schema import OpSchema, element_type, opset_range, schema_of, why_no_schema

MAX_NODES = 1_000_000
MAX_DEPTH = 16  # of subgraphs: inference and inlining recurse into them
MAX_ELEMENTS = (1 << 31) - 1  # of one tensor: indices are 32-bit in every backend
MIN_IR_VERSION = 3

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
# operators whose constant inputs are trained numbers; elsewhere an infinity can be meant (masks, bounds)
_TRAINED = frozenset(
    "Conv ConvTranspose Gemm MatMul BatchNormalization InstanceNormalization LayerNormalization "
    "GroupNormalization RMSNormalization PRelu LSTM GRU RNN QuantizeLinear DequantizeLinear "
    "Embedding QLinearConv QLinearMatMul ConvInteger MatMulInteger".split()
)
_NAN_HINT = "the training diverged or the file is damaged: export the model from a good checkpoint"


@dataclass(frozen=True, slots=True)
class _Scope:
    """A graph to be checked, the graphs whose values it can see, and its opset imports."""

    graph: ir.Graph | ir.Function
    visible: frozenset[int]  # by id, the graph itself included
    depth: int
    place: str
    opsets: Mapping[str, int]


def check_model(
    model: ir.Model,
    *,
    allow_nonfinite: bool = False,
    allow_empty: bool = False,
    allow_domains: Collection[str] = (),
) -> None:
    """Raise FrontendError for the first fault of `model`, which is left as it is.

    `allow_nonfinite` accepts NaN and infinite weights, `allow_empty` inputs without elements,
    `allow_domains` the custom operator domains that a plug-in of the caller takes. Linear in the size of the
    model; weights are read once, in pieces.
    """
    _check_versions(model)
    if not model.graph.outputs:
        raise FrontendError(
            "the graph has no outputs, so there is nothing to compute",
            hint="mark at least one value as output when exporting",
        )
    total = 0
    scopes = [_Scope(model.graph, frozenset({id(model.graph)}), 1, "", model.opset_imports)]
    for key, function in model.functions.items():
        scopes.append(
            _Scope(
                function,
                frozenset({id(function.graph)}),
                1,
                f" in function {quoted(key[1])}",
                function.opset_imports,
            )
        )
    while scopes:
        scope = scopes.pop()
        if scope.depth > MAX_DEPTH:
            raise FrontendError(f"subgraphs nest more than {MAX_DEPTH} deep{scope.place}")
        total += len(scope.graph)
        if total > MAX_NODES:
            raise FrontendError(f"the model has over {MAX_NODES:,} nodes, more than effc takes")
        _check_interface(scope, main=scope.graph is model.graph, empty=allow_empty)
        _check_definitions(scope)
        _check_order(scope)
        types: dict[int, ir.DataType] = {}
        for node in scope.graph:
            _check_node(node, scope, model, allow_domains, types)
            for graph in _subgraphs(node):
                scopes.append(
                    _Scope(
                        graph,
                        scope.visible | {id(graph)},
                        scope.depth + 1,
                        f" in a subgraph of {where(node)}",
                        scope.opsets,
                    )
                )
        if not allow_nonfinite:
            _check_numbers(scope)


def normalize(model: ir.Model) -> None:
    """Give every node a unique name and sort every graph topologically, in place.

    Names that are already unique stay, and so does an order that is already right.
    """
    taken: set[str] = set()
    nodes = list(model.graph.all_nodes())
    for function in model.functions.values():
        nodes += function.all_nodes()
    given = {n.name for n in nodes if n.name}
    counts: dict[str, int] = {}
    for node in nodes:
        if node.name and node.name not in taken:
            taken.add(node.name)
            continue
        stem = node.name or node.op_type
        number = counts.get(stem, 0)
        while (name := f"{stem}_{number}") in given:
            number += 1
        counts[stem] = number + 1
        node.name = name
        taken.add(name)
        given.add(name)
    for graph in (model.graph, *model.graph.subgraphs()):
        if next(_late_inputs(graph), None) is not None:
            model.graph.sort()
            break


def _check_versions(model: ir.Model) -> None:
    version = model.ir_version
    if not version or version < MIN_IR_VERSION:
        raise FrontendError(
            f"the model has the IR version {version or 0}; the oldest that effc reads is "
            f"{MIN_IR_VERSION}",
            hint="it may be no ONNX model; otherwise export it again",
        )
    if version > onnx.IR_VERSION:
        raise FrontendError(
            f"the model has the IR version {version}; onnx {onnx.__version__} knows up to "
            f"{onnx.IR_VERSION}",
            hint="upgrade onnx, or export the model for an older version",
        )
    if not model.opset_imports:
        raise FrontendError(
            "the model imports no operator set (opset_import)",
            hint="its exporter is at fault: set opset_import to the version it was written for",
        )
    for domain, opset in model.opset_imports.items():
        known = opset_range(domain)
        if known is not None and not known[0] <= opset <= known[1]:
            raise FrontendError(
                f"the model imports opset {opset} of {quoted(domain or 'ai.onnx')}; onnx "
                f"{onnx.__version__} knows {known[0]} to {known[1]}",
                hint="upgrade onnx, or export the model for an older opset",
            )


def _check_interface(scope: _Scope, *, main: bool, empty: bool) -> None:
    graph, place = scope.graph, scope.place
    for role, values in (("input", graph.inputs), ("output", graph.outputs)):
        for i, value in enumerate(values):
            name = f"the {role} {quoted(value.name or f'#{i}')}{place}"
            if value.name is None or not value.name:
                raise FrontendError(f"{name} has no name")
            if main and value.type is None:
                raise FrontendError(
                    f"{name} has no type", hint="export the model with typed inputs and outputs"
                )
            _check_shape(value, name)
            if main and role == "input" and not empty and 0 in (value.shape or ()):
                raise FrontendError(
                    f"{name} has the shape {value.shape}, which holds no elements",
                    hint="an exporter may have written 0 for an unknown size: make it dynamic",
                )
            if (
                role == "output"
                and value.producer() is None
                and not value.is_graph_input()
                and not value.is_initializer()
            ):
                raise FrontendError(f"{name} is made by no node")
    if len({id(v) for v in graph.outputs}) != len(graph.outputs):
        raise FrontendError(f"the graph lists an output twice{place}")


def _check_shape(value: ir.Value, name: str) -> None:
    if value.shape is None:
        return
    known = [d for d in value.shape if isinstance(d, int)]
    if any(d < 0 for d in known):
        raise FrontendError(
            f"{name} has the negative dimension {min(known)}",
            hint="leave a size open by a symbol, or fix it with --shape",
        )
    if 0 not in known and math.prod(known) > MAX_ELEMENTS:
        raise FrontendError(
            f"{name} of shape {value.shape} has over 2^31 elements",
            hint="no backend can index it; check the shape, or choose a smaller one with --shape",
        )


def _check_definitions(scope: _Scope) -> None:
    """Every name once, every initializer with data that fits, no control characters."""
    graph, place = scope.graph, scope.place
    made: dict[str, ir.Value] = {}

    def define(value: ir.Value, what: str) -> None:
        name = value.name
        if not name:
            return
        if _CONTROL.search(name):
            raise FrontendError(
                f"the name of {what} {quoted(name)}{place} holds control characters",
                hint="rename it: the name would end up in file names, logs and C code",
            )
        if made.setdefault(name, value) is not value:
            raise FrontendError(
                f"the value {quoted(name)} is defined twice{place}, again by {what}",
                hint="every value has one definition; export the model again",
            )

    for value in graph.inputs:
        define(value, "the input")
    if isinstance(graph, ir.Graph):
        for key, value in graph.initializers.items():
            define(value, "the initializer")
            name = f"the initializer {quoted(key)}{place}"
            tensor = value.const_value
            if tensor is None:
                raise FrontendError(f"{name} has no data")
            if value.dtype is not None and value.dtype != tensor.dtype:
                raise FrontendError(
                    f"{name} is declared as {value.dtype.name} but holds {tensor.dtype.name}"
                )
            if value.shape is not None and (
                len(value.shape) != len(tensor.shape)
                or any(
                    isinstance(d, int) and d != s
                    for d, s in zip(value.shape, tensor.shape, strict=True)
                )
            ):
                raise FrontendError(
                    f"{name} is declared with shape {value.shape} but holds {tensor.shape}"
                )
            _check_shape(value, name)
    for node in graph:
        for part, text in (
            ("name", node.name),
            ("operator", node.op_type),
            ("domain", node.domain),
        ):
            if text and _CONTROL.search(text):
                raise FrontendError(
                    f"the {part} of {where(node)}{place} holds control characters",
                    hint="rename it: the name would end up in file names, logs and C code",
                )
        for value in node.outputs:
            define(value, f"an output of {where(node)}")
            if value.shape is not None:
                _check_shape(value, f"the output {quoted(value.name)} of {where(node)}{place}")


def _late_inputs(graph: ir.Graph | ir.Function) -> Iterator[tuple[ir.Node, ir.Node]]:
    """(node, producer) wherever a node stands before the producer of what it reads."""
    seen: set[int] = set()
    for node in graph:
        for producer in _dependencies(node, graph):
            if id(producer) not in seen:
                yield node, producer
        seen.add(id(node))


def _dependencies(node: ir.Node, graph: ir.Graph | ir.Function) -> Iterator[ir.Node]:
    """The nodes of `graph` that make what `node` and its subgraphs read."""
    own = graph.graph if isinstance(graph, ir.Function) else graph
    pending = [node]
    while pending:
        reader = pending.pop()
        for value in reader.inputs:
            producer = value.producer() if value is not None else None
            if producer is not None and producer.graph is own:
                yield producer
        for inner in _subgraphs(reader):
            pending.extend(inner)
            for value in inner.outputs:
                producer = value.producer()
                if producer is not None and producer.graph is own:
                    yield producer


def _check_order(scope: _Scope) -> None:
    """No cycle. A wrong order alone is no fault: `normalize` sorts."""
    graph = scope.graph
    if next(_late_inputs(graph), None) is None:
        return
    needs = {id(n): {id(p) for p in _dependencies(n, graph)} for n in graph}
    readers: dict[int, list[int]] = {}
    for key, producers in needs.items():
        for producer in producers:
            readers.setdefault(producer, []).append(key)
    missing = {key: len(producers) for key, producers in needs.items()}
    ready = deque(key for key, count in missing.items() if count == 0)
    while ready:
        for reader in readers.get(ready.popleft(), ()):
            missing[reader] -= 1
            if missing[reader] == 0:
                ready.append(reader)
    blocked = {key for key, count in missing.items() if count > 0}
    if not blocked:
        return
    nodes = {id(n): n for n in graph}
    at = next(iter(blocked))
    path: dict[int, int] = {}
    while at not in path:  # backwards from a blocked node one must come around
        path[at] = len(path)
        at = next(p for p in needs[at] if p in blocked)
    cycle = [nodes[key] for key, position in path.items() if position >= path[at]]
    shown = " <- ".join(where(n) for n in cycle[:4]) + (" <- ..." if len(cycle) > 4 else "")
    raise FrontendError(
        f"the graph has a cycle of {len(cycle)} nodes{scope.place}: {shown}",
        hint="a node can't depend on its own output; recurrence is written with Loop or Scan",
    )


def _subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _check_node(
    node: ir.Node,
    scope: _Scope,
    model: ir.Model,
    domains: Collection[str],
    types: dict[int, ir.DataType],
) -> None:
    for i, value in enumerate(node.inputs):
        if value is None:
            continue
        producer = value.producer()
        if producer is None and not value.is_graph_input() and not value.is_initializer():
            raise FrontendError(
                f"{where(node)}{scope.place} reads {quoted(value.name)} (input {i}), which nothing makes",
                hint="the model was cut in two or its exporter is at fault",
            )
        owner = producer.graph if producer is not None else value.graph
        if owner is None or id(owner) not in scope.visible:
            raise FrontendError(
                f"{where(node)}{scope.place} reads {quoted(value.name)} (input {i}), which is made "
                "inside another subgraph",
            )
    if node.op_identifier() in model.functions:
        return
    domain = "" if node.domain == "ai.onnx" else node.domain
    if opset_range(domain) is None:
        if domain in domains:
            return
        raise FrontendError(
            f"{where(node)}{scope.place} is of the custom domain {quoted(domain)}, whose meaning "
            "ONNX doesn't define",
            hint="export with standard operators (no onnxruntime or vendor fusions), or give the "
            "model the function that defines it",
        )
    opset = scope.opsets.get(domain)
    if opset is None:
        raise FrontendError(
            f"{where(node)}{scope.place} is of the domain {quoted(domain or 'ai.onnx')}, of which "
            "the model imports no opset",
            hint="its exporter is at fault: add the opset_import that it was written for",
        )
    schema = schema_of(node.op_type, opset, domain)
    if schema is None:
        reason, hint = why_no_schema(node.op_type, opset, domain)
        raise FrontendError(f"{where(node)}{scope.place}: {reason}", hint=hint)
    _check_signature(node, schema, scope.place)
    _check_types(node, schema, scope.place, types)
    check_op(node, scope.place)


def _check_signature(node: ir.Node, schema: OpSchema, place: str) -> None:
    at = f"{where(node)}{place}"
    for noun, values, low, high in (
        ("inputs", node.inputs, schema.min_inputs, schema.max_inputs),
        ("outputs", node.outputs, schema.min_outputs, schema.max_outputs),
    ):
        given = len(values)
        while given and (values[given - 1] is None or not values[given - 1].name):  # type: ignore[union-attr]
            given -= 1
        if not low <= given <= high:
            allowed = (
                f"{low}" if low == high else f"{low} to {high}" if high < 1000 else f"{low} or more"
            )
            raise FrontendError(f"{at} has {given} {noun}; the operator takes {allowed}")
    for i, value in enumerate(node.inputs):
        if value is None and i < len(schema.inputs) and schema.inputs[i].required:
            raise FrontendError(f"{at} lacks its input {i} ({schema.inputs[i].name})")
    for name, attribute in node.attributes.items():
        expected = schema.attributes.get(name)
        if expected is None:
            if name.startswith("__"):  # internal marks of exporters, as onnx's own checker has it
                continue
            raise FrontendError(
                f"{at} has the attribute {quoted(name)}, which the operator has not",
                hint=f"its attributes: {', '.join(schema.attributes) or 'none'}",
            )
        if attribute.type.name != expected.type:
            raise FrontendError(
                f"the attribute {quoted(name)} of {at} is of type {attribute.type.name}, not "
                f"{expected.type}"
            )
    for name, expected in schema.attributes.items():
        if expected.required and name not in node.attributes:
            raise FrontendError(f"{at} lacks its attribute {quoted(name)}")


def _check_types(
    node: ir.Node, schema: OpSchema, place: str, types: dict[int, ir.DataType]
) -> None:
    """Element types by the schema's constraints, carried forward to values that declare none."""
    bound: dict[str, tuple[ir.DataType, int]] = {}
    for i, value in enumerate(node.inputs):
        if value is None:
            continue
        formal = schema.inputs[min(i, len(schema.inputs) - 1)]
        known = value.dtype if isinstance(value.type, ir.TensorType) else types.get(id(value))
        if known is None or known == ir.DataType.UNDEFINED:
            continue
        text = element_type(known)
        if formal.allowed and text not in formal.allowed:
            raise FrontendError(
                f"{where(node)}{place} takes no {known.name} as input {i} ({quoted(value.name)})",
                hint=f"{node.op_type} takes {', '.join(sorted(formal.allowed)[:6])}",
            )
        if not formal.variable or not formal.homogeneous:
            continue
        first = bound.setdefault(formal.variable, (known, i))
        if first[0] != known:
            raise FrontendError(
                f"{where(node)}{place} has inputs of different types: input {first[1]} is "
                f"{first[0].name}, input {i} ({quoted(value.name)}) is {known.name}",
                hint="the operator wants one type: cast one of them",
            )
    for i, value in enumerate(node.outputs):
        if value.type is not None or not schema.outputs:
            continue
        formal = schema.outputs[min(i, len(schema.outputs) - 1)]
        if formal.variable in bound and formal.homogeneous:
            types[id(value)] = bound[formal.variable][0]


def _check_numbers(scope: _Scope) -> None:
    """No NaN in any weight; no infinity where a number was trained."""
    if isinstance(scope.graph, ir.Graph):
        for name, value in scope.graph.initializers.items():
            if value.const_value is not None:
                trained = any(u.node.op_type in _TRAINED for u in value.uses())
                _check_finite(value.const_value, f"the weight {quoted(name)}{scope.place}", trained)
    for node in scope.graph:
        if node.op_type != "Constant":
            continue
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                trained = any(u.node.op_type in _TRAINED for u in node.outputs[0].uses())
                _check_finite(attribute.as_tensor(), f"{where(node)}{scope.place}", trained)


def _check_finite(tensor: ir.TensorProtocol, name: str, trained: bool) -> None:
    if tensor.dtype not in _FLOATS or tensor.size == 0:
        return
    flat = tensor.numpy().reshape(-1)
    piece = 1 << 20
    for start in range(0, flat.size, piece):
        part = flat[start : start + piece]
        finite = np.isfinite(part)
        if finite.all():
            continue
        bad = np.isnan(part) if not trained else ~finite
        if bad.any():
            first = int(np.flatnonzero(bad)[0])
            index = tuple(int(i) for i in np.unravel_index(start + first, tensor.shape.numpy()))
            raise FrontendError(
                f"{name} holds {float(part[first])} at {list(index)}",
                hint=_NAN_HINT + "; --allow-nonfinite takes it as it is",
            )
