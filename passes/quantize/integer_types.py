"""Activations of one 8-bit type: q and zero point shifted by 128 stand for the same numbers."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from effc.core.ir import attr, const, is_op
from effc.core.quant import QuantParams, make_params, quant_params
from effc.passes.fuse.rewriting import set_input
from effc.passes.quantize.integer_form import Maker, usable
from effc.passes.quantize.integer_moves import moved

_TYPES = {"unsigned": ir.DataType.UINT8, "signed": ir.DataType.INT8}


def retype(graph: ir.Graph, activations: str, maker: Maker) -> int:
    """Let the quantized activations of `graph` be of that type; the number of tensors that changed.

    Tensors that operators move elements between change together, or, where one of them has a reader
    that is neither such an operator nor DequantizeLinear, not at all. Inputs and outputs of the graph
    keep their types, with DequantizeLinear and QuantizeLinear beside them (exact: Requantize by 1).
    """
    wanted = _TYPES[activations]
    other = ir.DataType.INT8 if wanted == ir.DataType.UINT8 else ir.DataType.UINT8
    count = 0
    seen: set[ir.Value] = set()
    for node in list(graph):
        for value in (*node.inputs, *node.outputs):
            if value is None or value in seen or value.dtype != other or const(value) is not None:
                continue
            group = _group(value)
            seen |= group
            params = _parameters(group, other)
            if params is not None:
                _shift(group, params, wanted, maker)
                count += len(group)
    return count


def _group(start: ir.Value) -> set[ir.Value]:
    """All values that elements move between, from `start` on."""
    group, work = {start}, [start]
    while work:
        value = work.pop()
        near: list[ir.Value | None] = []
        producer = value.producer()
        data = moved(producer)
        if producer is not None and data is not None:
            near += [producer.inputs[k] for k in data]
        for reader, index in value.uses():
            data = moved(reader)
            if data is not None and index in data:
                near += reader.outputs
        for found in near:
            if found is not None and found not in group:
                group.add(found)
                work.append(found)
    return group


def _parameters(group: Iterable[ir.Value], dtype: ir.DataType) -> QuantParams | None:
    """What all values of a group mean; None where something stands in the way of another type."""
    params: QuantParams | None = None
    if not any(is_op(n, "DequantizeLinear") for v in group for n, _ in v.uses()):
        return None  # nothing computes with it
    for value in group:
        if value.is_graph_input() and value.is_graph_output():
            return None
        if value.dtype != dtype or const(value) is not None:
            return None
        producer = value.producer()
        ends = [n for n, k in value.uses() if not _moves(n, k)]
        if producer is not None and moved(producer) is None:
            ends.append(producer)
        elif producer is None and not value.is_graph_input():
            return None
        for end in ends:
            found = quant_params(end) if is_op(end, "QuantizeLinear", "DequantizeLinear") else None
            if found is None or not usable(found) or found.dtype != dtype:
                return None
            if params is not None and not found.same(params):
                return None
            params = found
    return params


def _moves(node: ir.Node, index: int) -> bool:
    data = moved(node)
    return data is not None and index in data


def _shift(group: set[ir.Value], old: QuantParams, dtype: ir.DataType, maker: Maker) -> None:
    by = 128 if dtype == ir.DataType.UINT8 else -128
    new = make_params(dtype, old.scale, int(old.zero_point) + by)
    done: set[ir.Node] = set()
    for value in sorted(group, key=lambda v: str(v.name)):
        for node in (value.producer(), *(n for n, _ in value.uses())):
            if node is None or node in done:
                continue
            done.add(node)
            if is_op(node, "QuantizeLinear", "DequantizeLinear"):
                _set_zero_point(node, new, maker)
            elif is_op(node, "Pad") and attr(node, "mode", "constant") == "constant":
                stored = const(node.inputs[2]) if len(node.inputs) > 2 else None
                shifted = (0 if stored is None else stored.astype(np.int64)) + np.array(by)
                set_input(
                    node, 2, maker.constant(node, "value", shifted.astype(new.zero_point.dtype))
                )
    for value in sorted(group, key=lambda v: str(v.name)):
        outside = value.is_graph_input() or value.is_graph_output()
        if not outside:
            value.type = ir.TensorType(dtype)
            continue
        _convert(value, old, new, maker)


def _set_zero_point(node: ir.Node, params: QuantParams, maker: Maker) -> None:
    key = ("zero point", int(params.zero_point), str(params.dtype))
    node.resize_inputs(3)
    set_input(node, 2, maker.constant(node, "zero_point", params.zero_point, key))
    node.attributes.pop("output_dtype", None)


def _convert(value: ir.Value, old: QuantParams, new: QuantParams, maker: Maker) -> None:
    """Put DQ and Q between an input of the graph and its readers, or between a node and an output."""
    graph = value.graph
    assert isinstance(graph, ir.Graph)
    name, entry = str(value.name), value.is_graph_input()
    first, second = (old, new) if entry else (new, old)
    readers = list(value.uses())
    near = readers[0][0] if entry else value.producer()
    assert near is not None
    nodes: list[ir.Node] = []
    made = value
    for op, params in (("DequantizeLinear", first), ("QuantizeLinear", second)):
        key = ("conversion", value, str(params.dtype))
        scale = maker.constant(near, "scale", params.scale, ("scale", params.scale.tobytes()))
        zero = maker.constant(near, "zero_point", params.zero_point, key)
        node = ir.node(op, [made, scale, zero], name=f"{name}/{op}")
        nodes.append(node)
        made, shape = node.outputs[0], value.shape
        made.shape, made.name = shape, f"{name}/{op}"
        made.type = ir.TensorType(ir.DataType.FLOAT if op == "DequantizeLinear" else second.dtype)
    if entry:
        for reader, index in readers:
            reader.replace_input_with(index, made)
        if len(graph):
            graph.insert_before(graph[0], nodes)
        return
    graph.insert_after(near, nodes)
    value.type, value.name = ir.TensorType(new.dtype), f"{name}/{new.dtype.name.lower()}"
    for i, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[i] = made
    made.name = name
