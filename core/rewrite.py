"""Local rewriting: rules indexed by root op type, driven by one worklist to a fixpoint."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable
from typing import ClassVar, Protocol

import onnx_ir as ir

from effc.core.ir import replace, subgraphs


class Rule(Protocol):
    """A rewrite that may start at nodes of the op types in `roots` (standard domain)."""

    roots: ClassVar[frozenset[str]]

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        """Rewrite around `node`; the nodes to look at again, or None when it does not match.

        A rule must make progress: applied to its own result it returns None.
        """
        ...


def apply(graph: ir.Graph, rules: Iterable[Rule]) -> int:
    """Apply `rules` to `graph` (not to its subgraphs) until none matches; the number of rewrites.

    Every node is visited once, plus once for each time that a rewrite asks for it, so the cost does
    not grow with the number of rules.
    """
    by_root: defaultdict[str, list[Rule]] = defaultdict(list)
    for rule in rules:
        for root in rule.roots:
            by_root[root].append(rule)
    work = deque(n for n in graph if n.op_type in by_root)
    queued = set(work)
    count = 0
    while work:
        node = work.popleft()
        queued.discard(node)
        if node.graph is None or node.domain != "":  # no graph: removed since it was queued
            continue
        for rule in by_root[node.op_type]:
            again = rule.rewrite(node)
            if again is None:
                continue
            count += 1
            for n in (*again, node):
                if n.graph is graph and n.op_type in by_root and n not in queued:
                    queued.add(n)
                    work.append(n)
            break
    return count


def bypass(node: ir.Node, value: ir.Value) -> list[ir.Node]:
    """Let every reader of the first output of `node` read `value`, then erase `node`; the nodes around.

    `value` holds the same tensor, so what is known about its type and shape is put together. The
    caller has asked `effc.core.ir.replaceable`.
    """
    old = node.outputs[0]
    readers = list(old.consumers())
    _learn(value, old)
    replace(old, value)
    around = erase(node)
    producer = value.producer()
    if producer is not None:
        around.append(producer)
    return around + readers


def erase(node: ir.Node) -> list[ir.Node]:
    """Remove a node that nothing reads, and whatever only fed it; the nodes that fed those, which stay.

    Does nothing to a node that is read still.
    """
    stay: dict[ir.Node, None] = {}
    work = [node]
    while work:
        dead = work.pop()
        graph = dead.graph
        if graph is None or any(o.is_graph_output() or o.uses() for o in dead.outputs):
            stay[dead] = None
            continue
        feeds = _detach(dead)
        graph.remove(dead)
        stay.pop(dead, None)
        for value in feeds:
            producer = value.producer()
            if producer is not None:
                work.append(producer)
    stay.pop(node, None)
    return [n for n in stay if n.graph is not None]


def _detach(node: ir.Node) -> list[ir.Value]:
    """Let `node` and the nodes of its subgraphs read nothing more; what they read, each value once."""
    feeds: dict[ir.Value, None] = {}
    for i, value in enumerate(node.inputs):
        if value is not None:
            feeds[value] = None
            node.replace_input_with(i, None)
    for graph in subgraphs(node):
        for inner in graph:
            feeds.update(dict.fromkeys(_detach(inner)))
    return list(feeds)


def _learn(value: ir.Value, same: ir.Value) -> None:
    if value.type is None:
        value.type = same.type
    if same.shape is None:
        return
    if value.shape is None:
        value.shape = same.shape.copy()
    elif len(value.shape) == len(same.shape) and not value.is_graph_input():
        better = [
            b if not isinstance(a, int) and isinstance(b, int) else a
            for a, b in zip(value.shape, same.shape, strict=True)
        ]
        if any(a is not b for a, b in zip(value.shape, better, strict=True)):
            value.shape = ir.Shape(better)
