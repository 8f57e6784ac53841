"""Local rewriting: rules indexed by root op type, driven by one worklist to a fixpoint."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable
from typing import ClassVar, Protocol

import onnx_ir as ir


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
        if node.graph is None or node.domain not in ("", "ai.onnx"):  # None: removed since queued
            continue
        for rule in by_root[node.op_type]:
            again = rule.rewrite(node)
            if again is None:
                continue
            count += 1
            for n in (*again, node):
                if n.graph is not None and n.op_type in by_root and n not in queued:
                    queued.add(n)
                    work.append(n)
            break
    return count
