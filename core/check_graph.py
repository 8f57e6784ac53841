"""Whether the values of a graph are well defined: names, data, order."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from effc.core.check_ops import check_op, quoted, where
from effc.core.errors import FrontendError

MAX_ELEMENTS = (1 << 31) - 1  # of one tensor: indices are 32-bit in every backend

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_RENAME = "rename it: the name would end up in file names, logs and C code"


@dataclass(frozen=True, slots=True)
class Scope:
    """A graph to be checked, the graphs whose values it can see, and its opset imports."""

    graph: ir.Graph | ir.Function
    visible: frozenset[int]  # by id, the graph itself included
    depth: int
    place: str
    opsets: Mapping[str, int]


def subgraphs_of(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs in the attributes of `node`, not those deeper down."""
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def check_interface(scope: Scope, *, main: bool, empty: bool) -> None:
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


def _plausible(shape: ir.Shape) -> bool:
    known = [d for d in shape if isinstance(d, int)]
    return all(d >= 0 for d in known) and (0 in known or math.prod(known) <= MAX_ELEMENTS)


def _check_shape(value: ir.Value, name: str) -> None:
    if value.shape is None or _plausible(value.shape):
        return
    known = [d for d in value.shape if isinstance(d, int)]
    if any(d < 0 for d in known):
        raise FrontendError(
            f"{name} has the negative dimension {min(known)}",
            hint="leave a size open by a symbol, or fix it with --shape",
        )
    raise FrontendError(
        f"{name} of shape {value.shape} has over 2^31 elements",
        hint="no backend can index it; check the shape, or choose a smaller one with --shape",
    )


def check_shapes(model: ir.Model) -> None:
    """Raise FrontendError where known shapes contradict an operator, or can't be.

    The shape inference of onnx lets some of these pass: a convolution whose weight is for other
    channels, a window larger than its picture, operands that can't be broadcast. Subgraphs are left
    out: a branch that is never taken may well be impossible.
    """
    for node in model.graph:
        for value in node.outputs:
            if value.shape is not None and not _plausible(value.shape):
                _check_shape(value, f"the output {quoted(value.name)} of {where(node)}")
        check_op(node, "")


def check_definitions(scope: Scope) -> None:
    """Every name once, every initializer with data that fits, no control characters."""
    graph, place = scope.graph, scope.place
    made: dict[str, ir.Value] = {}

    def define(value: ir.Value, by: str | ir.Node) -> None:
        name = value.name
        if not name:
            return
        if _CONTROL.search(name):
            what = by if isinstance(by, str) else f"an output of {where(by)}"
            raise FrontendError(
                f"the name of {what} {quoted(name)}{place} holds control characters", hint=_RENAME
            )
        if made.setdefault(name, value) is not value:
            what = by if isinstance(by, str) else f"an output of {where(by)}"
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
                    hint=_RENAME,
                )
        for value in node.outputs:
            define(value, node)
            if value.shape is not None and not _plausible(value.shape):
                _check_shape(value, f"the output {quoted(value.name)} of {where(node)}{place}")


def late_inputs(graph: ir.Graph | ir.Function) -> Iterator[tuple[ir.Node, ir.Node]]:
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
        for inner in subgraphs_of(reader):
            pending.extend(inner)
            for value in inner.outputs:
                producer = value.producer()
                if producer is not None and producer.graph is own:
                    yield producer


def check_order(scope: Scope) -> None:
    """No cycle. A wrong order alone is no fault: `normalize` sorts."""
    graph = scope.graph
    if next(late_inputs(graph), None) is None:
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
