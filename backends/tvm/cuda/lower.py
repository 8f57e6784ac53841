"""From the IR to a Program of kernels for a GPU: the same groups and plans, other kernels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import onnx_ir as ir

from effc.backends.tvm import compose
from effc.backends.tvm.cuda import anchors_int8 as _integers  # noqa: F401  registers its operators
from effc.backends.tvm.cuda.anchors import find_anchor
from effc.backends.tvm.cuda.kernel import elementwise
from effc.backends.tvm.grouping import (
    Group,
    Op,
    is_constant,
    op_node,
    problem,
)
from effc.backends.tvm.grouping import _read as read_op
from effc.backends.tvm.isa import Isa
from effc.backends.tvm.lower import Lowering, lower_ops, shaped
from effc.backends.tvm.ops.contract import Refused
from effc.backends.tvm.plan import concat_offsets, slice_offset
from effc.backends.tvm.program import Kernel, Program
from effc.backends.tvm.signature import signature
from effc.core.errors import Problem
from effc.core.integers import DOMAIN

_VECTOR = 16  # bytes that kernels read at once: nothing may begin elsewhere


def lower(model: ir.Model, gpu: Isa, cores: int, target: str = "this target") -> Program:
    """Lower `model` (static shapes, main graph only) for `gpu` with `cores` multiprocessors.

    UnsupportedOpError lists every node that can't be lowered.
    """
    model = shaped(model)
    gpu = replace(gpu, lanes=channel_block(model))
    ops, problems = _read(model, cores)
    return lower_ops(model, ops, problems, gpu, _GpuLowering, target)


def channel_block(model: ir.Model) -> int:
    """Channels of a block: 16 bytes of the narrowest numbers that are multiplied."""
    multiplied = [
        n for n in model.graph if n.op_type in ("Conv", "ConvTranspose", "MatMul", "Gemm")
    ]
    if any(n.domain == DOMAIN for n in multiplied):
        return 16
    half = ir.DataType.FLOAT16
    return 8 if any(v is not None and v.dtype == half for n in multiplied for v in n.inputs) else 4


def _read(model: ir.Model, cores: int) -> tuple[list[Op], list[Problem]]:
    """The operators with their kernels for GPUs, and every node that has none."""
    ops: list[Op] = []
    problems: list[Problem] = []
    for node in model.graph:
        try:
            ops += _op(model, node, cores)
        except Refused as refused:
            problems.append(problem(node, refused))
    return ops, problems


def _op(model: ir.Model, node: ir.Node, cores: int) -> Iterator[Op]:
    graph = any(
        a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        for a in node.attributes.values()
    )
    if not graph and not all(is_constant(v) for v in node.outputs):
        info = op_node(node, model.opset_imports.get(node.domain, 0))
        anchor = find_anchor(info, cores)
        if anchor is not None:
            yield Op(node, info, tuple(node.outputs), anchor, None, 0, anchor.runtime)
            return
    for op in read_op(node, model.opset_imports.get(node.domain, 0)):
        if op.anchor is not None:
            raise Refused("it has no kernel for GPUs here", "leave it out, or build for a CPU")
        yield op


class _GpuLowering(Lowering):
    """Kernels for GPUs in the places of those for CPUs."""

    def copy(self, source: str, target: str, template: str) -> None:
        out, data = self.program.tensors[target], self.program.tensors[source]

        def make(name: str) -> Kernel:
            return elementwise(name, out, [data], lambda loads: [loads[0]])

        self.call(("copy", out, data), make, (target, source), (), template)

    def _map(self, group: Group) -> None:
        names = [self.read(v) for v in group.operands]
        types = [self.program.tensors[n] for n in names]
        out = self.plan.type(group.outputs[0])
        body = compose.body(group)

        def make(name: str) -> Kernel:
            return compose.located(group.ops[-1], lambda: elementwise(name, out, types, body))

        template = "elementwise"
        if any(op.rule is not None and op.rule.kind != "elementwise" for op in group.ops):
            template = group.ops[-1].info.op_type.lower()
        result = self.made(group.outputs[0])
        self.call(signature(group, [out], types), make, (result, *names), group.ops, template)

    def _slice(self, op: Op) -> bool:
        source = op.reads[0]
        if is_constant(source):
            return False
        offset = slice_offset(op, self.plan.type(source), self.plan.type(op.outputs[0]))
        return offset is not None and offset % _VECTOR == 0 and super()._slice(op)

    def _place_concats(self, groups: Sequence[Group]) -> None:
        super()._place_concats([g for g in groups if not g.is_concat or self._in_place(g.ops[0])])

    def _concat(self, op: Op) -> None:
        if self._in_place(op):
            super()._concat(op)
        else:
            self._map(Group([op]))

    def _in_place(self, op: Op) -> bool:
        """Whether the parts of a concatenation lie in it in pieces that begin where kernels can read."""
        offsets = concat_offsets(op, self.plan.type(op.outputs[0]))
        return all(o is not None and o % _VECTOR == 0 for o in offsets)
