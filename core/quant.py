"""Quantization in the IR is QuantizeLinear and DequantizeLinear and nothing else: one truth, which every
tool reads. This module reads parameters off those nodes and puts such nodes in.

real = (q - zero_point) * scale;  q = clamp(round_half_even(real / scale) + zero_point)   (ONNX opset 21)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from effc.core.ir import add_const, attr, const, is_op
from effc.core.rewrite import erase

Array = npt.NDArray[Any]

_NUMPY: dict[ir.DataType, np.dtype[Any]] = {
    ir.DataType.INT8: np.dtype(np.int8),
    ir.DataType.UINT8: np.dtype(np.uint8),
    ir.DataType.INT16: np.dtype(np.int16),
    ir.DataType.UINT16: np.dtype(np.uint16),
    ir.DataType.INT32: np.dtype(np.int32),
    ir.DataType.INT4: np.dtype(ml_dtypes.int4),
    ir.DataType.UINT4: np.dtype(ml_dtypes.uint4),
    ir.DataType.INT2: np.dtype(ml_dtypes.int2),
    ir.DataType.UINT2: np.dtype(ml_dtypes.uint2),
}


def integer_range(dtype: ir.DataType) -> tuple[int, int]:
    """The least and the greatest value of an integer type, (-128, 127) for INT8."""
    info: Any = ml_dtypes.iinfo(_NUMPY[dtype])  # type: ignore[no-untyped-call]
    return int(info.min), int(info.max)


@dataclass(frozen=True)
class QuantParams:
    """The parameters of one QuantizeLinear or DequantizeLinear.

    `scale` and `zero_point` are 0-d (one for the tensor), [C] (one for each index of `axis`), or of the
    tensor's rank with `block` elements of `axis` sharing one.
    """

    dtype: ir.DataType
    scale: npt.NDArray[np.float32]
    zero_point: Array  # of `dtype`, shaped as `scale`
    axis: int = 1
    block: int = 0

    @property
    def per_tensor(self) -> bool:
        return self.scale.ndim == 0

    @cached_property
    def symmetric(self) -> bool:
        """Whether zero is stored as 0 everywhere."""
        return not self.zero_point.astype(np.int64).any()

    def same(self, other: QuantParams) -> bool:
        """Whether both mean the same real number by the same integer."""
        return (
            self.dtype == other.dtype
            and self.scale.shape == other.scale.shape
            and (self.per_tensor or (self.axis, self.block) == (other.axis, other.block))
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point.astype(int), other.zero_point.astype(int))
        )

    def quantize(self, x: Array) -> Array:
        """The integers of `x`, float32 [...], as ONNX's QuantizeLinear gives them."""
        low, high = integer_range(self.dtype)
        scale, zero = self._spread(x)
        with np.errstate(divide="ignore", invalid="ignore"):
            q = np.rint(x.astype(np.float32) / scale).astype(np.float64) + zero
        return np.clip(np.nan_to_num(q), low, high).astype(_NUMPY[self.dtype])

    def dequantize(self, q: Array) -> npt.NDArray[np.float32]:
        """The reals of integers of `dtype`."""
        scale, zero = self._spread(q)
        return ((q.astype(np.int32) - zero).astype(np.float32) * scale).astype(np.float32)

    def _spread(self, x: Array) -> tuple[Array, Array]:
        """Scale and zero point, shaped to broadcast against `x`."""
        scale: Array = self.scale
        zero: Array = self.zero_point.astype(np.int32)
        if self.block:
            axis = self.axis % x.ndim
            scale, zero = (
                np.repeat(a, self.block, axis).take(range(x.shape[axis]), axis)
                for a in (scale, zero)
            )
        elif scale.ndim == 1:
            shape = [1] * x.ndim
            shape[self.axis % x.ndim] = scale.size
            scale, zero = scale.reshape(shape), zero.reshape(shape)
        return scale, zero


def quant_params(node: ir.Node | None) -> QuantParams | None:
    """The parameters of a Q or DQ node; None where it is neither, or they are computed at run time."""
    if node is None or not is_op(node, "QuantizeLinear", "DequantizeLinear"):
        return None
    scale = const(node.inputs[1])
    if scale is None or scale.dtype != np.float32:
        return None
    zero_value = node.inputs[2] if len(node.inputs) > 2 else None
    dtype: ir.DataType | None
    if zero_value is not None:
        zero, dtype = const(zero_value), zero_value.dtype
        if zero is None or dtype is None:
            return None
    else:
        dtype = node.inputs[0].dtype if node.inputs[0] is not None else None
        if node.op_type == "QuantizeLinear" or dtype is None:
            dtype = ir.DataType(attr(node, "output_dtype", 0)) or ir.DataType.UINT8
        zero = np.zeros(scale.shape, _NUMPY.get(dtype, np.dtype(np.int8)))
    if dtype not in _NUMPY:
        return None
    block = int(attr(node, "block_size", 0))
    if not block and scale.size == 1:  # [1] is how older tools write one for the tensor
        scale, zero = scale.reshape(()), zero.reshape(())
    return QuantParams(dtype, scale, zero, int(attr(node, "axis", 1)), block)


def make_params(
    dtype: ir.DataType, scale: Any, zero_point: Any = 0, *, axis: int = 1, block: int = 0
) -> QuantParams:
    """QuantParams from plain numbers or arrays; the zero point is broadcast to the scale's shape."""
    scales = np.asarray(scale, np.float32)
    zeros = np.broadcast_to(np.asarray(zero_point), scales.shape).astype(_NUMPY[dtype])
    return QuantParams(dtype, scales, zeros, axis, block)


def insert_pair(
    value: ir.Value, params: QuantParams, *, users: list[ir.Node] | None = None
) -> ir.Value:
    """value -> QuantizeLinear -> DequantizeLinear; `users` (default: every reader) read what comes out.

    A graph output keeps its name. Returns the output of DequantizeLinear.
    """
    readers = list(value.uses())
    graph = value.graph
    if graph is None:
        raise ValueError(f"value {value.name!r} is in no graph")
    scale, zero = _constants(graph, str(value.name), params)
    q = ir.node("QuantizeLinear", [value, scale, zero], _attributes(params))
    dq = ir.node("DequantizeLinear", [q.outputs[0], scale, zero], _attributes(params))
    kinds: list[tuple[ir.Node, str, ir.DataType | None]] = [
        (q, "quantized", params.dtype),
        (dq, "dequantized", value.dtype),
    ]
    for node, suffix, kind in kinds:
        node.name = f"{value.name}/{suffix}"
        out = node.outputs[0]
        out.name, out.shape = f"{value.name}/{suffix}", value.shape
        out.type = ir.TensorType(kind) if kind is not None else None
    producer = value.producer()
    if producer is not None:
        graph.insert_after(producer, [q, dq])
    elif len(graph) > 0:
        graph.insert_before(graph[0], [q, dq])
    else:
        graph.extend([q, dq])
    result: ir.Value = dq.outputs[0]
    for node, index in readers:
        if users is None or node in users:
            node.replace_input_with(index, result)
    if users is None and value.is_graph_output() and producer is not None:
        name, value.name = value.name, f"{value.name}/real"
        for i, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[i] = result
        result.name = name
    return result


def quantize_constant(value: ir.Value, params: QuantParams, *, users: list[ir.Node]) -> ir.Value:
    """A constant -> DequantizeLinear of its integers, for `users`. Returns DequantizeLinear's output."""
    array = const(value)
    graph = users[0].graph
    if array is None or graph is None:
        raise ValueError(f"value {value.name!r} is no constant")
    return dequantized_constant(
        graph, str(value.name), params.quantize(array), params, users=users, old=value
    )


def dequantized_constant(
    graph: ir.Graph,
    name: str,
    integers: Array,
    params: QuantParams,
    *,
    users: list[ir.Node],
    old: ir.Value,
) -> ir.Value:
    """DequantizeLinear of these `integers` in place of the constant `old`, for `users`.

    Where `old` is such a DequantizeLinear itself, it goes with its last reader.
    """
    scale, zero = _constants(graph, name, params)
    stored = add_const(graph, f"{name}/quantized", integers)
    dq = ir.node(
        "DequantizeLinear", [stored, scale, zero], _attributes(params), name=f"{name}/dequantized"
    )
    out: ir.Value = dq.outputs[0]
    out.name, out.shape, out.dtype = f"{name}/dequantized", old.shape, ir.DataType.FLOAT
    first = min(users, key=lambda n: _position(graph, n)) if len(users) > 1 else users[0]
    graph.insert_before(first, dq)
    for user in users:
        for index, source in enumerate(user.inputs):
            if source is old:
                user.replace_input_with(index, out)
    pair = old.producer()
    if pair is not None and is_op(pair, "DequantizeLinear"):
        erase(pair)
    return out


def _position(graph: ir.Graph, node: ir.Node) -> int:
    return next(i for i, n in enumerate(graph) if n is node)


def _constants(graph: ir.Graph, name: str, params: QuantParams) -> tuple[ir.Value, ir.Value]:
    return (
        add_const(graph, f"{name}/scale", params.scale),
        add_const(graph, f"{name}/zero_point", params.zero_point),
    )


def _attributes(params: QuantParams) -> dict[str, int]:
    found = {} if params.per_tensor else {"axis": params.axis}
    return {**found, "block_size": params.block} if params.block else found
