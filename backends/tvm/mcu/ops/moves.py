"""Operators that only move elements: views where memory is the same, copies elsewhere."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from effc.backends.tvm.mcu.layouts import Order, channels_last, row_major
from effc.backends.tvm.mcu.lowering import Lowering, Refusal, static
from effc.backends.tvm.mcu.program import Constant
from effc.backends.tvm.mcu.strided import StridedCopy
from effc.core.errors import EffcError
from effc.core.integers.reference import run_node
from effc.core.ir import Array, attr, const

_PADDING = -1


def reshape(low: Lowering, node: ir.Node) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze, Identity: the same elements in row-major order."""
    value = node.inputs[0]
    assert value is not None
    shape = static(value)[0]
    out = static(node.outputs[0])[0]
    held = low.known(value)
    order = row_major(len(out))
    if node.op_type == "Identity":
        low.view(node.outputs[0], held.name, held.order)
        return
    if [n for n in shape if n != 1] == [n for n in out if n != 1]:
        # only axes of extent 1 come and go: they may stand anywhere
        kept = [k for k in held.order if shape[k] != 1]
        axes = [k for k, n in enumerate(shape) if n != 1]
        new = [k for k, n in enumerate(out) if n != 1]
        placed = [new[axes.index(k)] for k in kept]
        order = tuple([k for k, n in enumerate(out) if n == 1] + placed)
        low.view(node.outputs[0], held.name, order)
        return
    x = low.read(value, row_major(len(shape)))
    assert isinstance(x, str)
    low.view(node.outputs[0], x, order)


def transpose(low: Lowering, node: ir.Node) -> None:
    """Transpose: another order of the same memory; what needs one of its own copies later."""
    value = node.inputs[0]
    assert value is not None
    held = low.known(value)
    rank = len(held.shape)
    perm = tuple(attr(node, "perm", tuple(reversed(range(rank)))))
    order = tuple(perm.index(k) for k in held.order)
    low.view(node.outputs[0], held.name, order)


def concat(low: Lowering, node: ir.Node) -> None:
    """Concat: every input is copied to its place."""
    out, _ = static(node.outputs[0])
    rank = len(out)
    axis = attr(node, "axis") % rank
    order = _order_of(low, node, rank)
    names = [low.read(v, order) for v in node.inputs]
    y = low.define(node.outputs[0], order)
    strides = _strides(y.stored)
    at = 0
    for name, value in zip(names, node.inputs, strict=True):
        assert value is not None
        shape = static(value)[0]
        stored = [shape[k] for k in order]
        index = np.arange(int(np.prod(stored))).reshape(stored)
        copy = StridedCopy.of(index, strides, at * strides[order.index(axis)])
        assert copy is not None
        kernel = copy.kernel(low.kernels, "concat", y.dtype)
        stretch = copy.y_base * np.dtype(y.dtype).itemsize if copy.whole else None
        call = (name, y.name)
        low.call(kernel, call, y.name, nodes=[str(node.name)], op="Concat", stretch=stretch)
        at += shape[axis]


def moved(low: Lowering, node: ir.Node) -> None:
    """Any other operator of one tensor that moves elements, found by what it does to their numbers."""
    value = node.inputs[0]
    assert value is not None
    shape, dtype = static(value)
    out = static(node.outputs[0])[0]
    order, made = _order_of(low, node, len(shape)), _like(low, node, len(out))
    indices = _indices(node, shape)
    x = low.read(value, order)
    # numbers of elements as they lie, instead of row-major ones
    place = np.empty(int(np.prod(shape)), np.int64)
    stored = np.arange(place.size).reshape([shape[k] for k in order])
    place[:] = stored.transpose(np.argsort(order)).reshape(-1)
    for array, output in zip(indices, node.outputs, strict=True):
        if output.name == "" or not (output.uses() or output.is_graph_output()):
            continue
        lies = np.where(array >= 0, place[np.maximum(array, 0)], _PADDING).transpose(made)
        copy = None if (lies == _PADDING).any() else StridedCopy.of(lies)
        if copy is not None and copy.whole and isinstance(x, str):
            low.view(output, x, made, copy.base * np.dtype(dtype).itemsize)
            continue
        y = low.define(output, made)
        _copy(low, node, x, lies, y.name, dtype)


def _copy(
    low: Lowering, node: ir.Node, x: str | Constant, index: Array, y: str, dtype: str
) -> None:
    strides = _strides(index.shape)
    base = 0
    if (index == _PADDING).any():
        value = const(node.inputs[2]) if len(node.inputs) > 2 else None
        filler = low.constant(
            f"{node.name} padding",
            np.zeros(1, dtype) if value is None else np.asarray(value, dtype).reshape(1),
        )
        fill = StridedCopy.of(np.zeros(index.size, np.int64))
        assert fill is not None
        kernel = fill.kernel(low.kernels, "fill", dtype)
        low.call(kernel, (filler, y), y, nodes=[str(node.name)], op=node.op_type)
        inside = np.argwhere(index != _PADDING)
        if not len(inside):
            return
        first, last = inside.min(0), inside.max(0) + 1
        index = index[tuple(slice(a, b) for a, b in zip(first, last, strict=True))]
        base = int(sum(int(a) * s for a, s in zip(first, strides, strict=True)))
    copy = StridedCopy.of(index, strides, base)
    if copy is None or (index == _PADDING).any():
        raise Refusal(
            "it moves elements in no order that loops can follow", "move one axis after another"
        )
    kernel = copy.kernel(low.kernels, node.op_type.lower(), dtype)
    low.call(kernel, (x, y), y, nodes=[str(node.name)], op=node.op_type)


def _indices(node: ir.Node, shape: tuple[int, ...]) -> list[Array]:
    """The number of the input's element (row-major) that every output's element is; -1 for padding."""
    numbers: list[Array | None] = [np.arange(int(np.prod(shape)), dtype=np.int32).reshape(shape)]
    for k, value in enumerate(node.inputs[1:], 1):
        array = None if value is None else const(value)
        if value is not None and array is None:
            raise Refusal(f"its input {k} is computed", "fold it into a constant")
        if node.op_type == "Pad" and k == 2 and attr(node, "mode", "constant") == "constant":
            array = np.array(_PADDING, np.int32)
        numbers.append(array)
    if node.op_type == "Pad" and attr(node, "mode", "constant") == "constant":
        numbers += [None] * (2 - len(numbers))
        if len(numbers) < 3:
            return [_padded(node, numbers)]
    graph = node.graph
    imports = {"": 23, **(dict(graph.opset_imports) if isinstance(graph, ir.Graph) else {})}
    try:
        return run_node(node, numbers, imports)
    except EffcError as error:
        raise Refusal(str(error), "rewrite it") from error


def _padded(node: ir.Node, numbers: list[Array | None]) -> Array:
    x, pads = numbers[0], numbers[1]
    if x is None or pads is None:
        raise Refusal("its pads are missing", "give them")
    half = len(pads) // 2
    return np.pad(x, list(zip(pads[:half], pads[half:], strict=True)), constant_values=_PADDING)


def _order_of(low: Lowering, node: ir.Node, rank: int) -> Order:
    """The order in which the first input lies, if all that have its rank agree; else channels last."""
    for value in node.inputs:
        if value is not None and const(value) is None:
            tensor = low.known(value)
            if len(tensor.shape) == rank:
                return tensor.order
    return channels_last(rank)


def _like(low: Lowering, node: ir.Node, rank: int) -> Order:
    order = _order_of(low, node, rank)
    return order if len(order) == rank else channels_last(rank)


def _strides(stored: tuple[int, ...]) -> list[int]:
    return [int(np.prod(stored[k + 1 :])) for k in range(len(stored))]
