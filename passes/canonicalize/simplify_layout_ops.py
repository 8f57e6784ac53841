"""simplify-layout-ops: reshapes and transposes compose, cancel, and take one form."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from effc.core.ir import add_const, attr, const, graphs, is_op, replaceable, sole_use
from effc.core.passinfra import Effect, Pass, PassContext
from effc.core.rewrite import Rule, apply, bypass, erase
from effc.passes.canonicalize.cancel_transposes import CancelTransposes, SinkTransposes
from effc.passes.canonicalize.remove_identity import DropIdentity

_RESHAPES = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten"})
_BROADCASTING = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Mean", "Where", "Mod", "PRelu"),
        *("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "And", "Or", "Xor"),
    }
)


@dataclass(frozen=True, slots=True)
class SimplifyLayoutOps(Pass):
    """One form for what only moves elements about, and as little of it as possible.

        Squeeze(x, a), Unsqueeze(x, a), Flatten(x)   ->   Reshape(x, [d0, d1, ...])
        Reshape(Reshape(x, s), t)                    ->   Reshape(x, t)
        Transpose<p>(Transpose<q>(x))                ->   Transpose<q[p]>(x)
        Transpose(x) that moves only extents of 1    ->   Reshape(x, t)
        Transpose<p'>(f(Transpose<p>(x), c))         ->   f(x, c transposed),  p' undoes p
        f(Transpose<p>(x), Transpose<p>(y))          ->   Transpose<p>(f(x, y))
        Add(x, Expand(b, s)) of the shape of Add(x, b)   ->   Add(x, b)
        Concat(Split(x)), Concat(Concat(x, y), z)    ->   x, Concat(x, y, z)

    with f elementwise, Concat or Softmax. A target is written in numbers, at most one of them -1 for a
    dynamic extent; declines where two extents are dynamic, where an extent is 0, and where a graph
    output would lose its node. Moves no transpose that does not meet its inverse.
    """

    id: ClassVar[str] = "simplify-layout-ops"
    effect: ClassVar[Effect] = Effect.EXACT

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        return sum(apply(graph, RULES) for graph in list(graphs(model)))


def _target(shape: Iterable[int | ir.SymbolicDim] | None) -> tuple[int, ...] | None:
    """The target of a Reshape to `shape`; None where it needs more than numbers and one -1."""
    if shape is None:
        return None
    target = tuple(d if isinstance(d, int) else -1 for d in shape)
    return None if 0 in target or target.count(-1) > 1 else target


def _reshape(node: ir.Node, x: ir.Value, target: Sequence[int]) -> list[ir.Node] | None:
    """Put Reshape(x, target) in the place of `node`."""
    graph, old = node.graph, node.outputs[0]
    if graph is None:
        return None
    shape = add_const(graph, f"{old.name}_shape", np.array(target, np.int64))
    new = ir.node("Reshape", [x, shape], name=node.name)
    new.outputs[0].type, new.outputs[0].shape = old.type, old.shape
    graph.insert_before(node, [new])
    return [new, *bypass(node, new.outputs[0])]


class ReshapeInNumbers:
    """Reshape, Squeeze, Unsqueeze, Flatten -> Reshape(x, [d0, d1, ...])"""

    roots: ClassVar[frozenset[str]] = _RESHAPES

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        x, target = node.inputs[0], _target(node.outputs[0].shape)
        if x is None or target is None:
            return None
        if node.op_type == "Reshape":
            have = const(node.inputs[1], 1024)
            if have is not None and tuple(have.tolist()) == target:
                if attr(node, "allowzero", 0):
                    del node.attributes["allowzero"]
                    return ()
                return None
        return _reshape(node, x, target)


class MergeReshapes:
    """Reshape(Reshape(x, s), t) -> Reshape(x, t)"""

    roots: ClassVar[frozenset[str]] = frozenset({"Reshape"})

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        value = node.inputs[0]
        inner = value.producer() if value is not None else None
        if value is None or inner is None or not is_op(inner, *_RESHAPES):
            return None
        target, x = const(node.inputs[1], 1024), inner.inputs[0]
        if target is None or x is None or (target == 0).any():
            return None
        node.replace_input_with(0, x)
        return erase(inner)


class SqueezeUnsqueezed:
    """Squeeze(Unsqueeze(x, a), a) -> x, also where extents are dynamic"""

    roots: ClassVar[frozenset[str]] = frozenset({"Squeeze"})

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        value = node.inputs[0]
        inner = value.producer() if value is not None else None
        if inner is None or not is_op(inner, "Unsqueeze") or len(node.inputs) < 2:
            return None
        mine, its = const(node.inputs[1], 1024), const(inner.inputs[1], 1024)
        x = inner.inputs[0]
        if x is None or mine is None or its is None or not np.array_equal(mine, its):
            return None
        return bypass(node, x) if replaceable(node.outputs[0], x) else None


class MergeTransposes:
    """Transpose<p>(Transpose<q>(x)) -> Transpose<q[p]>(x)"""

    roots: ClassVar[frozenset[str]] = frozenset({"Transpose"})

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        value = node.inputs[0]
        inner = value.producer() if value is not None else None
        if value is None or inner is None or not is_op(inner, "Transpose"):
            return None
        p, q, x = _perm(node), _perm(inner), inner.inputs[0]
        if p is None or q is None or x is None:
            return None
        together = [q[i] for i in p]
        if together == list(range(len(p))) and replaceable(node.outputs[0], x):
            return bypass(node, x)
        node.attributes["perm"] = ir.AttrInt64s("perm", together)
        node.replace_input_with(0, x)
        return [node, *erase(inner)]


def _perm(node: ir.Node) -> tuple[int, ...] | None:
    perm = attr(node, "perm")
    if perm is not None:
        return tuple(perm)
    x = node.inputs[0]
    if x is None or x.shape is None:
        return None
    return tuple(reversed(range(len(x.shape))))


class TransposeToReshape:
    """Transpose(x) -> Reshape(x, t) where only axes of extent 1 change places"""

    roots: ClassVar[frozenset[str]] = frozenset({"Transpose"})

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        x, perm = node.inputs[0], _perm(node)
        if x is None or x.shape is None or perm is None or perm == tuple(range(len(perm))):
            return None
        dims = list(x.shape)
        moved = [axis for axis in perm if dims[axis] != 1]
        target = _target(dims[axis] for axis in perm)
        if moved != sorted(moved) or target is None:
            return None
        return _reshape(node, x, target)


class DropExpand:
    """f(x, Expand(y, s)) -> f(x, y) where f broadcasts y to the same shape anyway"""

    roots: ClassVar[frozenset[str]] = _BROADCASTING

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        for index, value in enumerate(node.inputs):
            expand = value.producer() if value is not None else None
            if value is None or expand is None or not is_op(expand, "Expand"):
                continue
            source = expand.inputs[0]
            if source is None or (node.op_type == "PRelu" and index == 0):
                continue
            others = [v for i, v in enumerate(node.inputs) if i != index and v is not None]
            if not _implied(source.shape, value.shape, [v.shape for v in others]):
                continue
            node.replace_input_with(index, source)
            return erase(expand)
        return None


def _implied(
    source: ir.Shape | None, expanded: ir.Shape | None, others: Sequence[ir.Shape | None]
) -> bool:
    """Whether every extent of `expanded` is one of `source`, or of another operand of the broadcast."""
    if source is None or expanded is None:
        return False
    known = [tuple(reversed(s)) for s in (source, *others) if s is not None]
    for axis, want in enumerate(reversed(expanded)):
        if not isinstance(want, int) and want.value is None:
            return False
        if not any(len(dims) > axis and dims[axis] == want for dims in known):
            return False
    return True


class JoinSplit:
    """Concat(Split(x)) -> x, all parts in order along the same axis"""

    roots: ClassVar[frozenset[str]] = frozenset({"Concat"})

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        first = node.inputs[0]
        split = first.producer() if first is not None else None
        if split is None or not is_op(split, "Split") or first is None or first.shape is None:
            return None
        rank, x = len(first.shape), split.inputs[0]
        if x is None or attr(node, "axis") % rank != attr(split, "axis", 0) % rank:
            return None
        if list(node.inputs) != list(split.outputs) or not replaceable(node.outputs[0], x):
            return None
        return bypass(node, x)


class MergeConcats:
    """Concat(Concat(x, y), z) -> Concat(x, y, z), where nothing else reads the inner one"""

    roots: ClassVar[frozenset[str]] = frozenset({"Concat"})

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        for index, value in enumerate(node.inputs):
            inner = value.producer() if value is not None else None
            if value is None or inner is None or not is_op(inner, "Concat"):
                continue
            if sole_use(value) is not node or value.shape is None or inner.graph is not node.graph:
                continue
            rank = len(value.shape)
            if attr(inner, "axis") % rank != attr(node, "axis") % rank:
                continue
            inputs = [*node.inputs[:index], *inner.inputs, *node.inputs[index + 1 :]]
            node.resize_inputs(len(inputs))
            for i, v in enumerate(inputs):
                node.replace_input_with(i, v)
            return [node, *erase(inner)]
        return None


RULES: tuple[Rule, ...] = (
    DropIdentity(),
    ReshapeInNumbers(),
    MergeReshapes(),
    SqueezeUnsqueezed(),
    MergeTransposes(),
    TransposeToReshape(),
    CancelTransposes(),
    SinkTransposes(),
    DropExpand(),
    JoinSplit(),
    MergeConcats(),
)
