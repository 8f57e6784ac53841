"""Layout planning over the whole graph: which values are stored in blocks of channels.

Anchors want what they want; maps and concatenations follow whoever surrounds them; what the caller sees is
row-major. The plan minimizes the bytes moved by layout changes: a sweep over the groups decides each
by its neighbours, and whole regions of undecided groups are tried both ways, until nothing changes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from effc.backends.tvm.grouping import Group, Op, is_constant, is_lookup, type_of
from effc.backends.tvm.isa import Isa
from effc.backends.tvm.layout import PLAIN, Layout, TensorType

CALL_BYTES = 16384  # bytes that could have been moved in the time that one more call takes
METADATA = "effc.layout"
_SWEEPS = 8
# map operators that leave the channel of an element alone, so that a vector of channels stays one
_CHANNELWISE = {
    "AveragePool", "CenterCropPad", "Expand", "Identity", "Lookup", "Pad", "Resize", "Slice", "Tile",
    "Upsample",
}  # fmt: skip


@dataclass(slots=True)
class LayoutPlan:
    """`layouts[v]` is the layout in which v is made; `wants[group][v]` that in which a group reads it."""

    block: int
    layouts: dict[ir.Value, Layout] = field(default_factory=dict)
    wants: dict[int, dict[ir.Value, Layout]] = field(default_factory=dict)

    def type(self, value: ir.Value) -> TensorType:
        """The type of a value as it is made."""
        plain = type_of(value)
        return TensorType(plain.shape, plain.dtype, self.layouts.get(value, PLAIN))

    def wanted(self, group: Group, value: ir.Value) -> Layout:
        """The layout in which `group` reads `value`; by default that in which it was made."""
        found = self.wants.get(id(group), {}).get(value)
        return self.layouts.get(value, PLAIN) if found is None else found

    def annotate(self) -> None:
        """Write the decision on the values' metadata: `effc.layout` = "plain" or "NCHW16c"."""
        for value, layout in self.layouts.items():
            text = f"NCHW{layout.block}c" if layout.block else "plain"
            value.metadata_props[METADATA] = text


def plan_layouts(
    groups: Sequence[Group], inputs: Iterable[ir.Value], outputs: Iterable[ir.Value], isa: Isa
) -> LayoutPlan:
    """Decide the layout of every value that is stored."""
    return _Planner(groups, inputs, outputs, isa).run()


def moves_for_free(tensor: TensorType, layout: Layout) -> bool:
    """Whether the bytes of `tensor` are also those of the same tensor in `layout` (or begin with them)."""
    if tensor.layout == layout:
        return True
    n, c, *spatial = tensor.shape
    block = tensor.layout.block or layout.block
    if math.prod(spatial) != 1:
        return False
    return c % block == 0 or (n == 1 and layout == PLAIN)


def slice_begin(op: Op) -> int | None:
    """Where a Split or Slice of one axis with step 1 begins on that axis; None for anything else."""
    axis = slice_axis(op)
    if axis is None:
        return None
    if op.info.op_type == "Split":
        sizes = [t.shape[axis] for t in op.info.outputs]
        return sum(sizes[: op.output])
    begin = int(op.info.constants[1].reshape(-1)[0])
    extent = op.info.inputs[0].shape[axis] if op.info.inputs[0] is not None else 0
    return min(max(begin + extent if begin < 0 else begin, 0), extent)


def slice_axis(op: Op) -> int | None:
    """The only axis that a Split or Slice with step 1 cuts; None for anything else."""
    source, result = op.info.inputs[0], op.info.outputs[op.output]
    if op.info.op_type not in ("Split", "Slice") or source is None:
        return None
    if op.info.op_type == "Split":
        return int(op.info.attr("axis", 0)) % len(source.shape)
    steps = op.info.constants.get(4)
    if steps is not None and any(int(s) != 1 for s in steps.reshape(-1)):
        return None
    cut = [a for a, (n, m) in enumerate(zip(source.shape, result.shape, strict=True)) if n != m]
    if len(cut) != 1 or 1 not in op.info.constants:
        return None
    axes = op.info.constants.get(3)
    named = list(axes.reshape(-1)) if axes is not None else list(range(len(cut)))
    return cut[0] if [int(a) % len(source.shape) for a in named] == cut else None


class _Planner:
    def __init__(
        self,
        groups: Sequence[Group],
        inputs: Iterable[ir.Value],
        outputs: Iterable[ir.Value],
        isa: Isa,
    ) -> None:
        self.groups, self.isa = groups, isa
        self.outputs = set(outputs)
        self.blocked = Layout(isa.lanes)
        self.plan = LayoutPlan(isa.lanes)
        self.readers: dict[ir.Value, list[Group]] = {}
        self.producer: dict[ir.Value, Group] = {}
        self.operands = {id(g): g.operands for g in groups}
        for v in inputs:
            self.plan.layouts[v] = PLAIN
        for g in groups:
            self.producer.update((v, g) for v in g.outputs)
            for v in self.operands[id(g)]:
                self.readers.setdefault(v, []).append(g)
        self.flexible: list[Group] = []
        self.prefers: dict[int, tuple[ir.Value, Layout]] = {}  # what an anchor reads best

    def run(self) -> LayoutPlan:
        for group in self.groups:
            self._start(group)
        regions = self._regions()
        for _ in range(_SWEEPS):
            changed = [self._improve([g]) for g in self.flexible]
            changed += [self._improve(r) for r in regions if len(r) > 1]
            if not any(changed):
                break
        return self.plan

    def _start(self, group: Group) -> None:
        """Anchors get what they want; the rest follows its largest operand."""
        op, layouts = group.ops[0], self.plan.layouts
        if op.anchor is not None:
            wanted = op.anchor.wants(op.info, self.isa)
            pairs = list(zip(op.reads, wanted.inputs, strict=True))
            if op.anchor.any_layout:
                self.prefers[id(group)] = pairs[0]
                pairs = pairs[1:]
            self.plan.wants[id(group)] = dict(pairs)
            layouts.update(zip(group.outputs, wanted.outputs, strict=True))
            return
        value = group.outputs[0]
        shapes = [v for v in self.operands[id(group)] if not is_constant(v)]
        largest = max(shapes, key=lambda v: type_of(v).elements, default=None)
        follows = largest is not None and layouts.get(largest, PLAIN) == self.blocked
        if self._can_block(value):
            self.flexible.append(group)
            layouts[value] = self.blocked if follows and not group.is_view else PLAIN
        else:
            layouts[value] = PLAIN

    def _can_block(self, value: ir.Value) -> bool:
        shape = type_of(value).shape
        return len(shape) >= 3 and shape[1] > 1

    def _regions(self) -> list[list[Group]]:
        """Connected sets of groups that may go either way."""
        free = {id(g) for g in self.flexible}
        seen: set[int] = set()
        regions = []
        for start in self.flexible:
            if id(start) in seen:
                continue
            seen.add(id(start))
            region, queue = [], [start]
            while queue:
                group = queue.pop()
                region.append(group)
                near = [self.producer.get(v) for v in self.operands[id(group)]]
                near += self.readers.get(group.outputs[0], [])
                for other in near:
                    if other is not None and id(other) in free and id(other) not in seen:
                        seen.add(id(other))
                        queue.append(other)
            regions.append(region)
        return regions

    def _improve(self, groups: Sequence[Group]) -> bool:
        """Give all of `groups` one layout if that moves fewer bytes; whether it did."""
        layouts = self.plan.layouts
        values = [g.outputs[0] for g in groups]
        before = {v: layouts[v] for v in values}
        touched = {id(g): g for g in groups}
        for v in values:
            touched.update((id(r), r) for r in self.readers.get(v, ()))
        sources = {v for g in touched.values() for v in self.operands[id(g)]} | set(values)

        def cost() -> float:
            groups_cost = sum(self._group_cost(g) for g in touched.values())
            return groups_cost + sum(self._value_cost(v) for v in sources)

        best, choice = cost(), before
        for layout in (PLAIN, self.blocked):
            layouts.update((v, layout) for v in values)
            now = cost()
            if now < best:
                best, choice = now, dict.fromkeys(values, layout)
        layouts.update(choice)
        return choice is not before

    def _value_cost(self, value: ir.Value) -> float:
        """Bytes moved to have `value` in every layout that is demanded of it, and by padding."""
        tensor = self.plan.type(value)
        demanded = {
            w
            for g in self.readers.get(value, ())
            if (w := self.plan.wants.get(id(g), {}).get(value)) is not None
        }
        if value in self.outputs:
            demanded.add(PLAIN)
        total = float(tensor.bytes - type_of(value).bytes)
        for layout in demanded:
            if not is_constant(value) and not moves_for_free(tensor, layout):
                total += 2 * tensor.bytes + CALL_BYTES
        return total

    def _group_cost(self, group: Group) -> float:
        """Bytes moved beyond what the group's operands and output need in any case."""
        out = self.plan.type(group.outputs[0])
        operands = [
            self.plan.type(v)
            for v in self.operands[id(group)]
            if not is_constant(v) and len(type_of(v).shape) >= 2
        ]
        if group.anchor is not None:
            read = set(group.ops[0].reads)
            source, layout = self.prefers.get(id(group), (None, PLAIN))
            unloved = source is not None and self.plan.type(source).layout != layout
            return (self.plan.type(source).bytes if source and unloved else 0) + sum(
                self.plan.type(v).bytes
                for v in self.operands[id(group)]
                if v not in read
                and type_of(v).shape == out.shape
                and self.plan.layouts.get(v, PLAIN) != out.layout
            )
        if group.is_concat:
            return self._concat_cost(group, operands, out)
        if group.is_view:
            plain = out.layout == PLAIN and all(moves_for_free(t, PLAIN) for t in operands)
            return 0 if plain else 2 * out.bytes + CALL_BYTES
        if len(group.ops) == 1 and self._is_view_slice(group.ops[0]):
            return 0
        total = float(sum(t.bytes for t in operands if t.layout != out.layout and len(t.shape) > 2))
        if is_lookup(group.ops[0]):
            total = sum(2 * t.bytes + CALL_BYTES for t in operands if t.layout != out.layout)
        if not all(_keeps_channels(op) for op in group.ops):
            total += sum(t.bytes for t in (*operands, out) if t.layout.block)
        return total

    def _is_view_slice(self, op: Op) -> bool:
        if slice_axis(op) is None or is_constant(op.reads[0]):
            return False
        source, result = self.plan.type(op.reads[0]), self.plan.type(op.outputs[0])
        return slice_offset(op, source, result) is not None

    def _concat_cost(self, group: Group, operands: list[TensorType], out: TensorType) -> float:
        op = group.ops[0]
        offsets = concat_offsets(op, out)
        if any(o is None for o in offsets):
            mixed = sum(t.bytes for t in operands if t.layout != out.layout)
            channels = op.info.attr("axis", 1) in (1, 1 - len(out.shape))
            return (
                2 * out.bytes
                + CALL_BYTES
                + mixed
                + (2 * out.bytes if channels and out.layout.block else 0)
            )
        return sum(2 * t.bytes + CALL_BYTES for t in operands if t.layout != out.layout)


def _keeps_channels(op: Op) -> bool:
    if op.rule is None or op.rule.kind == "elementwise":
        return True
    if op.info.op_type == "Slice":
        axis = slice_axis(op)
        return axis is not None and axis > 1
    return op.info.op_type in _CHANNELWISE


def slice_offset(op: Op, source: TensorType, result: TensorType) -> int | None:
    """The byte offset at which `source` holds the slice `result` in one piece; None where it does not."""
    axis, begin = slice_axis(op), slice_begin(op)
    if axis is None or begin is None or source.layout != result.layout:
        return None
    return _piece(source, axis, begin, result.shape[axis])


def concat_offsets(op: Op, out: TensorType) -> list[int | None]:
    """For each input of a Concat the byte offset at which it lies in `out` in one piece, if it does."""
    axis = int(op.info.attr("axis", 1)) % len(out.shape)
    offsets, begin = [], 0
    for tensor in op.info.inputs:
        extent = tensor.shape[axis] if tensor is not None else 0
        offsets.append(_piece(out, axis, begin, extent))
        begin += extent
    return offsets


def _piece(whole: TensorType, axis: int, begin: int, extent: int) -> int | None:
    if math.prod(whole.shape[:axis]) != 1:
        return None
    block = whole.layout.block
    if block:
        ends_block = (begin + extent) % block == 0 or begin + extent == whole.shape[1]
        if axis != 1 or begin % block or not ends_block:
            return None
        # channels past the slice's last must be zero lanes, not the next channels
        begin //= block
    physical = whole.layout.physical_shape(whole.shape)
    per_index = math.prod(physical[axis + 1 :]) * (whole.bytes // max(whole.elements, 1))
    return begin * per_index
