"""If on a constant condition: the branch that is taken moves into the graph around it."""

from __future__ import annotations

import onnx_ir as ir

from effc.core.ir import attr, const
from effc.core.rewrite import erase


def inline_if(node: ir.Node) -> bool:
    """If(true){a}{b} -> a. Declines where the condition is computed, and where that would rename an output.

    A branch may return one value twice, or a constant; a graph output needs a node of its own, so an
    Identity stands in for those.
    """
    graph, condition = node.graph, const(node.inputs[0], 16)
    if graph is None or condition is None or condition.size != 1:
        return False
    taken = "then_branch" if bool(condition.reshape(-1)[0]) else "else_branch"
    branch: ir.Graph = attr(node, taken)
    results = list(branch.outputs)
    branch.outputs.clear()
    inner = list(branch)
    branch.remove(inner)
    for value in list(branch.initializers.values()):
        name = value.name or "branch"
        del branch.initializers[name]
        unique, n = name, 0
        while unique in graph.initializers:
            n += 1
            unique = f"{name}_{n}"
        value.name = unique
        graph.register_initializer(value)
    graph.insert_before(node, inner)
    for old, result in zip(node.outputs, results, strict=True):
        new = result
        if old.is_graph_output():
            stand_in = ir.node("Identity", [result])
            graph.insert_before(node, [stand_in])
            new = stand_in.outputs[0]
            new.type, new.shape = old.type, old.shape
            new.name, old.name = old.name, f"{old.name}.replaced"
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    erase(node)
    return True
