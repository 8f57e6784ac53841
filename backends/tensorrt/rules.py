"""What a graph must keep to besides its operators: the types that a GPU has, and quantization."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from effc.core.check_quantization import check_quantization
from effc.core.errors import Problem
from effc.core.ir import attr, const, is_op, subgraphs
from effc.core.schemes import scheme, weight_axis
from effc.core.source import place_of

FP8 = (ir.DataType.FLOAT8E4M3FN,)
_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_INT8 = (ir.DataType.INT8, ir.DataType.UINT8)
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# the first compute capability with instructions of a type
_SINCE = {ir.DataType.BFLOAT16: 80, ir.DataType.INT4: 80, ir.DataType.FLOAT8E4M3FN: 89}
_INSTEAD = {
    ir.DataType.BFLOAT16: "take --precision fp16",
    ir.DataType.INT4: "take 8-bit weights, or --precision fp16",
    ir.DataType.FLOAT8E4M3FN: "take --precision fp16 there; FP8 needs Ada (SM89) or later",
}
W8A8_REASON = (
    "TensorRT for RTX does not fuse int8 convolutions and products: it quantizes weights only, and the rest"
    " runs as separate layers"
)
W8A8_REMEDY = (
    "take --precision fp16 (on SM89 and later also a model with FP8 Q/DQ), or the full TensorRT:"
    " --backend-option product=bundle"
)


def type_problems(graph: ir.Graph, sm: int, product: str) -> Iterator[Problem]:
    """Every node with a type that compute capability `sm` has not, subgraphs included."""
    for node in graph:
        for reason, remedy in _types(node, sm, product):
            yield Problem(str(node.name), node.op_type, reason, remedy, place_of(node))
        for inner in subgraphs(node):
            yield from type_problems(inner, sm, product)


def any_half(graph: ir.Graph) -> bool:
    """Whether any node makes a tensor of 16 bits."""
    return any(v.dtype in _HALVES for n in graph for v in n.outputs)


def _types(node: ir.Node, sm: int, product: str) -> Iterator[tuple[str, str]]:
    for value in (*node.inputs, *node.outputs):
        since = _SINCE.get(value.dtype) if value is not None and value.dtype else None
        if value is not None and value.dtype is not None and since is not None and sm < since:
            name = value.dtype.name
            yield f"SM{sm} does not compute {name}", _INSTEAD[value.dtype]
            break
    if sm == 75 and product == "rtx" and is_op(node, "Gemm", "MatMul"):
        if node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.FLOAT:
            yield (
                "TensorRT for RTX has no float32 matrix product on SM75 (Turing)",
                "take --precision fp16",
            )


def quantization_problems(graph: ir.Graph, product: str) -> Iterator[Problem]:
    """What of the Q/DQ in `graph` TensorRT's rules do not allow; for RTX, integer activations at all."""
    short = {n.name for n in graph if _short(n)}
    for problem in check_quantization(graph, scheme("tensorrt")):
        if problem.node not in short:  # the linter of the scheme reads float32 scales and integers
            yield problem
    for node in graph:
        found = list(_short_pair(node)) if node.name in short else []
        if product == "rtx" and is_op(node, *_PRODUCTS) and _integer_activation(node):
            found.append((W8A8_REASON, W8A8_REMEDY))
        for reason, remedy in found:
            yield Problem(str(node.name), node.op_type, reason, remedy, place_of(node))


def _short(node: ir.Node) -> bool:
    """Whether a Q or DQ has constant scales of 16 bits, as in networks of half precision, or FP8 values."""
    if not is_op(node, "QuantizeLinear", "DequantizeLinear") or const(node.inputs[1]) is None:
        return False
    values = (*node.inputs, *node.outputs)
    return any(v is not None and v.dtype in (*FP8, *_HALVES) for v in values)


def _short_pair(node: ir.Node) -> Iterator[tuple[str, str]]:
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    stored = const(zero)
    if zero is not None and (stored is None or stored.astype(np.float32).any()):
        yield "TensorRT quantizes symmetrically, and its zero point is not 0", _AGAIN
    if not is_op(node, "DequantizeLinear") or const(node.inputs[0]) is None:
        return
    if node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.INT32:
        yield "TensorRT takes no quantized bias", "leave the bias real"
    scale = const(node.inputs[1])
    if scale is None or scale.size == 1 or attr(node, "block_size", 0):
        return
    for use in node.outputs[0].uses():
        if use.idx == 1 and is_op(use.node, *_PRODUCTS):
            axis, wanted = int(attr(node, "axis", 1)), weight_axis(use.node)
            rank = len(node.inputs[0].shape or ()) if node.inputs[0] is not None else 0
            if rank and axis % rank != wanted:
                yield (
                    f"its weight is quantized along axis {axis}, and its output channels are axis {wanted}",
                    "quantize the weight by output channel",
                )


_AGAIN = "let effc quantize the float model for this target: --precision int8"


def _integer_activation(node: ir.Node) -> bool:
    value = node.inputs[0]
    made = value.producer() if value is not None else None
    if made is None or not is_op(made, "DequantizeLinear") or made.inputs[0] is None:
        return False
    return made.inputs[0].dtype in _INT8 and const(made.inputs[0]) is None
