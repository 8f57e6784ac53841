"""The verifier: whether a model in the IR is one that ONNX defines and effc can take.

It judges the structure (names, definitions, order, operators, attributes, element types) and what a
weight's numbers must satisfy; shapes of intermediate values are `effc.core.shapes`' business.
Source: https://onnx.ai/onnx/repo-docs/IR.html and the operator schemas of the onnx package.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx
import onnx_ir as ir

from effc.core.check_graph import (
    Scope,
    check_definitions,
    check_interface,
    check_order,
    late_inputs,
    subgraphs_of,
)
from effc.core.check_node import check_node
from effc.core.check_ops import quoted, where
from effc.core.check_weights import check_numbers
from effc.core.errors import FrontendError
from effc.core.schema import opset_range

MAX_NODES = 1_000_000
MAX_DEPTH = 16  # of subgraphs: inference and inlining recurse into them
MIN_IR_VERSION = 3


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
    scopes = [Scope(model.graph, frozenset({id(model.graph)}), 1, "", model.opset_imports)]
    for key, function in model.functions.items():
        scopes.append(
            Scope(
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
        check_interface(scope, main=scope.graph is model.graph, empty=allow_empty)
        check_definitions(scope)
        check_order(scope)
        types: dict[int, ir.DataType] = {}
        for node in scope.graph:
            check_node(node, scope, model, allow_domains, types)
            for graph in subgraphs_of(node):
                scopes.append(
                    Scope(
                        graph,
                        scope.visible | {id(graph)},
                        scope.depth + 1,
                        f" in a subgraph of {where(node)}",
                        scope.opsets,
                    )
                )
        if not allow_nonfinite:
            check_numbers(scope)


def normalize(model: ir.Model) -> None:
    """Give every node a unique name and sort every graph topologically, in place.

    Names that are already unique stay, and so does an order that is already right. Absent inputs at the
    end of a node are cut off: they mean nothing, and onnxruntime fuses no node that has one.
    """
    taken: set[str] = set()
    nodes = list(model.graph.all_nodes())
    for function in model.functions.values():
        nodes += function.all_nodes()
    given = {n.name for n in nodes if n.name}
    counts: dict[str, int] = {}
    for node in nodes:
        while node.inputs and node.inputs[-1] is None:
            node.resize_inputs(len(node.inputs) - 1)
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
        if next(late_inputs(graph), None) is not None:
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
