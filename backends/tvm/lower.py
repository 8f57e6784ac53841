"""From the IR to a Program: groups, layouts, then kernels and their calls over placed memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from effc.backends.tvm import compose
from effc.backends.tvm.anchors import Anchor
from effc.backends.tvm.arena import plan_arena
from effc.backends.tvm.grouping import (
    Group,
    Op,
    fuse,
    is_constant,
    is_lookup,
    problem,
    read_ops,
    type_of,
)
from effc.backends.tvm.inplace import reuse_operands
from effc.backends.tvm.isa import Isa
from effc.backends.tvm.kernels.choice import Blocking
from effc.backends.tvm.kernels.epilogue import IDENTITY, Epilogue
from effc.backends.tvm.layout import PLAIN, Layout, TensorType
from effc.backends.tvm.ops.contract import OpNode, Refused
from effc.backends.tvm.ops.injective import injective
from effc.backends.tvm.ops.lookup import lookup
from effc.backends.tvm.ops.resize import resize_kernel
from effc.backends.tvm.ops.strided import strided
from effc.backends.tvm.plan import (
    LayoutPlan,
    concat_offsets,
    moves_for_free,
    plan_layouts,
    slice_axis,
    slice_offset,
)
from effc.backends.tvm.program import Array, Call, Kernel, Packing, Program, Site, View
from effc.backends.tvm.signature import Signature, signature
from effc.core.errors import Problem, UnsupportedOpError
from effc.core.ir import const, shape_of
from effc.core.shapes import infer_shapes


def lower(model: ir.Model, isa: Isa, target: str = "this target") -> Program:
    """Lower `model` (static shapes, main graph only) for `isa`; the model itself is left alone.

    UnsupportedOpError lists every node that can't be lowered. Constants are packed, kernels of the same
    structure are made once, and every intermediate tensor has its place in the arena.
    """
    model = shaped(model)
    ops, problems = read_ops(model)
    return lower_ops(model, ops, problems, isa, Lowering, target)


def shaped(model: ir.Model) -> ir.Model:
    """A copy of `model` in which every shape is known."""
    model = model.clone()
    if any(shape_of(v) is None for n in model.graph for v in n.outputs if v.name):
        infer_shapes(model)
    return model


def lower_ops(
    model: ir.Model,
    ops: list[Op],
    problems: list[Problem],
    isa: Isa,
    make: Callable[[LayoutPlan, Isa], Lowering],
    target: str,
) -> Program:
    """Fuse, plan and lower the operators that were read from the shaped `model`; `make` prints the kernels.

    UnsupportedOpError lists `problems` and those found on the way.
    """
    inputs = [v for v in model.graph.inputs if not is_constant(v)]
    groups, refused = _plannable(fuse(ops, model.graph.outputs), isa)
    problems = [*problems, *refused]
    if problems:
        problems += make(LayoutPlan(isa.lanes), isa).try_all(groups)
        raise UnsupportedOpError(target, _in_order(model, problems))
    plan = plan_layouts(groups, inputs, model.graph.outputs, isa)
    plan.annotate()
    lowering = make(plan, isa)
    for value in inputs:
        lowering.input(value)
    problems = lowering.groups(groups)
    if problems:
        raise UnsupportedOpError(target, _in_order(model, problems))
    for value in model.graph.outputs:
        lowering.output(value)
    program = lowering.program
    reuse_operands(program)
    arena = plan_arena(program)
    program.offsets, program.arena_bytes, program.arena_bound = (
        arena.offsets,
        arena.bytes,
        arena.bound,
    )
    return program


def _plannable(groups: Sequence[Group], isa: Isa) -> tuple[list[Group], list[Problem]]:
    """The groups whose anchor takes some layout, and the problems of the others."""
    good, problems = [], []
    for group in groups:
        op = group.ops[0]
        try:
            if op.anchor is not None:
                op.anchor.wants(op.info, isa)
            good.append(group)
        except Refused as refused:
            problems.append(problem(op.node, refused))
    return good, problems


def _in_order(model: ir.Model, problems: Sequence[Problem]) -> list[Problem]:
    order = {n.name or (n.outputs[0].name or ""): i for i, n in enumerate(model.graph)}
    unique = {(p.node, p.op): p for p in problems}
    return sorted(unique.values(), key=lambda p: order.get(p.node, 0))


class Lowering:
    """The program so far, and which tensor of it holds which value in which layout."""

    def __init__(self, plan: LayoutPlan, isa: Isa) -> None:
        self.plan, self.isa = plan, isa
        self.program = Program(isa=isa)
        self.names: dict[tuple[ir.Value, Layout], str] = {}
        self.kernels: dict[Signature, Kernel] = {}
        self.aliased: dict[ir.Value, View] = {}
        self.node = ""  # whose calls are being made, for conversions

    # names and tensors

    def tensor(self, name: str, tensor: TensorType) -> str:
        """A new tensor called `name`, or `name~1`, ... where that is taken."""
        unique, n = name, 0
        while unique in self.program.tensors:
            n += 1
            unique = f"{name}~{n}"
        self.program.tensors[unique] = tensor
        return unique

    def input(self, value: ir.Value) -> None:
        name = self.tensor(value.name or "input", type_of(value))
        self.names[value, PLAIN] = name
        self.program.inputs += (name,)

    def made(self, value: ir.Value) -> str:
        """The new tensor for a value in the layout in which it is made."""
        tensor = self.plan.type(value)
        suffix = f"@NCHW{tensor.layout.block}c" if tensor.layout.block else ""
        name = self.tensor(f"{value.name}{suffix}", tensor)
        self.names[value, tensor.layout] = name
        if value in self.aliased:
            self.program.views[name] = self.aliased[value]
        return name

    def constant(self, name: str, array: Array) -> str:
        """A constant in physical order; equal arrays are kept once."""
        unique = self.tensor(name, TensorType(array.shape, array.dtype.name))
        self.program.constants[unique] = array
        return unique

    def read(self, value: ir.Value, layout: Layout | None = None) -> str:
        """The tensor that holds `value` in `layout` (by default as it was made), converted if need be."""
        if is_constant(value):
            return self._read_constant(value)
        made = self.plan.layouts.get(value, PLAIN)
        layout = made if layout is None else layout
        found = self.names.get((value, layout))
        if found is not None:
            return found
        source = self.names[value, made]
        tensor = replace(self.program.tensors[source], layout=layout)
        suffix = f"@NCHW{layout.block}c" if layout.block else ""
        name = self.tensor(f"{value.name}{suffix}", tensor)
        self.names[value, layout] = name
        if moves_for_free(self.program.tensors[source], layout):
            self.program.views[name] = View(source)
        else:
            self.copy(source, name, "layout")
        return name

    def _read_constant(self, value: ir.Value) -> str:
        found = self.names.get((value, PLAIN))
        if found is None:
            array = const(value)
            assert array is not None
            found = self.constant(value.name or "constant", np.asarray(array))
            self.names[value, PLAIN] = found
        return found

    # calls

    def call(
        self,
        key: Signature,
        make: Callable[[str], Kernel],
        args: Sequence[str],
        ops: Sequence[Op],
        template: str,
    ) -> None:
        kernel = self.kernels.get(key)
        if kernel is None:
            kernel = make(f"effc_k{len(self.kernels)}_{template.replace(':', '_')}")
            self.kernels[key] = kernel
            self.program.kernels[kernel.name] = kernel
        names = tuple(dict.fromkeys(op.name for op in ops)) or (self.node,)
        self.program.calls.append(Call(kernel.name, tuple(args), names, template))

    def copy(self, source: str, target: str, template: str) -> None:
        """A call that copies one tensor into another, whatever their layouts."""
        out, data = self.program.tensors[target], self.program.tensors[source]

        def make(name: str) -> Kernel:
            return injective(name, self.isa, [out], [data], lambda loads: [loads[0]])

        self.call(("copy", out, data), make, (target, source), (), template)

    # groups

    def groups(self, groups: Sequence[Group]) -> list[Problem]:
        """Lower all groups in order; the problems met."""
        self._place_concats(groups)
        problems = []
        for group in groups:
            try:
                self.group(group)
            except compose.RefusedAt as at:
                problems.append(problem(at.op.node, at.refused))
                for value in group.outputs:
                    self.made(value)
        return problems

    def try_all(self, groups: Sequence[Group]) -> list[Problem]:
        """The problems of groups that stand in a model that can't be lowered anyway."""
        for group in groups:
            for value in (*group.operands, *group.outputs):
                if not is_constant(value) and (value, PLAIN) not in self.names:
                    self.names[value, PLAIN] = self.tensor(value.name or "value", type_of(value))
        return self.groups(groups)

    def group(self, group: Group) -> None:
        op = group.ops[0]
        self.node = op.name
        if op.anchor is not None:
            self._anchored(group)
        elif group.is_view and self._view(group):
            return
        elif len(group.ops) == 1 and slice_axis(op) is not None and self._slice(op):
            return
        elif group.is_concat:
            self._concat(op)
        else:
            self._map(group)

    def _view(self, group: Group) -> bool:
        """Row-major data under another shape: no call. False where the bytes lie differently."""
        source, value = group.operands[0], group.outputs[0]
        made = self.plan.layouts.get(source, PLAIN)
        if self.plan.layouts.get(value, PLAIN) != PLAIN:
            return False
        if not is_constant(source) and not moves_for_free(self.plan.type(source), PLAIN):
            if (source, PLAIN) not in self.names:
                return False
        base = self.read(source, PLAIN if made != PLAIN else None)
        self.program.views[self.made(value)] = View(base)
        return True

    def _slice(self, op: Op) -> bool:
        source, value = op.reads[0], op.outputs[0]
        if is_constant(source):
            return False
        offset = slice_offset(op, self.plan.type(source), self.plan.type(value))
        if offset is None:
            return False
        self.program.views[self.made(value)] = View(self.read(source), offset)
        return True

    def _anchored(self, group: Group) -> None:
        op = group.ops[0]
        anchor = op.anchor
        assert anchor is not None
        outputs = [self.plan.type(v) for v in group.outputs]
        wanted = [self.plan.wanted(group, v) for v in op.reads]
        runtime = [self.read(v, w) for v, w in zip(op.reads, wanted, strict=True)]
        others = compose.epilogue_operands(group)
        loaded = [self.read(v) for v in others]
        node = self._typed(op, runtime, outputs)
        operands = [self.program.tensors[n] for n in (*runtime, *loaded)]

        def build(blocking: Blocking | None, name: str) -> Kernel:
            epilogue = IDENTITY
            if len(group.ops) > 1:
                types = tuple(self.program.tensors[n] for n in loaded)
                epilogue = Epilogue(types, compose.epilogue(group, others))
            cut = replace(node, blocking=blocking)
            return compose.located(op, lambda: anchor.build(cut, name, self.isa, epilogue))

        def pack(blocking: Blocking | None) -> tuple[Array, ...]:
            cut = replace(node, blocking=blocking)
            return compose.located(op, lambda: anchor.pack(cut, self.isa))

        packed = [
            self.constant(f"{op.name}.{anchor.template}.{i}", a) for i, a in enumerate(pack(None))
        ]
        results = [self.made(v) for v in group.outputs]
        first = len(runtime) - anchor.beside
        args = (*results, *runtime[:first], *packed, *runtime[first:], *loaded)
        key = signature(group, outputs, operands)
        self.call(key, lambda name: build(None, name), args, group.ops, anchor.template)
        if packed:
            self._note_packing(packed[0], node, anchor)
            kernel = self.kernels[key].name
            behind = "+".join(o.info.op_type for o in group.ops[1:])
            site = Site(kernel, lambda: anchor.tunes(node, self.isa), behind, build)
            site = self.program.sites.setdefault(kernel, site)
            site.packs.append((tuple(packed), pack))

    def _note_packing(self, name: str, node: OpNode, anchor: Anchor) -> None:
        """How the first packed constant came about, for who wants to know where elements went."""
        index = anchor.weights[0] if anchor.weights else -1
        weight = node.constants.get(index)
        if weight is None or weight.dtype != np.float32:
            return

        def pack(array: Array, blocking: Blocking | None) -> Array:
            constants = {**node.constants, index: array}
            return anchor.pack(replace(node, blocking=blocking, constants=constants), self.isa)[0]

        self.program.packings[name] = Packing(weight, pack)

    def _typed(self, op: Op, runtime: Sequence[str], outputs: Sequence[TensorType]) -> OpNode:
        """The node with the planned layouts in its types."""
        inputs = list(op.info.inputs)
        for i, name in zip(op.runtime, runtime, strict=True):
            inputs[i] = self.program.tensors[name]
        named = [replace(t, shape=o.shape) for t, o in zip(outputs, op.info.outputs, strict=False)]
        return replace(op.info, inputs=tuple(inputs), outputs=tuple(named))

    def _map(self, group: Group) -> None:
        operands = group.operands
        out = self.plan.type(group.outputs[0])
        alike = out.layout if is_lookup(group.ops[0]) else None  # its kernel takes no other
        names = [self.read(v, None if is_constant(v) else alike) for v in operands]
        types = [self.program.tensors[n] for n in names]

        def make(name: str) -> Kernel:
            op, kernel = group.ops[0], None
            if len(group.ops) == 1 and is_lookup(op):
                kernel = compose.located(
                    op, lambda: lookup(op.info, name, self.isa, out, types[0], types[1])
                )
            elif len(group.ops) == 1 and len(types) == 1 and not strided(out, types[0], body):
                kernel = resize_kernel(op.info, name, self.isa, out, types[0])
            return kernel or injective(name, self.isa, [out], types, body)

        body = compose.body(group)
        template = "elementwise"
        if any(op.rule is not None and op.rule.kind != "elementwise" for op in group.ops):
            template = group.ops[-1].info.op_type.lower()
        result = self.made(group.outputs[0])
        self.call(signature(group, [out], types), make, (result, *names), group.ops, template)

    # concatenation without copies

    def _place_concats(self, groups: Sequence[Group]) -> None:
        """Let producers write straight into the concatenation that reads them, where it lies in pieces."""
        producer = {v: g for g in groups for v in g.outputs}
        for group in reversed(groups):
            if not group.is_concat:
                continue
            op, out = group.ops[0], group.outputs[0]
            tensor = self.plan.type(out)
            offsets = concat_offsets(op, tensor)
            if any(o is None for o in offsets):
                continue
            whole = self.made(out)
            for value, offset in zip(op.node.inputs, offsets, strict=True):
                storage = self._storage(value, producer)
                if storage is None or self.plan.type(storage).layout != tensor.layout:
                    continue
                if storage not in self.aliased and offset is not None:
                    self.aliased[storage] = View(whole, offset)

    def _storage(self, value: ir.Value | None, producer: dict[ir.Value, Group]) -> ir.Value | None:
        """The value whose call fills the memory of `value`, through views of all of it."""
        while value is not None:
            group = producer.get(value)
            if group is None or value.is_graph_output():
                return None
            if not group.is_view:
                sliced = len(group.ops) == 1 and slice_axis(group.ops[0]) is not None
                return None if sliced else value
            source = group.operands[0]
            if PLAIN not in (self.plan.layouts.get(source), self.plan.layouts.get(value)):
                return None
            if self.plan.type(source).bytes != self.plan.type(value).bytes:
                return None
            value = source
        return None

    def _concat(self, op: Op) -> None:
        value = op.outputs[0]
        out = self.plan.type(value)
        offsets = concat_offsets(op, out)
        if any(o is None for o in offsets):
            self._map(Group([op]))
            return
        whole = self.names[value, out.layout]
        for source, offset in zip(op.node.inputs, offsets, strict=True):
            if source is None or offset is None:
                continue
            name = self.read(source)
            if self.program.place(name) == self._shifted(whole, offset):
                continue
            tensor = replace(self.program.tensors[name], layout=out.layout)
            piece = self.tensor(f"{whole}[{offset}]", tensor)
            self.program.views[piece] = View(whole, offset)
            self.copy(name, piece, "concat")

    def _shifted(self, name: str, offset: int) -> tuple[str, int]:
        root, begin = self.program.place(name)
        return root, begin + offset

    # what the caller sees

    def output(self, value: ir.Value) -> None:
        """The graph's output as a storage of its own, which the caller will provide."""
        self.node = value.name or "output"
        name = self.read(value, PLAIN if not is_constant(value) else None)
        program = self.program
        root, offset = program.place(name)
        taken = {program.root(n) for n in (*program.inputs, *program.outputs)}
        whole = offset == 0 and program.tensors[root].bytes == program.tensors[name].bytes
        if root in taken or root in program.constants or not whole:
            copied = self.tensor(f"{value.name}~out", type_of(value))
            self.copy(name, copied, "copy")
            name = copied
        program.outputs += (name,)
        program.public[name] = value.name or name
