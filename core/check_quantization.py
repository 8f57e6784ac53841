"""The linter of Q/DQ models: every quantizer that a scheme does not allow, with the node and the rule."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from effc.core.errors import Problem
from effc.core.ir import const, is_op
from effc.core.quant import QuantParams, quant_params
from effc.core.schemes import (
    MOVES,
    Kind,
    Law,
    OpRule,
    Scheme,
    TensorRule,
    activation_inputs,
    refusal,
    weight_axis,
)
from effc.core.source import place_of

_BIAS_TOLERANCE = 1e-4  # of the ratio of a bias's scale to sx * sw


def check_quantization(graph: ir.Graph, scheme: Scheme) -> list[Problem]:
    """What of the Q/DQ in `graph` the scheme does not allow, in the order of the nodes."""
    found: list[Problem] = []
    for node in graph:
        found += [
            Problem(str(node.name), node.op_type, reason, remedy, place_of(node))
            for reason, remedy in _node(node, scheme)
        ]
    if scheme.interface:
        found += _interface(graph)
    return found


_Finding = tuple[str, str]  # reason, remedy


def _node(node: ir.Node, scheme: Scheme) -> Iterator[_Finding]:
    if is_op(node, "QuantizeLinear", "DequantizeLinear"):
        yield from _pair(node, scheme)
        return
    # a scheme that quantizes no movers still has laws for what a user quantized around them
    rule = scheme.ops.get(node.op_type) or MOVES.get(node.op_type)
    if rule is None or node.domain:
        return
    if rule.kind is Kind.MULTIPLY:
        yield from _multiplication(node, scheme)
    if node.op_type == "Concat":
        if Law.JOINED in scheme.laws:
            yield from _shared(node, rule, Law.JOINED)
    elif rule.kind is Kind.MOVE and Law.SHARED in scheme.laws and not refusal(node):
        yield from _shared(node, rule, Law.SHARED)
    if rule.kind is Kind.CLAMP and Law.CLAMP in scheme.laws:
        yield from _clamp(node, scheme)
    if node.op_type == "Add" and Law.RESIDUAL in scheme.laws:
        yield from _residual(node, scheme)


def _pair(node: ir.Node, scheme: Scheme) -> Iterator[_Finding]:
    """What holds for a Q or DQ on its own."""
    params = quant_params(node)
    if params is None:
        yield (
            "its scale or zero point is computed, or no float32",
            "quantize with constant parameters: dynamic quantization is for onnxruntime alone",
        )
        return
    if not (np.isfinite(params.scale).all() and (params.scale > 0).all()):
        yield "its scale is not positive and finite", "calibrate again"
        return
    role = _role(node)
    if role == "bias":
        return  # its user says whether it fits
    rule = scheme.weight if role == "weight" else scheme.activation
    yield from _tensor(params, rule, role, scheme)


def _tensor(params: QuantParams, rule: TensorRule, role: str, scheme: Scheme) -> Iterator[_Finding]:
    if params.dtype not in rule.dtypes:
        names = " or ".join(d.name for d in rule.dtypes)
        yield f"{scheme.id} quantizes {role}s to {names}, and this is {params.dtype.name}", _AGAIN
    if rule.symmetric and not params.symmetric:
        yield f"{scheme.id} quantizes {role}s symmetrically, and a zero point here is not 0", _AGAIN
    if not rule.per_channel and not params.per_tensor:
        yield f"{scheme.id} quantizes {role}s with one scale a tensor, and this has several", _AGAIN


_AGAIN = "let effc quantize the float model for this target: --precision int8"


def _role(node: ir.Node) -> str:
    """Whether a Q or DQ stands before a weight, a bias, or an activation."""
    if not _holds(node):
        return "activation"
    readers = [u.node for u in node.outputs[0].uses()] if is_op(node, "QuantizeLinear") else [node]
    for use in (u for n in readers for u in n.outputs[0].uses()):
        if is_op(use.node, *_MULTIPLICATIONS) and use.idx in (1, 2):
            return "weight" if use.idx == 1 else "bias"
    return "activation"


def _holds(node: ir.Node) -> bool:
    """Whether a Q or DQ is of a constant, integers or reals that a Q before it makes integers of."""
    value = node.inputs[0]
    made = value.producer() if value is not None else None
    if is_op(node, "DequantizeLinear") and made is not None and is_op(made, "QuantizeLinear"):
        value = made.inputs[0]
    return const(value) is not None


_MULTIPLICATIONS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def _source(node: ir.Node, index: int) -> ir.Node | None:
    """The DequantizeLinear in front of an input."""
    value = node.inputs[index] if index < len(node.inputs) else None
    made = value.producer() if value is not None else None
    return made if is_op(made, "DequantizeLinear") else None


def _multiplication(node: ir.Node, scheme: Scheme) -> Iterator[_Finding]:
    x, w, b = (_source(node, i) for i in range(3))
    px, pw, pb = quant_params(x), quant_params(w), quant_params(b)
    constant = w is not None and _holds(w)
    if Law.BOTH in scheme.laws and x is not None and w is None:
        yield (
            f"rule: {Law.BOTH.value}; its weight is float",
            "quantize the weight, or leave the input real",
        )
    if Law.BOTH in scheme.laws and x is None and w is not None and not constant:
        yield f"rule: {Law.BOTH.value}; its first input is float", "quantize both inputs"
    axis = weight_axis(node)
    if constant and pw is not None and not pw.per_tensor and not pw.block:
        rank = node.inputs[1].shape.rank() if node.inputs[1] and node.inputs[1].shape else axis + 1
        if pw.axis % rank != axis:
            yield (
                f"its weight is quantized along axis {pw.axis}, and its output channels are axis {axis}",
                "quantize the weight by output channel",
            )
    if b is None or pb is None:
        return
    if scheme.bias == "float":
        yield f"{scheme.id} takes no quantized bias", "leave the bias in float32"
    elif pb.dtype != ir.DataType.INT32 or not pb.symmetric:
        yield (
            "its bias is quantized otherwise than to int32 with zero point 0",
            "leave the bias in float32",
        )
    elif px is not None and pw is not None:
        wanted = np.broadcast_to(
            px.scale * pw.scale, np.broadcast_shapes(pw.scale.shape, pb.scale.shape)
        )
        if not np.allclose(pb.scale, wanted, rtol=_BIAS_TOLERANCE, atol=0):
            yield (
                "the scale of its bias is not sx * sw",
                "leave the bias in float32, or requantize it",
            )


def _shared(node: ir.Node, rule: OpRule, law: Law) -> Iterator[_Finding]:
    sources = [_source(node, i) for i in activation_inputs(node, rule)]
    sinks = [u.node for o in node.outputs for u in o.uses() if is_op(u.node, "QuantizeLinear")]
    if None in sources or not (sinks or len(sources) > 1):
        return
    found = [p for n in (*sources, *sinks) if (p := quant_params(n)) is not None]
    if any(not p.same(found[0]) for p in found[1:]):
        yield f"rule: {law.value}", "give them one scale"


def _clamp(node: ir.Node, scheme: Scheme) -> Iterator[_Finding]:
    made = _quantized_node(node, 0)
    rule = scheme.ops.get(made.op_type) if made is not None else None
    if rule is not None and rule.kind in (Kind.MULTIPLY, Kind.COMBINE):
        yield f"rule: {Law.CLAMP.value}", "put the Q behind it"


def _residual(node: ir.Node, scheme: Scheme) -> Iterator[_Finding]:
    kinds = []
    for index in (0, 1):
        made = _quantized_node(node, index)
        rule = scheme.ops.get(made.op_type) if made is not None else None
        kinds.append(rule.kind if rule is not None else None)
    quantized = [_source(node, i) is not None for i in (0, 1)]
    if all(quantized) and Kind.MULTIPLY in kinds:
        yield f"rule: {Law.RESIDUAL.value}", "leave out the pair behind the multiplication"


def _quantized_node(node: ir.Node, index: int) -> ir.Node | None:
    """The node whose result is quantized in front of an input."""
    pair = _source(node, index)
    stored = pair.inputs[0].producer() if pair is not None and pair.inputs[0] is not None else None
    if stored is None or not is_op(stored, "QuantizeLinear") or stored.inputs[0] is None:
        return None
    return stored.inputs[0].producer()


def _interface(graph: ir.Graph) -> Iterator[Problem]:
    remedy = "quantize it, or let effc quantize the model for this target"
    for value in graph.inputs:
        other = [u.node for u in value.uses() if not is_op(u.node, "QuantizeLinear")]
        if value.dtype == ir.DataType.FLOAT and other and const(value) is None:
            reason = f"rule: {Law.INTERFACE.value}; it reads the float input {value.name!r}"
            yield Problem(str(other[0].name), other[0].op_type, reason, remedy)
    for value in graph.outputs:
        made = value.producer()
        if value.dtype == ir.DataType.FLOAT and made and not is_op(made, "DequantizeLinear"):
            reason = f"rule: {Law.INTERFACE.value}; it makes the float output {value.name!r}"
            yield Problem(str(made.name), made.op_type, reason, remedy)
