"""Softmax over the last axis: of quantized tensors by a table of exponentials."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from effc.backends.tvm.mcu.layouts import row_major
from effc.backends.tvm.mcu.lowering import Lowering, Refusal, static
from effc.backends.tvm.mcu.ops.elementwise import c_float
from effc.backends.tvm.mcu.program import C_TYPES
from effc.core.ir import attr, is_op, sole_use
from effc.core.quant import quant_params


def absorbs(node: ir.Node) -> bool:
    """Whether a DequantizeLinear or QuantizeLinear is part of the Softmax behind or before it."""
    if is_op(node, "DequantizeLinear"):
        user = sole_use(node.outputs[0])
        return is_op(user, "Softmax") and quant_params(node) is not None
    if is_op(node, "QuantizeLinear"):
        value = node.inputs[0]
        before = value.producer() if value is not None else None
        if before is None or not is_op(before, "Softmax") or sole_use(before.outputs[0]) is None:
            return False
        params, source = quant_params(node), before.inputs[0]
        feeds = source.producer() if source is not None else None
        return params is not None and params.per_tensor and feeds is not None and absorbs(feeds)
    return False


def softmax(low: Lowering, node: ir.Node) -> None:
    """DQ -> Softmax -> Q as one kernel, or without the Q, or on reals."""
    value = node.inputs[0]
    assert value is not None
    shape = static(value)[0]
    axis = attr(node, "axis", -1) % len(shape)
    if any(n != 1 for n in shape[axis + 1 :]):
        raise Refusal("its axis is not the last", "transpose before it")
    columns = shape[axis]
    numbers = {"ROWS": int(np.prod(shape[:axis], dtype=np.int64)), "COLUMNS": columns}
    order = row_major(len(shape))
    before = value.producer()
    if before is None or not absorbs(before):
        x = low.read(value, order)
        y = low.define(node.outputs[0], order)
        kernel = low.kernels.make("softmax_float", f"softmax_float_{columns}", numbers)
        over = {x: 0} if isinstance(x, str) else {}
        low.call(kernel, (x, y.name), y.name, nodes=[str(node.name)], op="Softmax", ahead=over)
        return
    stored, params = before.inputs[0], quant_params(before)
    assert stored is not None and params is not None
    if not params.per_tensor:
        raise Refusal("its input is quantized by channel", "quantize activations by tensor")
    x = low.read(stored, order)
    distances = np.arange(256, dtype=np.float32) * params.scale
    table = low.constant(
        f"{node.name} exponential", np.exp(-distances.astype(np.float64)).astype(np.float32)
    )
    after, nodes = sole_use(node.outputs[0]), [str(before.name), str(node.name)]
    words = {"TYPE_X": C_TYPES[static(stored)[1]]}
    if after is not None and absorbs(after):
        y = low.define(after.outputs[0], order)
        target = quant_params(after)
        assert target is not None
        info = np.iinfo(y.dtype)
        numbers |= {"Y_ZERO": int(target.zero_point), "LOW": info.min, "HIGH": info.max}
        scale = c_float(float(target.scale))
        words["TYPE_Y"] = C_TYPES[y.dtype]
        put = f"effc_quantize(value / {scale}, Y_ZERO, LOW, HIGH)"
        words["STORE"] = f"y[r * COLUMNS + i] = ({C_TYPES[y.dtype]}){put};"
        nodes.append(str(after.name))
    else:
        y = low.define(node.outputs[0], order)
        words |= {"TYPE_Y": "void", "STORE": "effc_store_float(y, r * COLUMNS + i, value);"}
    kernel = low.kernels.make("softmax", f"softmax_{columns}", numbers, words)
    low.call(kernel, (x, table, y.name), y.name, nodes=nodes, op="Softmax")
