"""Where a quantized operator is replaced: nodes made in front of it, parameters as Q and DQ take them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from effc.core.ir import Array, add_const, const, replace
from effc.core.rewrite import erase
from effc.core.shapes import infer_node
from effc.passes.fuse.rewriting import drop_value, result_name

_EIGHT = (ir.DataType.UINT8, ir.DataType.INT8)


class Declined(Exception):
    """Why a node is not lowered."""


@dataclass
class Site:
    """Makes nodes in front of one node, and puts the last in its place."""

    graph: ir.Graph
    node: ir.Node
    opset: int
    made: list[ir.Node] = field(default_factory=list)

    def emit(self, op: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        given = {k: v for k, v in attributes.items() if v is not None}
        new = ir.node(op, inputs, given, name=f"{result_name(self.node)}/{op}")
        new.metadata_props.update(self.node.metadata_props)
        out: ir.Value = new.outputs[0]
        out.name = f"{self.node.outputs[0].name}/{op}_{len(self.made)}"
        self.made.append(new)
        self.graph.insert_before(self.node, new)
        infer_node(new, self.opset)
        return out

    def dequantize(
        self, x: ir.Value, scale: ir.Value, zero: ir.Value | None, axis: int | None = None
    ) -> ir.Value:
        scale, one = self._parameter(scale)
        if zero is not None:
            zero, _ = self._parameter(zero)
        if not one and axis is None:
            raise Declined("its input has a scale a channel")
        if not one and zero is not None and const(zero) is not None and not const(zero).shape:  # type: ignore[union-attr]
            zero = self._spread(zero, scale)
        return self.emit("DequantizeLinear", x, scale, zero, axis=None if one else axis)

    def quantize(self, x: ir.Value, scale: ir.Value, zero: ir.Value | None) -> ir.Value:
        scale, one = self._parameter(scale)
        if not one:
            raise Declined("its output has a scale a channel")
        if zero is not None:
            zero, _ = self._parameter(zero)
            return self.emit("QuantizeLinear", x, scale, zero)
        dtype = self.node.outputs[0].dtype or next(
            (v.dtype for v in self.node.inputs if v is not None and v.dtype in _EIGHT), None
        )
        if dtype is None or (dtype != ir.DataType.UINT8 and self.opset < 21):
            raise Declined("its output lacks a zero point that says the type")
        return self.emit(
            "QuantizeLinear", x, scale, output_dtype=dtype.value if self.opset >= 21 else None
        )

    def constant(self, name: str, array: Array) -> ir.Value:
        return add_const(self.graph, f"{result_name(self.node)}/{name}", array)

    def finish(self, value: ir.Value) -> None:
        """`value` takes the place of the node's result."""
        old = self.node.outputs[0]
        name, shape, kind = old.name, old.shape, old.type
        feeds = [v for v in self.node.inputs if v is not None]
        if value.shape is None:
            value.shape = shape
        if value.type is None:
            value.type = kind
        if old.is_graph_output():
            replace(old, value)
        else:
            old.name = f"{name}.replaced"
            ir.convenience.replace_all_uses_with(old, value)
            value.name = name
        erase(self.node)
        for feed in feeds:
            drop_value(feed)

    def undo(self) -> None:
        """Take away again what was made."""
        for node in reversed(self.made):
            feeds = [v for v in node.inputs if v is not None]
            erase(node)
            for feed in feeds:
                drop_value(feed)

    def _parameter(self, value: ir.Value) -> tuple[ir.Value, bool]:
        """A scale or zero point, and whether it is one for the tensor: then without dimensions."""
        array = const(value)
        if array is None:
            shape = value.shape
            if shape is not None and len(shape) > 0 and tuple(shape) != (1,):
                raise Declined("it has scales that are computed, one a channel")
            return value, True
        if array.size != 1:
            if array.ndim != 1:
                raise Declined(f"it has scales of shape {list(array.shape)}")
            return value, False
        if array.ndim:
            return self.constant("parameter", array.reshape(())), True
        return value, True

    def _spread(self, zero: ir.Value, scale: ir.Value) -> ir.Value:
        one, many = const(zero), const(scale)
        if one is None or many is None:
            raise Declined("its zero points are computed")
        return self.constant("zero_point", np.full(many.shape, one, one.dtype))
