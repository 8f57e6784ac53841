"""Edges whose channels can be scaled for free: what a linear operator divides, the next one multiplies.

Between them only operators with f(x / s) = f(x) / s for s > 0 per channel: Relu, pooling, and the like.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from effc.core.ir import Array, add_const, attr, const, is_op
from effc.passes.fuse.linear import Linear

HOMOGENEOUS = (
    "Relu", "LeakyRelu", "PRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool",
    "Identity", "Dropout",
)  # fmt: skip
NORMS = ("LayerNormalization", "RMSNormalization")


@dataclass
class Edge:
    """A producer of channels, its consumers, and the tensor that each consumer reads."""

    producer: Linear | ir.Node  # a node is a normalization with constant scale (and bias)
    consumers: list[Linear]
    tensors: list[ir.Value]

    @property
    def channels(self) -> int:
        return self.consumers[0].inputs

    @property
    def axis(self) -> int:
        """The axis of the tensors that holds the channels."""
        axis = self.consumers[0].input_axis
        assert axis is not None  # edges() asked
        return axis

    def consumer_peaks(self) -> Array:
        """The largest weight that reads each channel, [channels], over all consumers."""
        return np.asarray(np.max([input_peaks(c) for c in self.consumers], axis=0))

    def divide(self, scale: Array) -> bool:
        """Let the tensors be divided by `scale` [channels]; False, and nothing done, on overflow."""
        if isinstance(self.producer, Linear):
            self.producer.scale_outputs(1 / scale)
        for consumer in self.consumers:
            consumer.scale_inputs(scale)
        changed = [c for c in (self.producer, *self.consumers) if isinstance(c, Linear)]
        if not all(c.fits() for c in changed):
            return False
        if isinstance(self.producer, ir.Node):
            _divide_norm(self.producer, scale)
        for linear in changed:
            linear.commit()
        return True


def edges(graph: ir.Graph) -> Iterator[Edge]:
    """The scalable edges, in the order of their producers. Each is read when it is reached."""
    for node in list(graph):
        if is_op(node, "Conv", "ConvTranspose", "Gemm", "MatMul"):
            linear = Linear.read(node)
            add = linear.result.consumers() if linear is not None else ()
            behind = (
                [Linear.read(n) for n in add if is_op(n, "Add")] if is_op(node, "MatMul") else []
            )
            if behind and behind[0] is not None and behind[0].node is node:
                linear = behind[0]
            if linear is not None:
                yield from _follow(linear, linear.result, linear.outputs, linear.output_axis)
        elif is_op(node, *NORMS) and _simple_norm(node):
            scale = const(node.inputs[1])
            rank = node.outputs[0].shape.rank() if node.outputs[0].shape is not None else None
            if scale is not None and rank is not None:
                yield from _follow(node, node.outputs[0], scale.size, rank - 1)


def _follow(
    producer: Linear | ir.Node, value: ir.Value, channels: int, axis: int | None
) -> Iterator[Edge]:
    consumers, tensors, work = [], [], [value]
    while work:
        tensor = work.pop()
        if tensor.is_graph_output() or not tensor.uses():
            return
        for node, index in tensor.uses():
            if is_op(node, *HOMOGENEOUS) and index == 0 and axis == 1:
                work.append(node.outputs[0])
                continue
            consumer = Linear.read(node) if index == 0 else None
            if consumer is None or (consumer.input_axis, consumer.inputs) != (axis, channels):
                return
            consumers.append(consumer)
            if tensor not in tensors:
                tensors.append(tensor)
    yield Edge(producer, consumers, tensors)


def input_peaks(linear: Linear) -> Array:
    """The largest absolute weight that reads each input channel, [inputs]."""
    weight: Array = np.abs(linear.weight)
    if not is_op(linear.node, "Conv"):
        return _peaks(weight, 0)
    rows = linear.outputs // linear.groups
    by_group = weight.reshape(linear.groups, rows, weight.shape[1], -1)
    return np.asarray(by_group.max(axis=(1, 3))).reshape(-1)


def output_peaks(linear: Linear) -> Array:
    """The largest absolute weight that makes each output channel, [outputs]."""
    weight: Array = np.abs(linear.weight)
    if is_op(linear.node, "Conv"):
        return _peaks(weight, 0)
    if is_op(linear.node, "ConvTranspose"):
        rows = weight.shape[0] // linear.groups
        by_group = weight.reshape(linear.groups, rows, weight.shape[1], -1)
        return np.asarray(by_group.max(axis=(1, 3))).reshape(-1)
    return _peaks(weight, 1)


def _peaks(weight: Array, axis: int) -> Array:
    others = tuple(i for i in range(weight.ndim) if i != axis)
    return np.asarray(weight.max(axis=others))


def _simple_norm(node: ir.Node) -> bool:
    """Whether scale (and bias) are constants used over the last axis."""
    rank = node.outputs[0].shape.rank() if node.outputs[0].shape is not None else None
    constants = [const(v) for v in node.inputs[1:] if v is not None]
    return (
        attr(node, "axis", -1) in (-1, (rank or 0) - 1)
        and len(node.outputs) == 1
        and bool(constants)
        and all(c is not None and c.ndim == 1 for c in constants)
    )


def _divide_norm(node: ir.Node, scale: Array) -> None:
    assert node.graph is not None
    for index, value in list(enumerate(node.inputs))[1:]:
        array = const(value)
        if value is not None and array is not None:
            scaled = (array.astype(np.float64) / scale).astype(array.dtype)
            node.replace_input_with(index, add_const(node.graph, f"{value.name}/scaled", scaled))
