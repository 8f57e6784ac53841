"""The model at further shapes of one input: what its constants say of one shape only is written anew.

The passes have folded shape arithmetic into constants, for the shape that they saw. Which axes depend on
the open ones follows from one sweep; the target of a Reshape and the sizes of a Resize then are rules
instead of numbers, and the model is written out for each shape. That the rules are those that the source
meant is not assumed: the package's answers at those shapes are compared with the source's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import onnx_ir as ir

from effc.core.errors import FrontendError, Problem, UnsupportedOpError
from effc.core.ir import add_const, const, is_op, shape_of, subgraphs
from effc.core.shapes import infer_node, infer_shapes

Open = dict[str, tuple[bool, ...]]  # of each value by name: which axes depend on the open ones

_REMEDY = "leave sizes out, and build one function for each size (--backend-option function=..., join=...)"
_ENUMERATE = (
    "name the sizes that the model takes instead of a range: --backend-option sizes=A;B;..."
)
_BROADCASTING = frozenset(
    "Add Sub Mul Div Pow Max Min Sum Mean Where PRelu And Or Xor Equal Greater Less GreaterOrEqual"
    " LessOrEqual Mod Concat".split()
)


class Opened:
    """`model`, whose input `name` may have other extents along `axes`."""

    def __init__(self, model: ir.Model, name: str, axes: Sequence[int], target: str) -> None:
        self.model, self.name, self.target = model, name, target
        self.usual = {str(v.name): shape_of(v) for v in _values(model.graph)}
        self.opset = model.graph.opset_imports.get("", 23)
        self.open: Open = {}
        problems = self._sweep(frozenset(axes))
        if problems:
            raise UnsupportedOpError(target, problems)

    def _sweep(self, axes: frozenset[int]) -> list[Problem]:
        """Fill `open`: the shapes of a copy, with unknown extents at the open axes, are inferred."""
        copy = self.model.clone()
        problems: list[Problem] = []
        _forget(copy.graph)
        given = next(v for v in copy.graph.inputs if v.name == self.name)
        given.shape = ir.Shape([None if i in axes else d for i, d in enumerate(given.shape or ())])
        for node in copy.graph:
            try:
                reason = self._visit(node)
            except FrontendError as error:
                reason = str(error)
            if reason:
                problems.append(_problem(node, reason))
                for value in node.outputs:  # as it is, so that later nodes are looked at, too
                    usual = self.usual.get(str(value.name))
                    value.shape = None if usual is None else ir.Shape(usual)
        for value in _values(copy.graph):
            dims = value.shape or ()
            self.open[str(value.name)] = tuple(not isinstance(d, int) for d in dims)
        return problems

    def _visit(self, node: ir.Node) -> str:
        """Infer one node; why it can't be open, "" where it can."""
        if subgraphs(node):
            return "it has branches, which are converted for one shape"
        moving = any(_is_open(v) for v in node.inputs if v is not None)
        if moving and is_op(node, "Reshape"):
            return self._visit_reshape(node)
        if moving and is_op(node, "Resize") and _sizes(node) is not None:
            return self._visit_resize(node)
        if moving and node.op_type in _BROADCASTING and (reason := _fixed_beside_open(node)):
            return reason
        infer_node(node, self.opset)
        for value in node.outputs:
            usual = self.usual.get(str(value.name))
            if value.shape is None and usual is not None:
                value.shape = ir.Shape([None] * len(usual))
        return ""

    def _visit_reshape(self, node: ir.Node) -> str:
        source, out = self.usual[_name(node.inputs[0])], self.usual[_name(node.outputs[0])]
        dims = node.inputs[0].shape if node.inputs[0] is not None else None
        if source is None or out is None or dims is None:
            return "the shapes around it are not known"
        rule = _rule(source, out, [not isinstance(d, int) for d in dims])
        if rule is None:
            return (
                f"it makes {list(out)} of {list(source)}, which mixes extents that depend on the input's "
                "size with others"
            )
        node.outputs[0].shape = ir.Shape(
            [None if depends else d for d, (depends, _, _) in zip(out, rule, strict=True)]
        )
        return ""

    def _visit_resize(self, node: ir.Node) -> str:
        source, out = self.usual[_name(node.inputs[0])], self.usual[_name(node.outputs[0])]
        dims = node.inputs[0].shape if node.inputs[0] is not None else None
        if source is None or out is None or dims is None:
            return "the shapes around it are not known"
        shape: list[int | None] = []
        for before, after, dim in zip(source, out, dims, strict=True):
            if not isinstance(dim, int) and after % before and before % after:
                return f"it resizes {before} to {after}: no factor that other sizes share"
            shape.append(after if isinstance(dim, int) else None)
        node.outputs[0].shape = ir.Shape(shape)
        return ""

    def at(self, shape: tuple[int, ...]) -> ir.Model:
        """The model for `shape` of the open input; UnsupportedOpError where its nodes don't fit."""
        made = self.model.clone()
        _forget(made.graph)
        next(v for v in made.graph.inputs if v.name == self.name).shape = ir.Shape(shape)
        for node in made.graph:
            try:
                self._write(made.graph, node)
                infer_node(node, self.opset)
            except (FrontendError, ValueError) as error:
                reason = f"at {self.name} {list(shape)} its inputs do not fit: {_short(error)}"
                raise UnsupportedOpError(
                    self.target, [_problem(node, reason, _ENUMERATE)]
                ) from error
        try:
            infer_shapes(made)
        except FrontendError as error:
            raise UnsupportedOpError(self.target, [Problem(
                self.name, "input", f"at {list(shape)}: {_short(error)}", _ENUMERATE,
            )]) from error  # fmt: skip
        return made

    def _write(self, graph: ir.Graph, node: ir.Node) -> None:
        """Bring the constants of `node` to the shapes of its inputs."""
        if not node.inputs or node.inputs[0] is None:
            return
        flags = self.open.get(_name(node.inputs[0]), ())
        if not any(flags):
            return
        source = self.usual[_name(node.inputs[0])] or ()
        out = self.usual.get(_name(node.outputs[0])) or ()
        now = shape_of(node.inputs[0])
        if is_op(node, "Reshape") and now is not None:
            rule = _rule(source, out, flags)
            assert rule is not None  # _visit_reshape
            target = [
                math.prod(now[a:b]) // math.prod(rest) if depends else d
                for d, (depends, (a, b), rest) in zip(out, rule, strict=True)
            ]
            shape = add_const(graph, f"{node.name}/shape", np.array(target, np.int64))
            node.replace_input_with(1, shape)
            node.attributes.pop("allowzero", None)
        elif is_op(node, "Resize") and now is not None and (sizes := _sizes(node)) is not None:
            chosen = [a % len(now) for a in node.attributes.get_ints("axes", range(len(now)))]
            wanted = [
                int(Fraction(out[a], source[a]) * now[a]) if flags[a] else int(s)
                for a, s in zip(chosen, sizes, strict=True)
            ]
            node.replace_input_with(3, add_const(graph, f"{node.name}/sizes", np.array(wanted)))


def _rule(
    source: Sequence[int], out: Sequence[int], flags: Sequence[bool]
) -> list[tuple[bool, tuple[int, int], tuple[int, ...]]] | None:
    """For each axis of `out`: whether it depends on open axes, on which axes [a, b) of `source` (their
    product), and the extents beside it to divide that by. None where no such rule is."""
    found: list[tuple[bool, tuple[int, int], tuple[int, ...]]] = []
    for (a, b), (c, d) in _blocks(source, out):
        depends = any(flags[a:b])
        extents = list(out[c:d])
        if not depends:
            found += [(False, (a, b), ())] * (d - c)
            continue
        wide = [i for i, e in enumerate(extents) if e != 1] or [0]
        if not extents:
            return None
        # what stands behind the open extent must come out of the extents that stay
        last_open = max(i for i in range(a, b) if flags[i])
        rest = tuple(extents[i] for i in wide[1:])
        if math.prod(source[last_open + 1 : b]) % math.prod(rest):
            return None
        found += [(i == wide[0], (a, b), rest) for i in range(d - c)]
    return found


def _blocks(
    source: Sequence[int], out: Sequence[int]
) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """The finest runs of axes on both sides that hold the same number of elements, from the left."""
    found, a, c = [], 0, 0
    while a < len(source) or c < len(out):
        b, d = min(a + 1, len(source)), min(c + 1, len(out))
        left, right = math.prod(source[a:b]), math.prod(out[c:d])
        while left != right and (b < len(source) or d < len(out)):
            if (left < right and b < len(source)) or d == len(out):
                left, b = left * source[b], b + 1
            else:
                right, d = right * out[d], d + 1
        if b == len(source) or d == len(out):  # ones at the end belong to the last run
            b, d = len(source), len(out)
        found.append(((a, b), (c, d)))
        a, c = b, d
    return found


def _fixed_beside_open(node: ir.Node) -> str:
    """Why an operand that was made for one size can't stand beside one that is open."""
    inputs = [v for v in node.inputs if v is not None and v.shape is not None]
    rank = max(len(v.shape or ()) for v in inputs)
    joined = None
    if is_op(node, "Concat"):
        joined = node.attributes.get_int("axis", 0) % rank
    for axis in range(rank):
        if axis == joined:
            continue
        at = [
            (v, v.shape[axis - rank + len(v.shape)])
            for v in inputs
            if v.shape is not None and axis - rank + len(v.shape) >= 0
        ]
        if any(not isinstance(d, int) for _, d in at):
            fixed = next((v for v, d in at if isinstance(d, int) and d != 1), None)
            if fixed is not None:
                what = "its constant" if const(fixed) is not None else "its input"
                return f"{what} {fixed.name!r} {list(fixed.shape or ())} is made for one size"
    return ""


def _sizes(node: ir.Node) -> np.ndarray | None:
    """The constant sizes of a Resize."""
    if len(node.inputs) < 4 or node.inputs[3] is None:
        return None
    found = const(node.inputs[3])
    return None if found is None or not found.size else found


def _values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *(o for n in graph for o in n.outputs if o.name)]


def _forget(graph: ir.Graph) -> None:
    for node in graph:
        for value in node.outputs:
            value.shape = None


def _is_open(value: ir.Value) -> bool:
    return value.shape is not None and any(not isinstance(d, int) for d in value.shape)


def _name(value: ir.Value | None) -> str:
    return "" if value is None else str(value.name)


def _short(error: Exception) -> str:
    """What onnx says, without the node, which stands before it."""
    return str(error).rpartition("shapes do not fit: ")[2].removeprefix("[ShapeInferenceError] ")


def _problem(node: ir.Node, reason: str, remedy: str = _REMEDY) -> Problem:
    source = str(node.metadata_props.get("source", ""))
    return Problem(str(node.name), node.op_type, f"sizes can't be open: {reason}", remedy, source)
