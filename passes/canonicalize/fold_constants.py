"""fold-constants: what follows from constants alone is computed now."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx
import onnx_ir as ir

from effc.core.errors import FrontendError
from effc.core.ir import WORKING_OPSET, Array, add_const, const, graphs, is_op, shape_of
from effc.core.passinfra import Effect, Pass, PassContext
from effc.core.rewrite import bypass, erase
from effc.core.shapes import infer_node
from effc.passes.canonicalize.evaluate import evaluate
from effc.passes.canonicalize.inline_if import inline_if

# a quantized weight stays what it is: Q/DQ is how quantization is written down; random is not constant
_NEVER = frozenset(
    {
        "Constant",
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Multinomial",
        "Bernoulli",
        "Dropout",
    }
)
# outputs whose size only the data tells, but never above a few times the input's
_BY_DATA = frozenset({"NonZero", "Unique", "Compress", "NonMaxSuppression"})
_BY_DATA_ELEMENTS = 1 << 16
# operators whose work is not linear in the bytes they read and write
_SUPERLINEAR = frozenset(
    {
        *("MatMul", "Gemm", "Conv", "ConvTranspose", "ConvInteger", "MatMulInteger", "Einsum"),
        *("QLinearConv", "QLinearMatMul", "LSTM", "GRU", "RNN", "Attention", "DFT", "STFT", "Det"),
        *("AveragePool", "MaxPool", "LpPool", "DeformConv", "CumSum", "NonMaxSuppression"),
        *("RoiAlign", "MaxRoiPool", "GridSample", "Resize", "TopK", "Unique", "LRN"),
    }
)
_MOST_PRODUCT = 1 << 32  # input elements times output elements
_NATIVE = frozenset(
    np.dtype(t)
    for t in (
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64"),
    )
)


@dataclass(frozen=True, slots=True)
class FoldConstants(Pass):
    """f(c, d) -> the constant e = f(c, d);  If(true) -> its then branch

    Computed by onnxruntime's own kernels without optimization, so no bit changes. What a node would
    make is known before it runs, from shapes: it declines where one result is over `max_bytes`; where
    it is over `max_growth_bytes` and over four times the constants it comes from (Expand, Tile and
    ConstantOfShape stay what they are); where all results of a run together are over four times
    `max_bytes`; and at work out of proportion. Never touches random operators, QuantizeLinear and
    DequantizeLinear (Q/DQ is the representation of quantization), and loops.
    A constant that is a graph output is made by a Constant node.
    """

    id: ClassVar[str] = "fold-constants"
    effect: ClassVar[Effect] = Effect.EXACT

    max_bytes: int = field(
        default=64 << 20, metadata={"help": "the largest result to keep", "unit": "bytes"}
    )
    max_growth_bytes: int = field(
        default=1 << 20,
        metadata={
            "help": "the largest result that is much larger than what it comes from",
            "unit": "bytes",
        },
    )

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        opset = model.graph.opset_imports.get("", WORKING_OPSET)
        fold = _Fold(opset, self.max_bytes, self.max_growth_bytes)
        count = 0
        for graph in list(graphs(model)):
            for node in [n for n in graph if is_op(n, "If")]:
                count += node.graph is graph and inline_if(node)
        for graph in list(graphs(model)):
            fold.run(graph)
        return count + fold.count


class _Fold:
    def __init__(self, opset: int, max_bytes: int, max_growth_bytes: int) -> None:
        self.opset = opset
        self.max_bytes = max_bytes
        self.max_growth_bytes = max_growth_bytes
        self.budget = 4 * max_bytes
        self.count = 0
        self.pending: list[ir.Node] = []
        self.made: set[ir.Value] = set()

    def run(self, graph: ir.Graph) -> None:
        for node in list(graph):
            if node.graph is None or not self._may(node):
                continue
            if any(v in self.made for v in node.inputs) and not _sized(node):
                self._flush(graph)  # its shape may follow from what is computed there
            if not _sized(node):
                try:
                    infer_node(node, self.opset)
                except FrontendError:
                    continue  # the runtime will say so with the node's own words
            if self._fits(node):
                self.pending.append(node)
                self.made.update(node.outputs)
        self._flush(graph)

    def _may(self, node: ir.Node) -> bool:
        if node.domain != "" or node.op_type in _NEVER:
            return False
        if node.attributes and any(
            a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
            for a in node.attributes.values()
        ):
            return False
        for value in node.inputs:
            if value is None or value in self.made:
                continue
            tensor = value.const_value
            if tensor is None or value.is_graph_input() or not _readable(tensor.dtype):
                return False
        if node.op_type == "Constant":
            return False
        return onnx.defs.has(node.op_type, "")

    def _fits(self, node: ir.Node) -> bool:
        if is_op(node, "ConstantOfShape", "Range") and node.outputs[0].dtype is None:
            return False
        reads = sum(_bytes(v) for v in node.inputs if v is not None)
        if node.op_type in _BY_DATA:
            return all(isinstance(v.type, ir.TensorType) for v in node.outputs) and all(
                _elements(v) <= _BY_DATA_ELEMENTS for v in node.inputs if v is not None
            )
        total = 0
        for value in node.outputs:
            if value.name == "":
                continue
            if not isinstance(value.type, ir.TensorType):  # a sequence is no constant
                return False
            if shape_of(value) is None or not _native(value.dtype):
                return False
            size = _bytes(value)
            if size > self.max_bytes or size > max(self.max_growth_bytes, 4 * reads):
                return False
            total += size
        if node.op_type in _SUPERLINEAR:
            work = sum(_elements(v) for v in node.inputs if v is not None)
            if work * sum(_elements(v) for v in node.outputs) > _MOST_PRODUCT:
                return False
        if total > self.budget:
            return False
        self.budget -= total
        return True

    def _flush(self, graph: ir.Graph) -> None:
        if not self.pending:
            return
        nodes, self.pending = self.pending, []
        inside = set(nodes)
        feeds: dict[ir.Value, Array] = {}
        for node in nodes:
            for value in node.inputs:
                if value is not None and value not in self.made:
                    array = const(value)
                    if array is not None:
                        feeds[value] = array
        wanted = [
            v
            for n in nodes
            for v in n.outputs
            if v.is_graph_output() or any(u.node not in inside for u in v.uses())
        ]
        self.made.clear()
        found = evaluate(nodes, feeds, wanted, self.opset)
        for value, array in found.items():
            if array.dtype not in _NATIVE or (
                value.dtype is not None and array.dtype != value.dtype.numpy()
            ):
                continue
            _become(graph, value, array)
            self.count += 1


def _become(graph: ir.Graph, value: ir.Value, array: Array) -> None:
    """`value` becomes the constant `array`; its node goes once nothing reads any of its outputs."""
    node = value.producer()
    if node is None:
        return
    if value.is_graph_output():
        tensor = ir.tensor(np.asarray(array, order="C"))
        made = ir.node("Constant", [], {"value": tensor}, name=node.name)
        made.outputs[0].type, made.outputs[0].shape = value.type, ir.Shape(array.shape)
        graph.insert_before(node, [made])
        bypass(node, made.outputs[0])
        return
    new = add_const(graph, f"{value.name}_folded", array)
    value.replace_all_uses_with(new)
    erase(node)


def _native(dtype: ir.DataType | None) -> bool:
    try:
        return dtype is not None and np.dtype(dtype.numpy()) in _NATIVE
    except TypeError:  # strings and undefined have no numpy type
        return False


def _readable(dtype: ir.DataType | None) -> bool:
    return _native(dtype) or dtype in (
        ir.DataType.UINT4,
        ir.DataType.INT4,
        ir.DataType.BFLOAT16,
    )


def _sized(node: ir.Node) -> bool:
    return all(
        v.name == "" or (shape_of(v) is not None and v.dtype is not None) for v in node.outputs
    )


def _elements(value: ir.Value) -> int:
    if value.const_value is not None:
        return int(value.const_value.size)
    return math.prod(shape_of(value) or ())


def _bytes(value: ir.Value) -> int:
    if value.const_value is not None:
        return int(value.const_value.nbytes)
    itemsize = value.dtype.itemsize if value.dtype is not None else 8
    return math.ceil(_elements(value) * itemsize)
