"""eliminate-dead-code: what no output depends on goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from effc.core.ir import graphs, subgraphs
from effc.core.passinfra import Effect, Pass, PassContext
from effc.core.rewrite import erase


@dataclass(frozen=True, slots=True)
class EliminateDeadCode(Pass):
    """Removes nodes, initializers, functions and opset imports that no graph output depends on.

        y = Relu(x); z = Exp(x); return y   ->   y = Relu(x); return y
        y, mask = Dropout(x); return y      ->   y = Dropout(x); return y

    Subgraphs are cleaned too; what they read of an outer graph is alive. Graph inputs stay, whether
    read or not: they are the model's interface. Values that share a name are told apart again: only
    inputs and outputs of the model keep theirs for certain. So are nodes (onnxruntime demands it).
    """

    id: ClassVar[str] = "eliminate-dead-code"
    effect: ClassVar[Effect] = Effect.EXACT

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        count = _clean(model.graph)
        nodes = [n for g in graphs(model) for n in g]
        domains = {n.domain for n in nodes} | {""}
        used = {n.op_identifier() for n in nodes} if model.functions else set()
        for key in _dead_functions(model, used):
            del model.functions[key]
            count += 1
        for function in model.functions.values():
            domains |= {function.domain, *(n.domain for n in function.all_nodes())}
        for domain in [d for d in model.graph.opset_imports if d not in domains]:
            del model.graph.opset_imports[domain]
            count += 1
        _tell_apart(model)
        return count


def _clean(graph: ir.Graph) -> int:
    count = 0
    for node in reversed(graph):
        if all(not o.uses() and not o.is_graph_output() for o in node.outputs):
            erase(node)
            count += 1
            continue
        for inner in subgraphs(node):
            count += _clean(inner)
        count += _drop_outputs(node)
    inputs = set(graph.inputs)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and value not in inputs:
            del graph.initializers[name]
            count += 1
    return count


# trailing outputs that only report on the way to the first one; a node without them costs less
_REPORTING = frozenset(
    {"Dropout", "MaxPool", "LayerNormalization", "BatchNormalization", "RMSNormalization"}
)


def _drop_outputs(node: ir.Node) -> int:
    if node.domain != "" or node.op_type not in _REPORTING or len(node.outputs) == 1:
        return 0
    training = node.attributes.get_int("training_mode", 0)
    if training or any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
        return 0
    node.resize_outputs(1)
    return 1


def _dead_functions(
    model: ir.Model, used: set[ir.OperatorIdentifier]
) -> list[ir.OperatorIdentifier]:
    work, alive = list(used), set(used)
    while work:
        function = model.functions.get(work.pop())
        if function is None:
            continue
        for node in function.all_nodes():
            key = node.op_identifier()
            if key not in alive:
                alive.add(key)
                work.append(key)
    return [key for key in model.functions if key not in alive]


def _tell_apart(model: ir.Model) -> None:
    """Rename values, and nothing else, until every name is unique in the model (as SSA demands)."""
    taken: set[str] = set()
    graph = model.graph
    fixed = [*graph.inputs, *graph.outputs]
    taken.update(v.name for v in fixed if v.name)
    skip = set(fixed)
    later: list[ir.Value] = []
    for inner in graphs(model):
        values = [*inner.inputs, *inner.initializers.values()]
        values += [o for n in inner for o in n.outputs if o.name != "" or o.uses()]
        for value in values:
            if value in skip:
                continue
            if not value.name or value.name in taken:
                later.append(value)
            else:
                taken.add(value.name)
    for value in dict.fromkeys(later):
        value.name = _free(value.name or "value", taken)
    called: set[str] = set()
    for node in [n for g in graphs(model) for n in g]:
        if node.name in called:
            node.name = _free(node.name or "node", called)
        elif node.name:
            called.add(node.name)


def _free(base: str, taken: set[str]) -> str:
    n = 1
    while f"{base}_{n}" in taken:
        n += 1
    name = f"{base}_{n}"
    taken.add(name)
    return name
