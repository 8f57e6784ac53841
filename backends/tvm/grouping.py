"""Fusion groups: which nodes become one kernel.

An *anchored* group is an anchor (convolution, product, reduction, ...) and the elementwise operators
that follow it in registers. A *map* group is rules only: every output element is one expression.
A value inside a group never exists in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from effc.backends.tvm.anchors import Anchor, find_anchor
from effc.backends.tvm.layout import TensorType
from effc.backends.tvm.ops.contract import (
    OpNode,
    Refused,
    RuleEntry,
    find_rule,
    operands,
)
from effc.core.errors import Problem
from effc.core.integers import DOMAIN
from effc.core.ir import const, shape_of
from effc.core.source import place_of

# a chain of so many operators may be tried as one epilogue (gelu by erf is five, hard-swish four)
_LOOKAHEAD = 8
_LONGEST = 24  # operators in one map group: code grows with them
_LARGE = 4096  # elements from which on one more call is cheaper than moving them one by one
_VIEWS = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"}


@dataclass(eq=False, slots=True)
class Op:
    """One node, or one output of a node whose outputs are independent (Split)."""

    node: ir.Node
    info: OpNode  # logical shapes; plain layouts
    outputs: tuple[ir.Value, ...]
    anchor: Anchor | None = None
    rule: RuleEntry | None = None
    output: int = 0  # which output of the rule this is
    runtime: tuple[int, ...] = ()  # inputs read at run time, large constants among them

    @property
    def name(self) -> str:
        return self.node.name or (self.node.outputs[0].name or self.node.op_type)

    @property
    def reads(self) -> tuple[ir.Value, ...]:
        """The values read at run time, in order."""
        return tuple(v for i in self.runtime if (v := self.node.inputs[i]) is not None)


@dataclass(eq=False, slots=True)
class Group:
    """Operators that one kernel computes, in order; the last one makes the output."""

    ops: list[Op] = field(default_factory=list)

    @property
    def anchor(self) -> Op | None:
        return self.ops[0] if self.ops[0].anchor is not None else None

    @property
    def outputs(self) -> tuple[ir.Value, ...]:
        return self.ops[-1].outputs

    @property
    def operands(self) -> tuple[ir.Value, ...]:
        """Values from outside, each once, in the order in which the operators read them."""
        inside = {v for op in self.ops for v in op.outputs}
        found: dict[ir.Value, None] = {}
        for op in self.ops:
            found.update((v, None) for v in op.reads if v not in inside)
        return tuple(found)

    @property
    def is_view(self) -> bool:
        """Whether the output is the operand with another shape: row-major, the same bytes."""
        return all(op.rule is not None and op.info.op_type in _VIEWS for op in self.ops)

    @property
    def is_concat(self) -> bool:
        return self.ops[0].info.op_type == "Concat" and len(self.ops) == 1


def type_of(value: ir.Value) -> TensorType:
    """The plain type of a value; Refused where its shape or type is unknown."""
    shape = shape_of(value)
    if shape is None or value.dtype is None:
        raise Refused(
            f"{value.name!r} has the shape {value.shape} and the type {value.dtype}",
            "give every input a static shape (--shape INPUT=1,3,224,224)",
        )
    return TensorType(shape, value.dtype.numpy().name)


def is_constant(value: ir.Value | None) -> bool:
    """Whether the value is known now."""
    return const(value) is not None


def op_node(node: ir.Node, opset: int) -> OpNode:
    """The node as rules and kernels see it. Raises Refused."""
    constants = {}
    for i, value in enumerate(node.inputs):
        array = const(value)
        if array is not None:
            constants[i] = array
    return OpNode(
        op_type=node.op_type,
        domain=node.domain,
        name=node.name or "",
        attributes={
            name: tuple(a.value) if isinstance(a.value, (list, tuple)) else a.value
            for name, a in node.attributes.items()
        },
        inputs=tuple(None if v is None else type_of(v) for v in node.inputs),
        outputs=tuple(type_of(v) for v in node.outputs if v.name),
        constants=constants,
        opset=opset,
    )


def read_ops(model: ir.Model) -> tuple[list[Op], list[Problem]]:
    """The operators of the main graph in order, and every node that has neither rule nor kernel."""
    ops: list[Op] = []
    problems: list[Problem] = []
    for node in model.graph:
        try:
            ops += _read(node, model.opset_imports.get(node.domain, 0))
        except Refused as refused:
            problems.append(problem(node, refused))
    return ops, problems


def problem(node: ir.Node, refused: Refused) -> Problem:
    """The refusal, located."""
    return Problem(
        node=node.name or (node.outputs[0].name or ""),
        op=node.op_type if not node.domain else f"{node.domain}::{node.op_type}",
        reason=refused.reason,
        remedy=refused.remedy or "leave this part of the model to the caller",
        source=place_of(node),
    )


def _read(node: ir.Node, opset: int) -> Iterator[Op]:
    if any(
        a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        for a in node.attributes.values()
    ):
        raise Refused(
            "control flow has no static program",
            "export the model with its conditions and loops unrolled",
        )
    info = op_node(node, opset)
    if all(is_constant(v) for v in node.outputs):
        return
    anchor = find_anchor(info)
    if anchor is not None:
        yield Op(node, info, tuple(node.outputs), anchor, None, 0, anchor.runtime)
        return
    rule = find_rule(info)
    if rule is None:
        raise Refused(
            "this backend has no kernel for it",
            "replace the operator by others, or cut the model before it",
        )
    for i in rule.static:
        if info.has(i) and i not in info.constants and not rule.by_shape:
            info.const(i, "a parameter of the operator")
    reads = tuple(
        i for i in operands(info) if i not in info.constants or np.size(info.constants[i]) > 1
    )
    for k, value in enumerate(v for v in node.outputs if v.name):
        yield Op(node, info, (value,), None, rule, k, reads)


def fuse(ops: Sequence[Op], outputs: Sequence[ir.Value]) -> list[Group]:
    """Partition `ops` into groups, in an order in which they can run."""
    return _Fusion(ops, outputs).groups()


class _Fusion:
    def __init__(self, ops: Sequence[Op], outputs: Sequence[ir.Value]) -> None:
        self.ops = ops
        self.position = {op: i for i, op in enumerate(ops)}
        self.kept = set(outputs)
        self.readers: dict[ir.Value, list[Op]] = {}
        for op in ops:
            for value in dict.fromkeys(op.reads):
                self.readers.setdefault(value, []).append(op)
        self.homes: dict[Op, list[Group]] = {}  # the groups that compute an operator

    def groups(self) -> list[Group]:
        groups: list[Group] = []
        # later anchors first: of two convolutions that are added, the one that runs last adds
        for op in reversed(self.ops):
            if op.anchor is not None:
                group = Group([op])
                self.homes[op] = [group]
                if op.anchor.fuses and len(op.outputs) == 1:
                    group.ops += self._epilogue(op)
                self.homes.update((member, [group]) for member in group.ops)
                groups.append(group)
        for op in reversed(self.ops):
            if op in self.homes:
                continue
            targets = self._targets(op)
            for target in targets:
                target.ops.insert(0, op)
            if not targets:
                targets = [Group([op])]
                groups += targets
            self.homes[op] = targets
        return sorted(groups, key=lambda g: self.position[g.ops[-1]])

    def _epilogue(self, anchor: Op) -> list[Op]:
        """The longest run of elementwise operators after which one value is left."""
        chain: list[Op] = []
        inside, live, best = {anchor.outputs[0]}, {anchor.outputs[0]}, 0
        result = anchor.info.outputs[0]
        members = {anchor}
        while len(chain) < best + _LOOKAHEAD and not live & self.kept:
            waiting = {r for v in live for r in self.readers.get(v, ())} - members
            if not waiting:
                break
            op = min(waiting, key=self.position.__getitem__)
            if op in self.homes or not _elementwise(op, result.shape, inside):
                break
            chain.append(op)
            members.add(op)
            inside.add(op.outputs[0])
            live.add(op.outputs[0])
            live = {v for v in live if v in self.kept or set(self.readers.get(v, ())) - members}
            same = op.info.outputs[0].dtype == result.dtype
            if live <= {op.outputs[0]} and (same or _quantizes(anchor, op)):
                best = len(chain)
        return chain[:best]

    def _targets(self, op: Op) -> list[Group]:
        """The map groups that can all compute `op` for themselves, so that it is never stored."""
        value = op.outputs[0]
        readers = self.readers.get(value, [])
        if value in self.kept or not readers or op.info.op_type == "Concat" or op.rule is None:
            return []
        targets = list({id(g): g for r in readers for g in self.homes[r]}.values())
        if any(g.anchor or g.is_concat or len(g.ops) >= _LONGEST for g in targets):
            return []
        if any(is_lookup(o) for g in targets for o in g.ops):
            return []
        if _alone(op) or (_turns(op) and not all(_only_moves(o) for g in targets for o in g.ops)):
            return []
        if not _only_moves(op) and any(_turns(o) for g in targets for o in g.ops):
            return []
        size = math.prod(type_of(value).shape)
        wanted = sum(math.prod(g.ops[-1].info.outputs[g.ops[-1].output].shape) for g in targets)
        several = any(
            r.rule is not None and r.rule.kind == "map" and r.rule.cost > 2 for r in readers
        )
        if len(targets) > 1 and (wanted > size or op.rule.cost > 1 or op.info.op_type in _VIEWS):
            return []
        if op.rule.cost > 0 and (wanted > size or several):
            return []
        return targets


def _alone(op: Op) -> bool:
    """Whether the operator's own kernel is so much faster that it pays to store the result."""
    if is_lookup(op):
        return True
    return op.info.op_type in ("Resize", "Upsample") and op.info.attr("mode") == "linear"


def _quantizes(anchor: Op, op: Op) -> bool:
    """Whether `op` makes bytes of reals and the anchor's kernel stores whatever its epilogue makes."""
    assert anchor.anchor is not None
    return anchor.anchor.any_dtype and op.info.op_type == "QuantizeLinear"


def is_lookup(op: Op) -> bool:
    """Whether `op` is effc.integer::Lookup: 64 bytes at once alone, one load an element inside of others."""
    return op.info.op_type == "Lookup" and op.info.domain == DOMAIN


def _only_moves(op: Op) -> bool:
    return op.rule is not None and op.rule.kind == "map" and op.rule.cost == 0


def _turns(op: Op) -> bool:
    """A Transpose that changes the innermost axis: tiles in registers as a copy, one element at a
    time inside of a larger expression."""
    shape, perm = op.info.outputs[0].shape, op.info.attr("perm") or ()
    if (
        op.info.op_type != "Transpose"
        or math.prod(shape) < _LARGE
        or max(shape) == math.prod(shape)
    ):
        return False
    return not perm or perm[-1] != len(shape) - 1


def _elementwise(op: Op, shape: tuple[int, ...], inside: set[ir.Value]) -> bool:
    """Whether `op` works on elements of `shape` one by one, reading those of `inside` in place."""
    return (
        op.rule is not None
        and op.rule.kind == "elementwise"
        and len(op.info.outputs) == 1
        and op.info.outputs[0].shape == shape
        and all(type_of(v).shape == shape for v in op.reads if v in inside)
    )
