"""Transposes that meet their inverse behind elementwise operators."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from effc.core.ir import add_const, attr, const, is_op, replaceable
from effc.core.rewrite import bypass, erase

# only the first input has the layout; the others are limits or absent
_UNARY = frozenset(
    {
        *(
            "Relu",
            "LeakyRelu",
            "Sigmoid",
            "Tanh",
            "Clip",
            "HardSwish",
            "HardSigmoid",
            "Elu",
            "Selu",
        ),
        *("Celu", "Softplus", "Softsign", "ThresholdedRelu", "Exp", "Log", "Sqrt", "Abs", "Neg"),
        *("Erf", "Gelu", "Mish", "Reciprocal", "Floor", "Ceil", "Round", "Sign", "Cast", "Not"),
        *("Identity", "Sin", "Cos", "IsNaN"),
    }
)
_NARY = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Mean", "Where", "PRelu"),
        *("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "And", "Or", "Xor"),
    }
)
_AXIS = frozenset({"Concat", "Softmax", "LogSoftmax"})
_ELEMENTWISE = _UNARY | _NARY | _AXIS
_MOST_NODES = 64
_MOST_BYTES = 1 << 20


def _data(node: ir.Node) -> list[ir.Value | None]:
    """The inputs whose axes are those of the output."""
    return (
        list(node.inputs) if node.op_type in _NARY or node.op_type == "Concat" else [node.inputs[0]]
    )


def _constant(value: ir.Value) -> bool:
    tensor = None if value.is_graph_input() else value.const_value
    return tensor is not None and (tensor.size == 1 or tensor.nbytes <= _MOST_BYTES)


def _permute(node: ir.Node, perm: tuple[int, ...]) -> None:
    """Let `node` work on axes permuted by `perm`: its axis, its constants, the shape of its output."""
    rank = len(perm)
    if node.op_type in _AXIS:
        axis = attr(node, "axis", -1) % rank
        node.attributes["axis"] = ir.AttrInt64("axis", perm.index(axis))
    graph = node.graph
    for i, value in enumerate(_data(node)):
        if value is None or not _constant(value) or graph is None:
            continue
        array = const(value)
        if array is None or (array.size == 1 and node.op_type != "Concat"):
            continue
        full = array.reshape((1,) * (rank - array.ndim) + array.shape)
        node.replace_input_with(i, add_const(graph, f"{value.name}_t", full.transpose(perm)))
    for output in node.outputs:
        if output.shape is not None:
            output.shape = ir.Shape([output.shape[axis] for axis in perm])


def _fits(node: ir.Node, rank: int) -> bool:
    """Whether the output of `node` surely has this rank, and no constant has more."""
    if len(node.outputs) != 1 or node.outputs[0].shape is None:
        return False
    if len(node.outputs[0].shape) != rank:
        return False
    for value in _data(node):
        if value is None:
            return False
        if _constant(value):
            tensor = value.const_value
            if tensor is None or len(tensor.shape) > rank:
                return False
            if node.op_type == "Concat" and len(tensor.shape) != rank:
                return False
    return True


def _inverse(perm: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argsort(perm))


class CancelTransposes:
    """Transpose<p'>(f(Transpose<p>(x), c)) -> f(x, c transposed by p'), where p' undoes p

    f is a region of elementwise nodes, Concat and Softmax, of which nothing but the root is read from
    outside. Declines at over 64 nodes, and at constants of over 1 MiB.
    """

    roots: ClassVar[frozenset[str]] = frozenset({"Transpose"})

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        perm, root = attr(node, "perm"), node.inputs[0]
        if perm is None or root is None or not is_op(root.producer(), *_ELEMENTWISE):
            return None
        if not replaceable(node.outputs[0], root):
            return None
        region = _region(node, root, tuple(perm))
        if region is None:
            return None
        leaves: dict[ir.Node, None] = {}
        for member in region:
            for i, value in enumerate(_data(member)):
                producer = value.producer() if value is not None else None
                if producer is not None and producer not in region:
                    leaves[producer] = None
                    member.replace_input_with(i, producer.inputs[0])
            _permute(member, tuple(perm))
        twins = [u.node for u in root.uses() if u.node is not node]
        around = bypass(node, root)
        for twin in twins:
            if twin not in region and twin.graph is not None:
                around += bypass(twin, root)
        for leaf in leaves:
            around += erase(leaf)
        return [*around, *region]


def _region(node: ir.Node, root: ir.Value, perm: tuple[int, ...]) -> dict[ir.Node, None] | None:
    undo, rank = _inverse(perm), len(perm)
    top = root.producer()
    if top is None:
        return None
    region: dict[ir.Node, None] = {top: None}
    work, met = [top], False
    while work:
        member = work.pop()
        if len(region) > _MOST_NODES or member.graph is not node.graph or not _fits(member, rank):
            return None
        for value in _data(member):
            if value is None:
                return None
            if _constant(value):
                continue
            producer = value.producer()
            if producer is None:
                return None
            if is_op(producer, "Transpose") and attr(producer, "perm") == undo:
                met = True
            elif producer not in region:
                if not is_op(producer, *_ELEMENTWISE):
                    return None
                region[producer] = None
                work.append(producer)
    if not met:
        return None
    for member in region:
        output = member.outputs[0]
        if output.is_graph_output():
            return None
        for user, index in output.uses():
            if user in region and index < len(_data(user)):
                continue
            twin = is_op(user, "Transpose") and attr(user, "perm") == perm
            if output is not root or not twin or not replaceable(user.outputs[0], root):
                return None
            if user is not node and user.outputs[0].is_graph_output():
                return None
    return region


class SinkTransposes:
    """f(Transpose<p>(x), Transpose<p>(y), c) -> Transpose<p>(f(x, y, c transposed back))

    where nothing else reads the transposes, so that at least one less is left.
    """

    roots: ClassVar[frozenset[str]] = _NARY | {"Concat"}

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        perm: tuple[int, ...] | None = None
        transposes: dict[ir.Node, None] = {}
        for value in _data(node):
            if value is None:
                return None
            if _constant(value):
                continue
            producer = value.producer()
            if producer is None or not is_op(producer, "Transpose"):
                return None
            mine = attr(producer, "perm")
            if mine is None or (perm is not None and mine != perm) or value.is_graph_output():
                return None
            if any(u.node is not node for u in value.uses()):
                return None
            perm, transposes[producer] = mine, None
        graph, out = node.graph, node.outputs[0]
        if len(transposes) < 2 or perm is None or graph is None or not _fits(node, len(perm)):
            return None
        for i, value in enumerate(_data(node)):
            producer = value.producer() if value is not None else None
            if producer is not None and producer in transposes:
                node.replace_input_with(i, producer.inputs[0])
        shape, kind, uses = out.shape, out.type, list(out.uses())
        _permute(node, _inverse(perm))
        below = ir.node("Transpose", [out], {"perm": perm})
        new = below.outputs[0]
        new.type, new.shape = kind, shape
        graph.insert_after(node, [below])
        if out.is_graph_output():
            new.name, out.name = out.name, f"{out.name}_t"
            for i, value in enumerate(graph.outputs):
                if value is out:
                    graph.outputs[i] = new
        for user, index in uses:
            user.replace_input_with(index, new)
        around = [below, *(u.node for u in uses)]
        for transpose in transposes:
            around += erase(transpose)
        return around
