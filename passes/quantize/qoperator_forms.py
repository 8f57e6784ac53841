"""What each quantized operator is between DequantizeLinear and QuantizeLinear."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from effc.core.ir import WORKING_OPSET, attr, const, is_op, sole_use
from effc.core.shapes import infer_node
from effc.passes.quantize.qoperator_site import Declined, Site

_WINDOW = ("kernel_shape", "strides", "pads", "dilations", "group", "auto_pad")


def _input(node: ir.Node, k: int) -> ir.Value:
    value = _optional(node, k)
    if value is None:
        raise Declined(f"its input {k} is absent")
    return value


def _optional(node: ir.Node, k: int) -> ir.Value | None:
    return node.inputs[k] if k < len(node.inputs) else None


def _rank(value: ir.Value) -> int | None:
    array = const(value)
    if array is not None:
        return array.ndim
    return len(value.shape) if value.shape is not None else None


def _attributes(node: ir.Node, *names: str) -> dict[str, Any]:
    return {n: attr(node, n) for n in names}


def _channels_first(node: ir.Node) -> None:
    if attr(node, "channels_last", 0):
        raise Declined("it has its channels last")


def _bias(site: Site, b: ir.Value, xs: ir.Value, ws: ir.Value, factor: float = 1.0) -> ir.Value:
    """An int32 bias of scale factor * xs * ws as a real number."""
    x, w = const(xs), const(ws)
    if x is None or w is None:
        raise Declined("it has a bias, and scales that are computed")
    scale = x.astype(np.float32).reshape(()) * w.astype(np.float32) * np.float32(factor)
    held = site.constant("bias_scale", scale.reshape(()) if scale.size == 1 else scale)
    return site.emit("DequantizeLinear", b, held, axis=0 if scale.size > 1 else None)


def _conv(site: Site, node: ir.Node) -> None:
    _channels_first(node)
    x, w = (_input(node, k) for k in (0, 3))
    b = _optional(node, 8)
    real = [
        site.dequantize(x, _input(node, 1), _optional(node, 2)),
        site.dequantize(w, _input(node, 4), _optional(node, 5), axis=0),
        None if b is None else _bias(site, b, _input(node, 1), _input(node, 4)),
    ]
    y = site.emit("Conv", *real[: 3 if b is not None else 2], **_attributes(node, *_WINDOW))
    site.finish(site.quantize(y, _input(node, 6), _optional(node, 7)))


def _matmul(site: Site, node: ir.Node) -> None:
    a, b = _input(node, 0), _input(node, 3)
    rank = _rank(b)
    real = [
        site.dequantize(a, _input(node, 1), _optional(node, 2)),
        site.dequantize(
            b, _input(node, 4), _optional(node, 5), axis=None if rank is None else rank - 1
        ),
    ]
    site.finish(site.quantize(site.emit("MatMul", *real), _input(node, 6), _optional(node, 7)))


def _gemm(site: Site, node: ir.Node) -> None:
    a, b, c = _input(node, 0), _input(node, 3), _optional(node, 6)
    alpha = float(attr(node, "alpha", 1.0))
    turned = bool(attr(node, "transB", 0))
    real = [
        site.dequantize(a, _input(node, 1), _optional(node, 2)),
        site.dequantize(b, _input(node, 4), _optional(node, 5), axis=0 if turned else 1),
    ]
    if c is not None:
        scales = const(_input(node, 4))
        held = const(c)
        if held is not None and held.ndim > 1 and scales is not None and scales.size > 1:
            if held.size != scales.size:
                raise Declined("its bias has more than one row, and a scale a column")
            c = site.constant("bias", held.reshape(-1))
        real.append(_bias(site, c, _input(node, 1), _input(node, 4), alpha))
    given = {
        "transA": attr(node, "transA", 0) or None,
        "transB": int(turned) or None,
        "alpha": alpha if alpha != 1.0 else None,
    }
    y = site.emit("Gemm", *real, **given)
    scale = _optional(node, 7)
    site.finish(y if scale is None else site.quantize(y, scale, _optional(node, 8)))


def _binary(op: str) -> Callable[[Site, ir.Node], None]:
    def lower(site: Site, node: ir.Node) -> None:
        a = site.dequantize(_input(node, 0), _input(node, 1), _optional(node, 2))
        b = site.dequantize(_input(node, 3), _input(node, 4), _optional(node, 5))
        site.finish(site.quantize(site.emit(op, a, b), _input(node, 6), _optional(node, 7)))

    return lower


def _unary(op: str, *names: str) -> Callable[[Site, ir.Node], None]:
    def lower(site: Site, node: ir.Node) -> None:
        _channels_first(node)
        x = site.dequantize(_input(node, 0), _input(node, 1), _optional(node, 2))
        y = site.emit(op, x, **_attributes(node, *names))
        site.finish(site.quantize(y, _input(node, 3), _optional(node, 4)))

    return lower


def _leaky_relu(site: Site, node: ir.Node) -> None:
    x = site.dequantize(_input(node, 0), _input(node, 1), _optional(node, 2))
    y = site.emit("LeakyRelu", x, alpha=attr(node, "alpha", 0.01))
    site.finish(site.quantize(y, _input(node, 3), _optional(node, 4)))


def _softmax(site: Site, node: ir.Node) -> None:
    old = int(attr(node, "opset", WORKING_OPSET)) < 13
    axis, rank = int(attr(node, "axis", 1 if old else -1)), _rank(_input(node, 0))
    if old and (rank is None or axis % rank != rank - 1):
        raise Declined("it is the Softmax of an opset under 13, over more than the last axis")
    x = site.dequantize(_input(node, 0), _input(node, 1), _optional(node, 2))
    y = site.emit("Softmax", x, axis=axis)
    site.finish(site.quantize(y, _input(node, 3), _optional(node, 4)))


def _concat(site: Site, node: ir.Node) -> None:
    real = [
        site.dequantize(_input(node, k), _input(node, k + 1), _optional(node, k + 2))
        for k in range(2, len(node.inputs), 3)
    ]
    y = site.emit("Concat", *real, axis=attr(node, "axis"))
    site.finish(site.quantize(y, _input(node, 0), _optional(node, 1)))


def _where(site: Site, node: ir.Node) -> None:
    a = site.dequantize(_input(node, 1), _input(node, 2), _optional(node, 3))
    b = site.dequantize(_input(node, 4), _input(node, 5), _optional(node, 6))
    y = site.emit("Where", _input(node, 0), a, b)
    site.finish(site.quantize(y, _input(node, 7), _optional(node, 8)))


def _vendor_quantize(site: Site, node: ir.Node) -> None:
    x, scale, zero = _input(node, 0), _input(node, 1), _optional(node, 2)
    site.finish(_as_it_is(site, "QuantizeLinear", x, scale, zero, node))


def _vendor_dequantize(site: Site, node: ir.Node) -> None:
    x, scale, zero = _input(node, 0), _input(node, 1), _optional(node, 2)
    site.finish(_as_it_is(site, "DequantizeLinear", x, scale, zero, node))


def _as_it_is(
    site: Site, op: str, x: ir.Value, scale: ir.Value, zero: ir.Value | None, node: ir.Node
) -> ir.Value:
    block = attr(node, "block_size", 0)
    inputs = [x, scale] if zero is None else [x, scale, zero]
    many = const(scale) is not None and const(scale).size > 1  # type: ignore[union-attr]
    return site.emit(
        op, *inputs, axis=attr(node, "axis", 1) if many else None, block_size=block or None
    )


def _product_to_float(site: Site, node: ir.Node) -> None:
    """MatMulIntegerToFloat(A, B, a_scale, b_scale, a_zero, b_zero, bias)."""
    rank = _rank(_input(node, 1))
    a = site.dequantize(_input(node, 0), _input(node, 2), _optional(node, 4))
    axis = None if rank is None else rank - 1
    b = site.dequantize(_input(node, 1), _input(node, 3), _optional(node, 5), axis=axis)
    y = site.emit("MatMul", a, b)
    bias = _optional(node, 6)
    site.finish(y if bias is None else site.emit("Add", y, bias))


def _dynamic_product(site: Site, node: ir.Node) -> None:
    """DynamicQuantizeMatMul(A, B, b_scale, b_zero, bias)."""
    rank = _rank(_input(node, 1))
    name = f"{node.outputs[0].name}/dynamic"
    new = ir.node("DynamicQuantizeLinear", [_input(node, 0)], num_outputs=3, name=name)
    site.made.append(new)
    for k, out in enumerate(new.outputs):
        out.name = f"{name}_{k}"
    site.graph.insert_before(node, new)
    infer_node(new, site.opset)
    q, scale, zero = new.outputs
    axis = None if rank is None else rank - 1
    b = site.dequantize(_input(node, 1), _input(node, 2), _optional(node, 3), axis=axis)
    y = site.emit("MatMul", site.emit("DequantizeLinear", q, scale, zero), b)
    bias = _optional(node, 4)
    site.finish(y if bias is None else site.emit("Add", y, bias))


def _integers(op: str) -> Callable[[Site, ir.Node], None]:
    def lower(site: Site, node: ir.Node) -> None:
        x, w = _input(node, 0), _input(node, 1)
        zeros = [_optional(node, k) for k in (2, 3)]
        found = _scales_behind(node)
        rank = _rank(w)
        if found is None:
            one = np.ones((), np.float32)
            x_scale = w_scale = site.constant("one", one)
            w_zero = const(zeros[1])
            if w_zero is not None and w_zero.size > 1:
                w_scale = site.constant("ones", np.ones(w_zero.shape, np.float32))
        else:
            x_scale, w_scale, mul, cast = found
        axis = 0 if op == "Conv" else None if rank is None else rank - 1
        real = [
            site.dequantize(x, x_scale, zeros[0]),
            site.dequantize(w, w_scale, zeros[1], axis=axis),
        ]
        names = _WINDOW if op == "Conv" else ()
        y = site.emit(op, *real, **_attributes(node, *names))
        if found is None:
            reader = sole_use(node.outputs[0])
            if (
                reader is not None
                and is_op(reader, "Cast")
                and attr(reader, "to") == ir.DataType.FLOAT
            ):
                Site(site.graph, reader, site.opset).finish(y)
            else:
                site.finish(site.emit("Cast", y, to=ir.DataType.INT32))
            return
        Site(site.graph, mul, site.opset).finish(y)

    return lower


def _scales_behind(node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Node, ir.Node] | None:
    """x's scale, w's scale, the Mul and the Cast of Mul(Cast(node), Mul(x's scale, w's scale)).

    x's scale is that of the DynamicQuantizeLinear which makes x.
    """
    cast = sole_use(node.outputs[0])
    if cast is None or not is_op(cast, "Cast") or attr(cast, "to") != ir.DataType.FLOAT:
        return None
    mul = sole_use(cast.outputs[0])
    source = node.inputs[0].producer() if node.inputs[0] is not None else None
    if not is_op(mul, "Mul") or not is_op(source, "DynamicQuantizeLinear"):
        return None
    assert mul is not None and source is not None
    other = mul.inputs[1] if mul.inputs[0] is cast.outputs[0] else mul.inputs[0]
    both = other.producer() if other is not None else None
    if not is_op(both, "Mul"):
        return None
    assert both is not None
    for k in (0, 1):
        w_scale = both.inputs[1 - k]
        held = const(w_scale)
        if both.inputs[k] is source.outputs[1] and w_scale is not None and held is not None:
            if held.size == 1 or (node.op_type == "MatMulInteger" and held.ndim == 1):
                return source.outputs[1], w_scale, mul, cast
    return None


_POOL = ("kernel_shape", "strides", "pads", "ceil_mode", "count_include_pad", "auto_pad")
LOWER: dict[str, Callable[[Site, ir.Node], None]] = {
    "QLinearConv": _conv,
    "QLinearMatMul": _matmul,
    "ConvInteger": _integers("Conv"),
    "MatMulInteger": _integers("MatMul"),
    "QGemm": _gemm,
    "QLinearAdd": _binary("Add"),
    "QLinearMul": _binary("Mul"),
    "QLinearSigmoid": _unary("Sigmoid"),
    "QLinearLeakyRelu": _leaky_relu,
    "QLinearSoftmax": _softmax,
    "QLinearConcat": _concat,
    "QLinearAveragePool": _unary("AveragePool", *_POOL),
    "QLinearGlobalAveragePool": _unary("GlobalAveragePool"),
    "QLinearWhere": _where,
    "MatMulIntegerToFloat": _product_to_float,
    "DynamicQuantizeMatMul": _dynamic_product,
    "QuantizeLinear": _vendor_quantize,
    "DequantizeLinear": _vendor_dequantize,
}
