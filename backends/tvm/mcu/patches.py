"""Patch-based inference: the first layers of a model run for one band of rows after another.

Early layers have the largest tensors. Where a band of the last of them is made at a time, only bands of those
before it are held. Rows that two bands need are computed twice; bands span the whole width, so that a band is
one stretch of memory, and slicing and joining bands copies nothing.

Source: Lin et al., "MCUNetV2: memory-efficient patch-based inference for tiny deep learning" (2021).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from effc.backends.tvm.mcu.cores import Core
from effc.backends.tvm.mcu.lower import lower
from effc.backends.tvm.mcu.program import Program
from effc.core.integers import DOMAIN
from effc.core.ir import add_const, attr, const, is_op, shape_of

_SAME_ROWS = {
    (DOMAIN, "Add"),
    (DOMAIN, "Mul"),
    (DOMAIN, "Lookup"),
    (DOMAIN, "Requantize"),
    ("", "Clip"),
}
_WINDOWS = {(DOMAIN, "Conv"), ("", "MaxPool")}
_ROWS = 2  # the axis
_CUTS = 6  # that are tried, those with the smallest tensors
_BANDS = (2, 3, 4, 6, 8, 12, 16)


@dataclass(frozen=True, slots=True)
class Cut:
    """The first `count` nodes end in `value`, all that later ones read."""

    count: int
    value: ir.Value

    @property
    def height(self) -> int:
        return _height(self.value)

    @property
    def bytes(self) -> int:
        return int(np.prod(shape_of(self.value) or (0,)))


def cuts(graph: ir.Graph) -> Iterator[Cut]:
    """Every place up to which the graph can run in bands, from the front."""
    nodes = list(graph)
    begin = _begin(nodes)
    done: set[ir.Node] = set(nodes[:begin])
    live: set[ir.Value] = {v for n in nodes[:begin] for v in n.outputs} | set(graph.inputs)
    for count, node in enumerate(nodes[begin:], begin + 1):
        if not _banded(node):
            return
        done.add(node)
        live.add(node.outputs[0])
        live = {v for v in live if v.is_graph_output() or any(n not in done for n, _ in v.uses())}
        if len(live) == 1:
            (value,) = live
            if value is node.outputs[0] and not value.is_graph_output():
                yield Cut(count, value)


def _begin(nodes: Sequence[ir.Node]) -> int:
    """How many nodes in front only say how the input lies: QuantizeLinear, Transpose to channels first."""
    count = 0
    for node in nodes[:2]:
        quantizes = is_op(node, "QuantizeLinear")
        if not quantizes and not (is_op(node, "Transpose") and attr(node, "perm") == (0, 3, 1, 2)):
            break
        value = node.inputs[0]
        if value is None or (not value.is_graph_input() and value.producer() not in nodes[:count]):
            break
        count += 1
    return count


def _banded(node: ir.Node) -> bool:
    key = (node.domain, node.op_type)
    out = shape_of(node.outputs[0])
    if out is None or len(out) != 4 or out[0] != 1 or len(node.outputs) != 1:
        return False
    tensors = [v for v in node.inputs if v is not None and const(v) is None]
    if len(set(tensors)) != len(tensors):
        return False
    if not tensors or any(v.dtype not in (ir.DataType.INT8, ir.DataType.UINT8) for v in tensors):
        return False
    if key in _WINDOWS:
        return not attr(node, "ceil_mode", 0) and attr(node, "auto_pad", "NOTSET") == "NOTSET"
    return key in _SAME_ROWS and all(shape_of(v) == out for v in tensors)


def split(model: ir.Model, count: int, bands: int) -> None:
    """Let the first `count` nodes of `model` run in `bands` bands of rows, in place."""
    graph = model.graph
    nodes = list(graph)[:count]
    begin = _begin(nodes)
    last = nodes[-1].outputs[0]
    height = shape_of(last)[_ROWS]  # type: ignore[index]
    edges = [round(height * k / bands) for k in range(bands + 1)]
    anchor = nodes[-1]
    made: list[ir.Node] = []
    parts = []
    for low, high in zip(edges, edges[1:], strict=False):
        if low == high:
            continue
        band = _Band(graph, low)
        band.plan(nodes[begin:], last, (low, high))
        parts.append(band.build(nodes[begin:], last))
        made += band.made
    join = ir.node("Concat", parts, {"axis": _ROWS}, name=f"{anchor.name}/bands")
    joined = join.outputs[0]
    joined.name, joined.shape, joined.type = f"{last.name}/joined", last.shape, last.type
    graph.insert_after(anchor, [*made, join])
    for reader, index in list(last.uses()):
        reader.replace_input_with(index, joined)
    for node in reversed(nodes[begin:]):
        graph.remove(node, safe=True)


class _Band:
    """The rows of every value that one band of the result needs, and the nodes that make them."""

    def __init__(self, graph: ir.Graph, key: int) -> None:
        self.graph, self.key = graph, key
        self.rows: dict[ir.Value, tuple[int, int]] = {}
        self.values: dict[ir.Value, ir.Value] = {}
        self.made: list[ir.Node] = []

    def plan(self, nodes: Sequence[ir.Node], last: ir.Value, rows: tuple[int, int]) -> None:
        """From the result back to the input."""
        self.rows[last] = rows
        for node in reversed(nodes):
            for value in _tensors(node):
                low, high, _, _ = _needed(node, value, self.rows[node.outputs[0]])
                found = self.rows.get(value, (low, high))
                self.rows[value] = (min(low, found[0]), max(high, found[1]))

    def build(self, nodes: Sequence[ir.Node], last: ir.Value) -> ir.Value:
        """From the input to the result."""
        for node in nodes:
            out = node.outputs[0]
            inputs: list[ir.Value | None] = []
            attributes = dict(node.attributes)
            for value in node.inputs:
                if value is None or const(value) is not None:
                    inputs.append(value)
                    continue
                low, high, top, bottom = _needed(node, value, self.rows[out])
                inputs.append(self._slice(value, low, high))
                if value is node.inputs[0] and (node.domain, node.op_type) in _WINDOWS:
                    pads = list(attr(node, "pads", (0,) * 4))
                    pads[0], pads[2] = top, bottom
                    attributes["pads"] = ir.AttrInt64s("pads", pads)
            low, high = self.rows[out]
            shape = list(shape_of(out) or ())
            shape[_ROWS] = high - low
            new = ir.Node(
                node.domain,
                node.op_type,
                inputs,
                list(attributes.values()),
                name=f"{node.name}/rows{self.key}",
            )
            self._name(new.outputs[0], out, shape)
            self.values[out] = new.outputs[0]
            self.made.append(new)
        return self.values[last]

    def _slice(self, value: ir.Value, low: int, high: int) -> ir.Value:
        held = self.values.get(value, value)
        start, end = self.rows[value] if value in self.values else (0, _height(value))
        if (start, end) == (low, high):
            return held
        ends = [
            add_const(self.graph, f"{held.name}/{k}", np.array([v], np.int64))
            for k, v in (("start", low - start), ("end", high - start), ("axis", _ROWS))
        ]
        node = ir.node("Slice", [held, *ends], name=f"{held.name}/{low}to{high}/{self.key}")
        shape = list(shape_of(value) or ())
        shape[_ROWS] = high - low
        self._name(node.outputs[0], value, shape)
        self.made.append(node)
        return node.outputs[0]

    def _name(self, new: ir.Value, old: ir.Value, shape: list[int]) -> None:
        new.name = f"{old.name}/rows{self.key}n{len(self.made)}"
        new.shape, new.type = ir.Shape(shape), old.type


def _tensors(node: ir.Node) -> list[ir.Value]:
    return [v for v in node.inputs if v is not None and const(v) is None]


def _height(value: ir.Value) -> int:
    return (shape_of(value) or (0, 0, 0))[_ROWS]


def _needed(node: ir.Node, value: ir.Value, rows: tuple[int, int]) -> tuple[int, int, int, int]:
    """The rows of the input `value` for `rows` of the output, and the padding above and below them."""
    if (node.domain, node.op_type) not in _WINDOWS or value is not node.inputs[0]:
        return (*rows, 0, 0)
    weight = const(node.inputs[1]) if node.op_type == "Conv" else None
    kernel = attr(node, "kernel_shape") if weight is None else weight.shape[2:]
    stride = attr(node, "strides", (1, 1))[0]
    dilation = attr(node, "dilations", (1, 1))[0]
    pads = attr(node, "pads", (0,) * 4)
    low = rows[0] * stride - pads[0]
    high = (rows[1] - 1) * stride - pads[0] + (kernel[0] - 1) * dilation + 1
    height = _height(value)
    return max(low, 0), min(high, height), max(0, -low), max(0, high - height)


def in_bands(model: ir.Model, core: Core, name: str, room: int) -> Program | None:
    """`model` lowered with its first layers in bands, in at most `room` bytes; None where that fails.

    Of what fits, the fewest multiplications win: more bands and more layers compute more rows twice.
    """
    found = [c for c in cuts(model.graph) if c.bytes < room]
    best: tuple[int, Cut, int] | None = None
    for cut in sorted(sorted(found, key=lambda c: c.bytes)[:_CUTS], key=lambda c: c.count):
        before = math.inf
        for bands in _BANDS:
            if bands > cut.height:
                break
            program = _split_program(model, cut, bands, core, name, tries=0)
            if best is not None and _macs(program) >= best[0]:
                break
            if program.plan.bytes <= room:
                best = _macs(program), cut, bands
                break
            if program.plan.bytes > 0.97 * before:
                break  # what more bands save is what is computed twice
            before = program.plan.bytes
    if best is None:
        return None
    _, cut, bands = best
    program = _split_program(model, cut, bands, core, name, tries=300)
    return replace(program, bands=bands, banded=str(cut.value.name))


def _split_program(
    model: ir.Model, cut: Cut, bands: int, core: Core, name: str, tries: int
) -> Program:
    copy = model.clone()
    split(copy, cut.count, bands)
    return lower(copy, core, name, tries=tries)


def _macs(program: Program) -> int:
    return sum(c.macs for c in program.calls)
