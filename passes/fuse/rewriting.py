"""What the fusing passes share: running rules over every graph and leaving no debris behind."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from effc.core.ir import Array, add_const, const, graphs, is_op, replace, sole_use
from effc.core.passinfra import Pass, PassContext
from effc.core.rewrite import Rule, apply, erase


class RewritePass(Pass):
    """A pass that is nothing but rules, applied to every graph of the model to a fixpoint."""

    @abstractmethod
    def rules(self, opset: int) -> Iterable[Rule]:
        """The rules for a model of this version of the standard operator set."""

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        opset = model.opset_imports.get("", 0)
        count = sum(apply(graph, self.rules(opset)) for graph in list(graphs(model)))
        if count:
            for graph in graphs(model):
                for value in list(graph.initializers.values()):
                    drop_value(value)
            name_apart(model)
        return count


def graph_of(node: ir.Node) -> ir.Graph:
    """The graph that holds `node`; nodes of functions have none (functions are inlined at import)."""
    graph = node.graph
    if not isinstance(graph, ir.Graph):
        raise TypeError(f"node {node.name!r} is not in a graph")
    return graph


def known(value: ir.Value | None) -> Array | None:
    """The array that `value` always holds, up to broadcasting.

    Looks through Identity, Cast, CastLike and Expand, so that a bias `Expand(CastLike(0, x), shape)`
    (torch's exporter without its optimizer) is the scalar 0. CastLike casts only where the type of
    its pattern is known; the caller casts to the type that it needs anyway.
    """
    array = const(value)
    if array is not None or value is None:
        return array
    node = value.producer()
    if not is_op(node, "Identity", "Cast", "CastLike", "Expand"):
        return None
    assert node is not None  # for the type checker: is_op refuses None
    array = known(node.inputs[0])
    if array is None or node.op_type in ("Identity", "Expand"):
        return array
    dtype = value.dtype
    if node.op_type == "CastLike" and dtype is None:
        pattern = node.inputs[1]
        dtype = pattern.dtype if pattern is not None else None
        if dtype is None:
            return array
    elif dtype is None:
        dtype = ir.DataType(node.attributes.get_int("to", ir.DataType.FLOAT.value))
    return array.astype(dtype.numpy())


def drop_value(value: ir.Value) -> None:
    """Remove the initializer or the producer of `value` if nobody reads it any more."""
    if value.uses() or value.is_graph_output() or value.is_graph_input():
        return
    producer = value.producer()
    if producer is not None:
        erase(producer)
    elif value.is_initializer() and value.graph is not None and value.name is not None:
        value.graph.initializers.pop(value.name, None)


def substitute(old: ir.Node, new: ir.Node) -> None:
    """Put `new` in the place of `old`: its first result takes name, type, shape and readers of old's."""
    out, result = old.outputs[0], new.outputs[0]
    if new.name is None:
        new.name = old.name
    new.metadata_props.update(old.metadata_props)
    if new.graph is None:
        graph_of(old).insert_before(old, new)
    name = out.name
    result.type = out.type
    result.shape = out.shape
    if out.is_graph_output():
        replace(out, result)  # takes over the name
    else:
        out.name = f"{name}.replaced"
        ir.convenience.replace_all_uses_with(out, result)
        result.name = name
    erase(old)


def set_input(node: ir.Node, index: int, value: ir.Value | None) -> None:
    """Replace one input, appending absent ones before it where needed, and drop what that kept alive."""
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    old = node.inputs[index]
    node.replace_input_with(index, value)
    if old is not None and old is not value:
        drop_value(old)


def set_const(node: ir.Node, index: int, array: Array, name: str) -> None:
    """Let input `index` of `node` be `array`.

    An initializer that nobody else reads is overwritten and keeps its name; a shared one is left to
    its other readers, and `array` becomes a new initializer called `name` (numbered where taken).
    """
    old = node.inputs[index] if index < len(node.inputs) else None
    if (
        old is not None
        and old.is_initializer()
        and const(old) is not None
        and sole_use(old) is node
    ):
        old.const_value = ir.tensor(np.asarray(array, order="C"), name=old.name)
        old.shape = ir.Shape(array.shape)
        old.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        return
    set_input(node, index, add_const(graph_of(node), name, array))


def result_name(node: ir.Node) -> str:
    """A name for things made from `node`: its own, or that of its first result."""
    return node.name or node.outputs[0].name or node.op_type


def rank_of(value: ir.Value | None) -> int | None:
    """The rank of `value`, from its shape or from the operator that makes it; None when unknown."""
    if value is None:
        return None
    if value.shape is not None:
        return len(value.shape)
    node = value.producer()
    if is_op(node, "Conv", "ConvTranspose"):
        assert node is not None
        weight = node.inputs[1]
        return len(weight.shape) if weight is not None and weight.shape is not None else None
    if is_op(node, "Gemm"):
        return 2
    if is_op(node, "BatchNormalization", "Relu", "Identity", "Clip", "Sigmoid"):
        assert node is not None
        return rank_of(node.inputs[0])
    return None


def split_const(node: ir.Node) -> tuple[Array, ir.Value, int] | None:
    """A binary node with one constant operand: (constant, the other operand, index of the constant)."""
    if len(node.inputs) != 2:
        return None
    for index in (1, 0):
        array = known(node.inputs[index])
        other = node.inputs[1 - index]
        if array is not None and other is not None and known(other) is None:
            return array, other, index
    return None


def name_apart(model: ir.Model) -> None:
    """Give every value and node a name of its own, in place, by renaming those that come later.

    Inputs and outputs of the main graph keep theirs.
    """
    nodes: set[str] = set()
    fixed = {*model.graph.inputs, *model.graph.outputs}
    taken = {v.name for v in fixed}
    every = list(graphs(model))
    reserved = {name for graph in every for name in graph.initializers}

    def settle(value: ir.Value) -> None:
        if value in fixed or not value.name:
            return
        if value.name in taken:
            n = 1
            while (unique := f"{value.name}_{n}") in taken or unique in reserved:
                n += 1
            value.name = unique  # an initializer's entry in its graph follows
        taken.add(value.name)

    for graph in every:
        for value in graph.inputs:
            settle(value)
        for node in graph:
            if node.name in nodes:
                n = 1
                while f"{node.name}_{n}" in nodes:
                    n += 1
                node.name = f"{node.name}_{n}"
            if node.name:
                nodes.add(node.name)
            for value in node.outputs:
                settle(value)
        for value in list(graph.initializers.values()):
            if not value.is_graph_input():
                settle(value)
