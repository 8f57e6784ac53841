"""Reductions over axes, cumulative sums, ArgMax and ArgMin."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from effc.backends.coreml.convert.call import Call, Refusal, Var
from effc.backends.coreml.convert.table import op

_NATIVE = {
    "ReduceSum": "reduce_sum", "ReduceMean": "reduce_mean", "ReduceMax": "reduce_max",
    "ReduceMin": "reduce_min", "ReduceProd": "reduce_prod", "ReduceL1": "reduce_l1_norm",
    "ReduceL2": "reduce_l2_norm", "ReduceLogSumExp": "reduce_log_sum_exp",
    "ReduceSumSquare": "reduce_sum_square",
}  # fmt: skip


@op(*_NATIVE, "ReduceLogSum")
def reduce(c: Call) -> Var:
    name = c.node.op_type
    axes = c.ints(1, "axes") if c.has(1) else list(c.attr("axes", ()))
    if not axes and c.attr("noop_with_empty_axes", 0):
        return _of_each(c)
    if 0 in c.shape():
        raise Refusal("it reduces an empty tensor, which Core ML does not have")
    axes = sorted(c.axis(a) for a in axes) or list(range(c.rank()))
    keep = bool(c.attr("keepdims", 1))
    x = c.x()
    if c.rank() == 0:
        return _of_each(c)
    if c.dtype() == ir.DataType.BOOL:
        return c.as_int(x, lambda v: _shaped(c, getattr(c.mb, _NATIVE[name]), v, axes, keep))
    if name not in ("ReduceMax", "ReduceMin"):
        c.no_wrap()
        if name not in ("ReduceSum", "ReduceProd") and not c.is_float():
            c.only_float()
    elif c.dtype() in (ir.DataType.UINT64, ir.DataType.UINT32):
        c.no_wrap()
    if name == "ReduceLogSum":
        total = _shaped(c, c.mb.reduce_sum, x, axes, keep)
        return c.mb.log(x=total, epsilon=c.like(0, total))
    if name == "ReduceLogSumExp":
        return _log_sum_exp(c, x, axes, keep)
    return _shaped(c, getattr(c.mb, _NATIVE[name]), x, axes, keep)


def _shaped(c: Call, function: object, x: Var, axes: list[int], keep: bool) -> Var:
    """A full reduction keeps its dimensions in MIL: a scalar made by squeezing is sure to be one."""
    if keep or len(axes) < len(x.shape):
        return function(x=x, axes=axes, keep_dims=keep)  # type: ignore[operator]
    return c.reshaped(function(x=x, axes=axes, keep_dims=True), ())  # type: ignore[operator]


def _log_sum_exp(c: Call, x: Var, axes: list[int], keep: bool) -> Var:
    """Less the maximum, so that nothing overflows."""
    top = c.mb.reduce_max(x=x, axes=axes, keep_dims=True)
    rest = c.mb.reduce_log_sum_exp(x=c.mb.sub(x=x, y=top), axes=axes, keep_dims=True)
    return c.reshaped(c.mb.add(x=rest, y=top), c.out_shape())


def _of_each(c: Call) -> Var:
    """The reduction over no axis."""
    name, x = c.node.op_type, c.plain(c.raw())
    if name in ("ReduceL1", "ReduceL2"):
        return c.mb.abs(x=x)
    if name == "ReduceSumSquare":
        return c.mb.mul(x=x, y=x)
    if name == "ReduceLogSum":
        return c.mb.log(x=x, epsilon=c.like(0, x))
    return c.mb.identity(x=x)


@op("ArgMax", "ArgMin")
def arg(c: Call) -> Var:
    """MIL gives the first of equals; the last is the first of the reversed."""
    x, axis = c.x(), c.axis(c.attr("axis", 0))
    if c.dtype() in (ir.DataType.UINT64, ir.DataType.UINT32):
        c.no_wrap()
    function = c.mb.reduce_argmax if c.node.op_type == "ArgMax" else c.mb.reduce_argmin
    last = bool(c.attr("select_last_index", 0))
    if last:
        x = c.mb.reverse(x=x, axes=[axis])
    found = function(x=x, axis=axis, keep_dims=True)
    if last:
        found = c.mb.sub(x=np.int32(c.shape()[axis] - 1), y=found)
    return found if c.attr("keepdims", 1) else c.reshaped(found, c.out_shape())


@op("CumSum")
def cumsum(c: Call) -> Var:
    c.no_wrap()
    axis = c.axis(int(c.need(1, "axis").reshape(())))
    return c.mb.cumsum(
        x=c.x(),
        axis=axis,
        exclusive=bool(c.attr("exclusive", 0)),
        reverse=bool(c.attr("reverse", 0)),
    )
