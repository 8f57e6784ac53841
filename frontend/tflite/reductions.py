"""Operators along axes: sums, means, extremes and where they are, running sums."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import onnx_ir as ir

from effc.frontend.tflite.graph import AXIS_IN_NCHW, NATIVE, NCHW, Graph
from effc.frontend.tflite.read import Operator

Converter = Callable[[Graph, Operator], None]


def _reduce(op_type: str, g: Graph, operator: Operator) -> None:
    x, o = operator.input(0), operator.output()
    rank = g.rank(x)
    axes, keep = g.axes(operator, 1, rank), bool(operator.options.get("KeepDims", False))
    if not axes:
        g.move(x, o, lambda v: g.emit("Identity", v))
        return
    layout = NATIVE
    # without the reduced axes, what is left must be in the same order in both layouts
    if g.has_nchw(x) and (keep or 3 in axes or {1, 2} <= set(axes)):
        layout, axes = NCHW, sorted(AXIS_IN_NCHW[a] for a in axes)
    y = g.emit(op_type, g.real(x, layout), g.int64(*axes), keepdims=int(keep))
    g.put_real(o, y, layout if keep else NATIVE)


def _reduce_bool(op_type: str, g: Graph, operator: Operator) -> None:
    x, o = operator.input(0), operator.output()
    axes, keep = g.axes(operator, 1, g.rank(x)), bool(operator.options.get("KeepDims", False))
    y = g.emit("Cast", g.stored(x), to=ir.DataType.INT32)
    y = g.emit(op_type, y, g.int64(*axes), keepdims=int(keep))
    g.put(o, g.emit("Cast", y, to=ir.DataType.BOOL))


def _arg(op_type: str, g: Graph, operator: Operator) -> None:
    x, o = operator.input(0), operator.output()
    axis = g.one_int(operator, 1)
    y = g.emit(op_type, g.real(x), axis=g.axis(operator, axis, g.rank(x)), keepdims=0)
    g.put(o, _as_stored(g, y, o))


def _as_stored(g: Graph, value: ir.Value, o: int) -> ir.Value:
    dtype = np.dtype(g.tensors[o].dtype)
    if dtype == np.int64:
        return value
    return g.emit("Cast", value, to=ir.DataType.from_numpy(dtype))


def _topk(g: Graph, operator: Operator) -> None:
    x = operator.input(0)
    k = g.one_int(operator, 1)
    values, indices = g.emit_many(2, "TopK", g.real(x), g.int64(k), axis=-1)
    g.put_real(operator.output(0), values)
    g.put(operator.output(1), _as_stored(g, indices, operator.output(1)))


def _cumsum(g: Graph, operator: Operator) -> None:
    x, options = operator.input(0), operator.options
    axis = g.one_int(operator, 1)
    y = g.emit(
        "CumSum",
        g.real(x),
        g.number(g.axis(operator, axis, g.rank(x)), np.int64),
        exclusive=int(bool(options.get("Exclusive", False))),
        reverse=int(bool(options.get("Reverse", False))),
    )
    g.put_real(operator.output(), y)


CONVERTERS: dict[str, Converter] = {
    "MEAN": partial(_reduce, "ReduceMean"),
    "SUM": partial(_reduce, "ReduceSum"),
    "REDUCE_MAX": partial(_reduce, "ReduceMax"),
    "REDUCE_MIN": partial(_reduce, "ReduceMin"),
    "REDUCE_PROD": partial(_reduce, "ReduceProd"),
    "REDUCE_ANY": partial(_reduce_bool, "ReduceMax"),
    "REDUCE_ALL": partial(_reduce_bool, "ReduceMin"),
    "ARG_MAX": partial(_arg, "ArgMax"),
    "ARG_MIN": partial(_arg, "ArgMin"),
    "TOPK_V2": _topk,
    "CUMSUM": _cumsum,
}
