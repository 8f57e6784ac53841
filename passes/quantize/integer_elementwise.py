"""Sums, products, pooling and functions of one quantized tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from effc.core.integers.rounding import (
    common_multipliers,
    multiplier_for,
    requantize,
    tflite_multiplier,
)
from effc.core.ir import Array, attr, const, is_op
from effc.core.quant import integer_range
from effc.passes.canonicalize.evaluate import evaluate
from effc.passes.quantize.integer_form import (
    Maker,
    Target8,
    Tensor8,
    tensor8,
    whole_dims,
)

_MOST_NODES = 32  # in the formula of one function

# operators whose result at an element depends on that element alone
UNARY = frozenset(
    "Abs Acos Acosh Asin Asinh Atan Atanh Ceil Celu Clip Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid "
    "HardSwish Identity LeakyRelu Log Mish Neg PRelu Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh "
    "Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu".split()
)
_BINARY = frozenset({"Add", "Sub", "Mul", "Div", "Max", "Min", "Pow"})


def sum_of(node: ir.Node, target: Target8, maker: Maker) -> ir.Node | None:
    """Add or Sub of two quantized tensors."""
    a, b = tensor8(node.inputs[0]), tensor8(node.inputs[1])
    if a is None or b is None:
        return None
    sign = -1 if is_op(node, "Sub") else 1
    reals = np.array([a.scale, b.scale]) / target.scale
    attributes: dict[str, Any] = {"a_zero_point": a.zero, "b_zero_point": b.zero}
    if maker.rounding == "float32":
        attributes |= {
            "a_multiplier": maker.number(reals[0]),
            "b_multiplier": maker.number(sign * reals[1]),
        }
    elif maker.rounding == "fixed":
        (by_a, by_b), shift = common_multipliers(reals, 21)
        if not 1 <= shift:  # sums of 30 bits need room for the rounding
            return None
        attributes |= {
            "a_multiplier": [int(by_a), shift],
            "b_multiplier": [sign * int(by_b), shift],
        }
    else:
        twice = 2 * max(a.scale, b.scale)
        by_b_pair = maker.number(b.scale / twice)
        assert isinstance(by_b_pair, list)
        attributes |= {
            "left_shift": 20,
            "a_multiplier": maker.number(a.scale / twice),
            "b_multiplier": [sign * by_b_pair[0], by_b_pair[1]],
            "multiplier": maker.number(twice / ((1 << 20) * target.scale)),
        }
    return maker.node(node, "Add", [a.value, b.value], {**attributes, **target.attributes})


def product_of_two(node: ir.Node, target: Target8, maker: Maker) -> ir.Node | None:
    """Mul of two quantized tensors."""
    a, b = tensor8(node.inputs[0]), tensor8(node.inputs[1])
    if a is None or b is None:
        return None
    attributes = {
        "a_zero_point": a.zero,
        "b_zero_point": b.zero,
        "multiplier": maker.number(a.scale * b.scale / target.scale),
    }
    return maker.node(node, "Mul", [a.value, b.value], {**attributes, **target.attributes})


def average_pool(node: ir.Node, target: Target8, maker: Maker) -> ir.Node | None:
    """AveragePool of a quantized tensor."""
    x = tensor8(node.inputs[0])
    if x is None or attr(node, "auto_pad", "NOTSET") not in ("NOTSET", ""):
        return None
    if maker.rounding == "tflite" and not x.params.same(target.params):
        return None  # there is no such operator there
    if int(np.prod(attr(node, "kernel_shape"))) * 255 >= 2**31:
        return None
    names = ("kernel_shape", "strides", "pads", "dilations", "ceil_mode", "count_include_pad")
    return _averaging(node, "AveragePool", x, target, maker, {n: attr(node, n) for n in names})


def global_average_pool(node: ir.Node, target: Target8, maker: Maker) -> ir.Node | None:
    """GlobalAveragePool, or ReduceMean over all spatial axes that keeps them, of a quantized tensor."""
    x = tensor8(node.inputs[0])
    space = whole_dims(node.inputs[0], 2)
    if x is None or not space or np.prod(space) * 255 >= 2**31:
        return None
    if is_op(node, "ReduceMean"):
        axes = const(node.inputs[1]) if len(node.inputs) > 1 else None
        if axes is None or not attr(node, "keepdims", 1):
            return None
        rank = 2 + len(space)
        if sorted(int(a) % rank for a in axes) != list(range(2, rank)):
            return None
    return _averaging(node, "GlobalAveragePool", x, target, maker, {})


def _averaging(
    node: ir.Node, op: str, x: Tensor8, target: Target8, maker: Maker, more: dict[str, Any]
) -> ir.Node:
    multiplier = maker.number(x.scale / target.scale)
    if maker.rounding == "fixed":  # of 31 bits: the count will take some away
        m, s = tflite_multiplier(x.scale / target.scale)
        multiplier = [int(m), 31 - int(s)]
    attributes = {"x_zero_point": x.zero, "multiplier": multiplier, **more}
    return maker.node(node, op, [x.value], {**attributes, **target.attributes})


def requantized(x: Tensor8, target: Target8, maker: Maker) -> ir.Node | None:
    """The clamped `x` in the target's parameters; None where nothing is to be done."""
    if x.params.same(target.params) and (target.low, target.high) == integer_range(x.params.dtype):
        return None
    attributes = {"x_zero_point": x.zero, "multiplier": maker.number(x.scale / target.scale)}
    return maker.node(target.node, "Requantize", [x.value], {**attributes, **target.attributes})


def lookup(target: Target8, opset: int, maker: Maker) -> ir.Node | None:
    """Any formula of one quantized tensor and numbers, as a table of what it gives for each value.

    onnxruntime computes the table with its kernels for real numbers, QuantizeLinear included.
    """
    found = _formula(target.node)
    if found is None:
        return None
    nodes, x = found
    if maker.rounding == "tflite" and [n.op_type for n in nodes[:-1]] == ["LeakyRelu"]:
        return _lookup_of(nodes[0], x, _tflite_leaky_relu(nodes[0], x, target), target, maker)
    low, high = integer_range(x.params.dtype)
    every = np.arange(low, high + 1).astype(x.params.zero_point.dtype)
    feeds: dict[ir.Value, Array] = {}
    for node in nodes:
        for value in node.inputs:
            if value is None or value in feeds:
                continue
            array = const(value)
            if array is not None:
                feeds[value] = array
            elif (source := tensor8(value)) is not None and source.value is x.value:
                feeds[value] = x.params.dequantize(every)
    output = target.node.outputs[0]
    table = evaluate(nodes, feeds, [output], opset).get(output)
    if table is None or table.shape != (256,):
        return None
    return _lookup_of(nodes[-2], x, table, target, maker)


def _lookup_of(node: ir.Node, x: Tensor8, table: Array, target: Target8, maker: Maker) -> ir.Node:
    held = maker.constant(target.node, "table", table, ("table", table.tobytes(), table.dtype.str))
    attributes = {"x_zero_point": x.zero, **target.attributes}
    return maker.node(node, "Lookup", [x.value, held], attributes)


def _tflite_leaky_relu(node: ir.Node, x: Tensor8, target: Target8) -> Array:
    """TensorFlow Lite requantizes each sign by a multiplier of its own, made in float32."""
    low, high = integer_range(x.params.dtype)
    every = np.arange(low, high + 1) - x.zero
    scale, out = x.params.scale, target.params.scale
    slope = np.float32(attr(node, "alpha", 0.01))
    ends = (int(target.params.zero_point), target.low, target.high)
    rising, falling = (
        requantize(every, multiplier_for("tflite", real), *ends, "tflite")
        for real in (scale / out, scale * slope / out)
    )
    return np.where(every >= 0, rising, falling).astype(target.params.zero_point.dtype)


def _formula(end: ir.Node) -> tuple[list[ir.Node], Tensor8] | None:
    """The nodes of a formula of one quantized tensor, in order, up to `end`."""
    inside: dict[ir.Node, None] = {}
    leaf: Tensor8 | None = None
    finished: list[ir.Node] = []

    work: list[tuple[ir.Node, bool]] = [(end, False)]
    while work:
        node, seen = work.pop()
        if seen:
            finished.append(node)
            continue
        if node in inside:
            continue
        inside[node] = None
        if len(inside) > _MOST_NODES:
            return None
        work.append((node, True))
        for value in node.inputs[:1] if node is end else node.inputs:
            if value is None:
                continue
            constant = const(value)
            if constant is not None:
                if constant.size != 1 or constant.ndim > 1:
                    return None
                continue
            source = tensor8(value)
            if source is not None:
                if leaf is not None and (
                    leaf.value is not source.value or not leaf.params.same(source.params)
                ):
                    return None
                leaf = source
                continue
            producer = value.producer()
            if producer is None or producer.domain != "":
                return None
            if producer.op_type not in UNARY and producer.op_type not in _BINARY:
                return None
            work.append((producer, False))
    return (finished, leaf) if leaf is not None and len(finished) > 1 else None
