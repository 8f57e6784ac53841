"""Passes written against onnx-graphsurgeon's `gs.Graph`, for those who know it: an adapter, not a pass.

    @dataclass(frozen=True, slots=True)
    class DropIdentity(GraphSurgeonPass):
        id = "drop-identity"
        effect = Effect.EXACT

        def edit(self, graph: gs.Graph, ctx: PassContext) -> int: ...

The way there and back is lossless: what `gs.Graph` can't hold is put back afterwards (metadata,
documentation, overridable initializers) or refused with its node (see `_refuse_what_gets_lost`).
"""

from __future__ import annotations

import contextlib
import sys
from abc import abstractmethod
from typing import TYPE_CHECKING

import onnx_ir as ir

from effc.core.errors import ConfigError, FrontendError, InvariantError, PassError
from effc.core.ir import graphs
from effc.core.passinfra import Pass, PassContext
from effc.core.shapes import infer_shapes

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

_LISTS = (ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS)
# of these graphsurgeon says "unsupported, skipping" and goes on without the attribute
_UNKNOWN = (
    ir.AttributeType.TYPE_PROTO, ir.AttributeType.TYPE_PROTOS, ir.AttributeType.SPARSE_TENSOR,
    ir.AttributeType.SPARSE_TENSORS, ir.AttributeType.TENSORS, ir.AttributeType.GRAPHS,
)  # fmt: skip


class GraphSurgeonPass(Pass):
    """A pass whose `edit` changes a `gs.Graph`. Unused nodes are removed and the rest sorted after it."""

    @abstractmethod
    def edit(self, graph: gs.Graph, ctx: PassContext) -> int:
        """Change `graph` in place and return how many rewrites were made; after 0 it is thrown away."""

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        try:
            import onnx_graphsurgeon as gs
        except ImportError as error:
            raise ConfigError(
                f"pass {self.id} is written for onnx-graphsurgeon, which can't be imported: {error}",
                hint="pip install onnx-graphsurgeon",
            ) from error
        _refuse_what_gets_lost(model, self.id)
        ir.external_data.load_to_model(model)
        with contextlib.redirect_stdout(
            sys.stderr
        ):  # graphsurgeon logs to stdout, which is the job's
            graph = gs.import_onnx(ir.to_proto(model))
            rewrites = self.edit(graph, ctx)
            if not rewrites:
                return 0
            graph.cleanup()
            edited = ir.from_proto(gs.export_onnx(graph, do_type_check=False))
        edited.graph.sort()  # stable, where gs.Graph.toposort also moves what is in order
        _restore(model, edited)
        model.graph = edited.graph
        model.functions.clear()
        model.functions.update(edited.functions)
        try:
            infer_shapes(model)
        except FrontendError as error:
            raise InvariantError(
                f"pass {self.id} left a graph that is not valid: {error}", pass_id=self.id
            ) from error
        return rewrites


def _refuse_what_gets_lost(model: ir.Model, pass_id: str) -> None:
    """Raise PassError at the first thing that `gs.Graph` drops and that can't be put back."""
    holders = [*graphs(model), *(f.graph for f in model.functions.values())]
    for graph in holders:
        for node in graph:
            for attribute in node.attributes.values():
                empty = attribute.type in _LISTS and not attribute.is_ref() and not attribute.value
                if empty or attribute.type in _UNKNOWN:
                    what = "an empty list" if empty else f"of type {attribute.type.name}"
                    raise PassError(
                        f"pass {pass_id} works on a gs.Graph, which can't hold attribute"
                        f" {attribute.name!r} of node {node.name!r} ({node.op_type}): it is {what}",
                        hint="write the pass against onnx_ir, or run it after the pass that removes the node",
                        pass_id=pass_id,
                    )
            for value in node.outputs:
                _refuse_type(value, pass_id)
        for value in graph.inputs:
            _refuse_type(value, pass_id)


def _refuse_type(value: ir.Value, pass_id: str) -> None:
    if value.type is not None and not isinstance(value.type, ir.TensorType):
        raise PassError(
            f"pass {pass_id} works on a gs.Graph, which can't hold the type {value.type} of {value.name!r}",
            hint="write the pass against onnx_ir",
            pass_id=pass_id,
        )


def _restore(before: ir.Model, after: ir.Model) -> None:
    """Put back what `gs.Graph` has no place for, wherever its owner still stands."""
    for old_graph, new_graph in _pairs(before, after):
        new_graph.metadata_props.update(old_graph.metadata_props)
        new_graph.doc_string = old_graph.doc_string
        initializers = new_graph.initializers
        for position, value in enumerate(old_graph.inputs):
            overridable = value.name in old_graph.initializers and value.name in initializers
            if (
                overridable
                and value.name is not None
                and not initializers[value.name].is_graph_input()
            ):
                new_graph.inputs.insert(
                    min(position, len(new_graph.inputs)), initializers[value.name]
                )
        old_values = {v.name: v for v in _values(old_graph)}
        for value in _values(new_graph):
            old_value = old_values.get(value.name)
            if old_value is not None:
                value.metadata_props.update(old_value.metadata_props)
                value.doc_string = old_value.doc_string
        old_nodes = {_key(n): n for n in old_graph}
        for node in new_graph:
            old_node = old_nodes.get(_key(node))
            if old_node is not None:
                node.metadata_props.update(old_node.metadata_props)
                node.doc_string = old_node.doc_string
    for identifier, function in after.functions.items():
        if identifier in before.functions:
            function.metadata_props.update(before.functions[identifier].metadata_props)


def _pairs(before: ir.Model, after: ir.Model) -> list[tuple[ir.Graph, ir.Graph]]:
    """The main graphs, and the subgraphs that hang on the same node by the same attribute."""
    pairs = [(before.graph, after.graph)]
    for old_graph, new_graph in pairs:  # grows while it is walked
        old_nodes = {_key(n): n for n in old_graph}
        for node in new_graph:
            old_node = old_nodes.get(_key(node))
            for name, attribute in node.attributes.items():
                if attribute.type is ir.AttributeType.GRAPH and old_node is not None:
                    old = old_node.attributes.get(name)
                    if old is not None and old.type is ir.AttributeType.GRAPH:
                        pairs.append((old.as_graph(), attribute.as_graph()))
    return pairs


def _key(node: ir.Node) -> tuple[str, str, str | None]:
    """What makes a node the same one: its operator and its first named output (names are unique)."""
    return node.domain, node.op_type, next((v.name for v in node.outputs if v.name), None)


def _values(graph: ir.Graph) -> list[ir.Value]:
    inner = (v for n in graph for v in n.outputs if v.name)
    return [*graph.inputs, *graph.initializers.values(), *inner]
