"""Operators that only move elements take integers: Q goes before them, DQ behind."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from effc.core.ir import attr, const, is_op, replaceable, shape_of, sole_producer, sole_use
from effc.core.quant import QuantParams, quant_params
from effc.core.rewrite import bypass
from effc.passes.fuse.expressions import bounds
from effc.passes.fuse.rewriting import graph_of, result_name, set_input, substitute
from effc.passes.quantize.integer_form import Maker, tensor8, usable

MOVES = frozenset(
    "Concat DepthToSpace Expand Flatten Gather Identity MaxPool Pad ReduceMax Reshape Resize Slice "
    "SpaceToDepth Split Squeeze Tile Transpose Unsqueeze".split()
)


def moved(node: ir.Node | None) -> list[int] | None:
    """The indices of the inputs that `node` only moves elements of; None for other operators."""
    if node is None or node.domain != "" or node.op_type not in MOVES:
        return None
    if node.op_type == "Concat":
        return list(range(len(node.inputs)))
    if node.op_type == "MaxPool" and len([o for o in node.outputs if o.name != ""]) > 1:
        return None
    if node.op_type == "Resize" and (
        attr(node, "mode", "nearest") != "nearest"
        or attr(node, "coordinate_transformation_mode", "") == "tf_crop_and_resize"
    ):
        return None
    if node.op_type == "Pad" and not _pad_value_known(node):
        return None
    return [0]


def _pads_with_a_value(node: ir.Node) -> bool:
    return is_op(node, "Pad") and attr(node, "mode", "constant") == "constant"


def _pad_value_known(node: ir.Node) -> bool:
    if not _pads_with_a_value(node) or len(node.inputs) < 3 or node.inputs[2] is None:
        return True
    value = const(node.inputs[2])
    return value is not None and value.size == 1


def _pad_value(node: ir.Node) -> float:
    held = node.inputs[2] if len(node.inputs) > 2 else None
    value = const(held)
    return 0.0 if value is None else float(value.reshape(()))


def _set_pad_value(node: ir.Node, params: QuantParams, maker: Maker) -> None:
    if _pads_with_a_value(node):
        stored = params.quantize(np.array(_pad_value(node), np.float32))
        held = maker.constant(node, "value", stored, ("pad", stored.tobytes(), stored.dtype.str))
        if len(node.inputs) < 3:
            node.resize_inputs(3)
        node.replace_input_with(2, held)


@dataclass
class DequantizeLater:
    """move(DQ(q)) -> DQ(move(q)), where all moved inputs have the same parameters."""

    maker: Maker
    roots: ClassVar[frozenset[str]] = MOVES

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        data = moved(node)
        if not data or any(v.name == "" for v in node.outputs):
            return None
        sources = [tensor8(node.inputs[k]) for k in data]
        first = sources[0]
        if first is None:
            return None
        for other in sources[1:]:
            if other is None or not other.params.same(first.params):
                return None
        if _pads_with_a_value(node):
            real = np.array(_pad_value(node), np.float32)
            if first.params.dequantize(first.params.quantize(real)) != real:
                return None
        if all(const(s.value) is not None for s in sources if s is not None):
            return None
        source = node.inputs[data[0]].producer()  # type: ignore[union-attr]
        assert source is not None
        # it may go with its last reader
        parameters = source.inputs[1:]
        attributes = {k: a.value for k, a in source.attributes.items()}
        _set_pad_value(node, first.params, self.maker)
        for k, stored in zip(data, sources, strict=True):
            assert stored is not None
            set_input(node, k, stored.value)
        again: list[ir.Node] = []
        for output in list(node.outputs):
            again += _dequantize(node, output, parameters, attributes, first.params.dtype)
        return again


def _dequantize(
    node: ir.Node,
    output: ir.Value,
    parameters: Sequence[ir.Value | None],
    attributes: Mapping[str, Any],
    dtype: ir.DataType,
) -> Iterable[ir.Node]:
    """Let the integers `output` of `node` be dequantized for their readers; the nodes to look at."""
    readers = list(output.uses())
    dq = ir.node(
        "DequantizeLinear",
        [output, *parameters],
        attributes,
        name=f"{result_name(node)}/dequantized",
    )
    graph_of(node).insert_after(node, dq)
    made = dq.outputs[0]
    made.type, made.shape = output.type, output.shape
    name = output.name
    output.type, output.name = ir.TensorType(dtype), f"{name}/stored"
    made.name = name
    for reader, index in readers:
        reader.replace_input_with(index, made)
    if output.is_graph_output():
        graph = graph_of(node)
        for i, value in enumerate(graph.outputs):
            if value is output:
                graph.outputs[i] = made
    return (dq, *made.consumers())


@dataclass
class QuantizeEarlier:
    """Q(move(x)) -> move(Q(x)), where only Q reads what is moved."""

    maker: Maker
    roots: ClassVar[frozenset[str]] = frozenset({"QuantizeLinear"})

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        moved_value = node.inputs[0]
        move = moved_value.producer() if moved_value is not None else None
        data = moved(move)
        params = quant_params(node)
        if moved_value is None or move is None or not data or params is None or not usable(params):
            return None
        if sole_use(moved_value) is None or len(move.outputs) > 1:
            return None
        if any(move.inputs[k] is None for k in data):
            return None
        if all(const(move.inputs[k]) is not None for k in data):
            return None
        _set_pad_value(move, params, self.maker)
        graph, made = graph_of(node), []
        for k in data:
            value = move.inputs[k]
            assert value is not None
            early = _existing(value, params)
            if early is None:
                early = ir.node(
                    "QuantizeLinear",
                    [value, *node.inputs[1:]],
                    {n: a.value for n, a in node.attributes.items()},
                    name=f"{result_name(node)}/{k}",
                )
                graph.insert_before(move, early)
                out = early.outputs[0]
                out.name = f"{value.name}/{node.outputs[0].name}"
                out.shape, out.type = value.shape, node.outputs[0].type
            made.append(early)
            move.replace_input_with(k, early.outputs[0])
        again = tuple(node.outputs[0].consumers())
        moved_value.type = node.outputs[0].type
        name, old = node.outputs[0].name, node.outputs[0]
        if old.is_graph_output():
            bypass(node, moved_value)  # takes over the name
        else:
            bypass(node, moved_value)
            moved_value.name = name
        return (*made, *again)


@dataclass
class ClampEarlier:
    """Q(clamp(move(x))) -> Q(move(clamp(x))), so that the clamp stands behind what makes x."""

    roots: ClassVar[frozenset[str]] = frozenset({"QuantizeLinear"})

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        clamp = sole_producer(node.inputs[0], "Relu", "Clip")
        found = bounds(clamp) if clamp is not None else None
        if clamp is None or found is None or quant_params(node) is None:
            return None
        value, low, high = found
        move = sole_producer(value, *MOVES)
        data = moved(move)
        if move is None or not data or len(move.outputs) > 1:
            return None
        if _pads_with_a_value(move) and not low <= _pad_value(move) <= high:
            return None
        if any(move.inputs[k] is None or const(move.inputs[k]) is not None for k in data):
            return None
        graph = graph_of(node)
        for k in data:
            x = move.inputs[k]
            assert x is not None
            name = f"{result_name(clamp)}/{k}"
            early = ir.node(
                clamp.op_type,
                [x, *clamp.inputs[1:]],
                {n: a.value for n, a in clamp.attributes.items()},
                name=name,
            )
            graph.insert_before(move, early)
            out = early.outputs[0]
            out.name, out.shape, out.type = name, x.shape, x.type
            move.replace_input_with(k, out)
        bypass(clamp, value)
        return (node,)


@dataclass
class MeanAsPool:
    """Q(ReduceMean(DQ x)) -> Reshape(GlobalAveragePool(Reshape(Transpose(DQ x)))), over any axes.

    Transpose only where the reduced axes are not the last, the first Reshape only where not two axes are
    left. Declines where GlobalAveragePool is what it is already.
    """

    maker: Maker
    roots: ClassVar[frozenset[str]] = frozenset({"ReduceMean"})

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        axes = const(node.inputs[1]) if len(node.inputs) > 1 else None
        x, out = node.inputs[0], node.outputs[0]
        shape, ends = shape_of(x), shape_of(out)
        if x is None or axes is None or not axes.size or shape is None or ends is None:
            return None
        if tensor8(x) is None or not is_op(sole_use(out), "QuantizeLinear", "Relu", "Clip"):
            return None
        reduced = sorted({int(a) % len(shape) for a in axes})
        kept = [i for i in range(len(shape)) if i not in reduced]
        if attr(node, "keepdims", 1) and kept == [0, 1]:
            return None
        nodes: list[ir.Node] = []

        def emit(
            op: str, inputs: list[ir.Value | None], to: Sequence[int], **more: Any
        ) -> ir.Value:
            new = ir.node(op, inputs, more, name=f"{result_name(node)}/{op}_{len(nodes)}")
            made: ir.Value = new.outputs[0]
            made.name, made.type, made.shape = new.name, out.type, ir.Shape(to)
            nodes.append(new)
            return made

        def reshape(value: ir.Value, to: Sequence[int]) -> ir.Value:
            held = self.maker.constant(node, "shape", np.array(to, np.int64), ("shape", tuple(to)))
            return emit("Reshape", [value, held], to)

        value = x
        order = kept + reduced
        if order != list(range(len(shape))):
            value = emit("Transpose", [value], [shape[i] for i in order], perm=order)
        first = [shape[i] for i in kept]
        if len(first) != 2:
            first = [1, math.prod(first)]
            value = reshape(value, (*first, math.prod(shape[i] for i in reduced)))
        ones = [1] * (len(value.shape or ()) - 2)
        value = reshape(emit("GlobalAveragePool", [value], (*first, *ones)), ends)
        pool, last = nodes[-2], nodes[-1]
        pool.name = node.name
        graph_of(node).insert_before(node, nodes)
        substitute(node, last)
        return (*nodes, *last.outputs[0].consumers())


def _existing(value: ir.Value, params: QuantParams) -> ir.Node | None:
    for reader in value.consumers():
        if is_op(reader, "QuantizeLinear") and reader.inputs[0] is value:
            found = quant_params(reader)
            if found is not None and found.same(params):
                return reader
    return None


@dataclass
class QuantizeOnce:
    """Q(x), Q(x) with the same parameters -> one; Q of a constant -> its integers."""

    maker: Maker
    roots: ClassVar[frozenset[str]] = frozenset({"QuantizeLinear"})

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        x, params = node.inputs[0], quant_params(node)
        if x is None or params is None:
            return None
        array = const(x)
        if array is not None:
            if array.dtype != np.float32 or node.outputs[0].is_graph_output():
                return None
            made = self.maker.constant(node, "integers", params.quantize(array))
            again = tuple(node.outputs[0].consumers())
            bypass(node, made)
            return again
        if not usable(params):
            return None
        other = _existing(x, params)
        if other is None or other is node or not replaceable(node.outputs[0], other.outputs[0]):
            return None
        again = tuple(node.outputs[0].consumers())
        bypass(node, other.outputs[0])
        return (other, *again)
