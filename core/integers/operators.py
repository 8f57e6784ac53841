"""The integer operators in numpy: what the package's docstring specifies, one function each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from effc.core.integers import sums
from effc.core.integers.rounding import once_rounded, requantize, rounded, twice_rounded
from effc.core.ir import attr

Array = npt.NDArray[Any]
Inputs = Sequence[Array | None]

_INT32 = np.iinfo(np.int32)
_TYPES: dict[int, Any] = {
    ir.DataType.UINT8.value: np.uint8,
    ir.DataType.INT8.value: np.int8,
    ir.DataType.FLOAT.value: np.float32,
}


def compute(node: ir.Node, inputs: Inputs) -> Array:
    """The output of an `effc.integer` node. ValueError for an operator that the specification lacks."""
    kernel = OPERATORS.get(node.op_type)
    if kernel is None:
        raise ValueError(f"effc.integer has no operator {node.op_type}")
    return kernel(node, inputs)


def _conv(node: ir.Node, inputs: Inputs) -> Array:
    x, w = _given(inputs, 0), _given(inputs, 1)
    rank = x.ndim - 2
    acc = sums.convolve(
        _centred(node, x, "x"),
        w.astype(np.int64),
        strides=attr(node, "strides", (1,) * rank),
        pads=attr(node, "pads", (0,) * 2 * rank),
        dilations=attr(node, "dilations", (1,) * rank),
        group=attr(node, "group", 1),
    )
    return _finish(node, acc, inputs, channel_axis=1)


def _conv_transpose(node: ir.Node, inputs: Inputs) -> Array:
    x, w = _given(inputs, 0), _given(inputs, 1)
    rank = x.ndim - 2
    acc = sums.transposed_convolve(
        _centred(node, x, "x"),
        w.astype(np.int64),
        strides=attr(node, "strides", (1,) * rank),
        pads=attr(node, "pads", (0,) * 2 * rank),
        dilations=attr(node, "dilations", (1,) * rank),
        output_padding=attr(node, "output_padding", (0,) * rank),
        group=attr(node, "group", 1),
    )
    return _finish(node, acc, inputs, channel_axis=1)


def _matmul(node: ir.Node, inputs: Inputs) -> Array:
    x, w = _given(inputs, 0), _given(inputs, 1)
    acc = sums.matmul(_centred(node, x, "x"), _centred(node, w, "w"))
    return _finish(node, acc, inputs, channel_axis=acc.ndim - 1)


def _finish(node: ir.Node, acc: Array, inputs: Inputs, channel_axis: int) -> Array:
    """Bias, requantization and the residual input of Conv and MatMul."""

    def channels(a: Array) -> Array:
        """[..., n] shaped to broadcast along the channel axis."""
        return a.reshape(*a.shape[:-1], -1, *(1,) * (acc.ndim - 1 - channel_axis))

    bias, m = inputs[2], _given(inputs, 3)
    if bias is not None:
        acc = acc + channels(bias.astype(np.int64))
    _fits(node, acc)
    z = inputs[4] if len(inputs) > 4 else None
    to, rule = _needed(node, "to"), attr(node, "rounding", "float32")
    if to == ir.DataType.FLOAT.value:
        return acc.astype(np.float32) * channels(m)
    m = channels(m)
    if rule != "float32":
        # [2, n, 1, ...] must not meet the batch
        m = m.reshape(2, *(1,) * (acc.ndim - m.ndim + 1), *m.shape[1:])
    if z is None:
        return _stored(node, requantize(acc, m, _zero(node), *_bounds(node), rule))
    other = _centred(node, z, "z")
    if rule == "float32":
        real = acc.astype(np.float32) * m
        real = real + other.astype(np.float32) * np.float32(_needed(node, "z_multiplier"))
        total = rounded(real)
    elif rule == "fixed":
        z_multiplier, z_shift = _needed(node, "z_multiplier")
        shift = m[1].astype(np.int64)
        total = acc * m[0] + ((other * z_multiplier) << (shift - z_shift))
        total = (total + ((np.int64(1) << shift) >> 1)) >> shift
    else:
        raise ValueError(f"{node.name}: the rule {rule} has no residual input")
    return _stored(node, np.clip(total + _zero(node), *_bounds(node)))


def _add(node: ir.Node, inputs: Inputs) -> Array:
    a = _centred(node, _given(inputs, 0), "a")
    b = _centred(node, _given(inputs, 1), "b")
    by_a, by_b = _needed(node, "a_multiplier"), _needed(node, "b_multiplier")
    rule = attr(node, "rounding", "float32")
    if rule == "float32":
        real = a.astype(np.float32) * np.float32(by_a) + b.astype(np.float32) * np.float32(by_b)
        if _needed(node, "to") == ir.DataType.FLOAT.value:
            return real
        total = rounded(real)
    elif rule == "fixed":
        if by_a[1] != by_b[1]:
            raise ValueError(f"{node.name}: the operands' shifts differ")
        acc = a * by_a[0] + b * by_b[0]
        _fits(node, acc)
        total = once_rounded(acc, 1, by_a[1])
    else:
        left = attr(node, "left_shift", 20)
        acc = twice_rounded(a << left, *by_a) + twice_rounded(b << left, *by_b)
        total = twice_rounded(acc, *_needed(node, "multiplier"))
    return _stored(node, np.clip(total + _zero(node), *_bounds(node)))


def _mul(node: ir.Node, inputs: Inputs) -> Array:
    acc = _centred(node, _given(inputs, 0), "a") * _centred(node, _given(inputs, 1), "b")
    return _requantized(node, acc)


def _average_pool(node: ir.Node, inputs: Inputs) -> Array:
    x = _centred(node, _given(inputs, 0), "x")
    rank = x.ndim - 2
    kernel = _needed(node, "kernel_shape")
    strides, pads = attr(node, "strides", (1,) * rank), attr(node, "pads", (0,) * 2 * rank)
    dilations = attr(node, "dilations", (1,) * rank)
    out, behind = [], []
    for i in range(rank):
        reach = (kernel[i] - 1) * dilations[i] + 1
        room = x.shape[2 + i] + pads[i] + pads[i + rank] - reach
        size = room // strides[i] + 1
        if attr(node, "ceil_mode", 0):
            size = -(-room // strides[i]) + 1
            if (size - 1) * strides[i] >= x.shape[2 + i] + pads[i]:
                size -= 1  # a window that starts in the padding behind is none
        out.append(size)
        behind.append(max(0, (size - 1) * strides[i] + reach - x.shape[2 + i] - pads[i]))

    def window_sums(a: Array) -> Array:
        ones = np.ones((a.shape[1], 1, *kernel), np.int64)
        edges = [*pads[:rank], *behind]
        total = sums.convolve(
            a, ones, strides=strides, pads=edges, dilations=dilations, group=a.shape[1]
        )
        return np.asarray(total[_first(out)])

    counted = np.ones((1, 1, *x.shape[2:]), np.int64)
    if attr(node, "count_include_pad", 0):
        counted = np.pad(
            counted, [(0, 0), (0, 0), *((pads[i], pads[i + rank]) for i in range(rank))],
            constant_values=1,
        )  # fmt: skip
        count = _pooled_ones(counted, kernel, strides, dilations, out)
    else:
        count = window_sums(counted)
    if attr(node, "rounding", "float32") == "tflite":
        return _tflite_average(node, window_sums(x + _x_zero(node)), count)
    return _averaged(node, window_sums(x), count)


def _pooled_ones(
    ones: Array, kernel: Any, strides: Any, dilations: Any, out: Sequence[int]
) -> Array:
    rank = len(out)
    behind = [
        max(0, (o - 1) * s + (k - 1) * d + 1 - n)
        for o, s, k, d, n in zip(out, strides, kernel, dilations, ones.shape[2:], strict=True)
    ]
    w = np.ones((1, 1, *kernel), np.int64)
    total = sums.convolve(
        ones, w, strides=strides, pads=[*(0,) * rank, *behind], dilations=dilations, group=1
    )
    return np.asarray(total[_first(out)])


def _first(out: Sequence[int]) -> Any:
    """The first out[i] positions of the last axes."""
    return (..., *(slice(0, o) for o in out))


def _tflite_average(node: ir.Node, total: Array, count: Array) -> Array:
    """Of the stored values, halves away from zero; TensorFlow Lite wants equal parameters."""
    multiplier, shift = _needed(node, "multiplier")
    if (multiplier, shift) != (1 << 30, 1) or _x_zero(node) != _zero(node):
        raise ValueError(f"{node.name}: rule tflite averages only where both parameters agree")
    mean = np.sign(total) * ((np.abs(total) + count // 2) // count)
    return _stored(node, np.clip(mean, *_bounds(node)))


def _global_average_pool(node: ir.Node, inputs: Inputs) -> Array:
    x = _centred(node, _given(inputs, 0), "x")
    axes = tuple(range(2, x.ndim))
    count = np.int64(np.prod(x.shape[2:]))
    return _averaged(node, x.sum(axes, keepdims=True), count)


def _averaged(node: ir.Node, total: Array, count: Any) -> Array:
    """`total` / `count` times the node's multiplier, requantized."""
    _fits(node, total)
    rule = attr(node, "rounding", "float32")
    if rule == "float32":
        m = np.float32(_needed(node, "multiplier")) / np.asarray(count).astype(np.float32)
    else:
        fixed, shift = (np.int64(v) for v in _needed(node, "multiplier"))
        count = np.asarray(count, np.int64)
        if rule == "fixed":
            m = np.stack(np.broadcast_arrays((fixed + count // 2) // count, shift))
        else:  # reduce.h: the count goes into the multiplier, as many bits as there is room for
            room = np.minimum(np.floor(np.log2(count)).astype(np.int64), np.minimum(32, 31 + shift))
            m = np.stack(np.broadcast_arrays((fixed << room) // count, shift - room))
    return _stored(node, requantize(total, m, _zero(node), *_bounds(node), rule))


def _requantize(node: ir.Node, inputs: Inputs) -> Array:
    return _requantized(node, _centred(node, _given(inputs, 0), "x"))


def _requantized(node: ir.Node, acc: Array) -> Array:
    rule = attr(node, "rounding", "float32")
    m = np.asarray(_needed(node, "multiplier"), np.float32 if rule == "float32" else np.int64)
    return _stored(node, requantize(acc, m, _zero(node), *_bounds(node), rule))


def _lookup(node: ir.Node, inputs: Inputs) -> Array:
    x, table = _given(inputs, 0), _given(inputs, 1)
    return table[x.astype(np.int64) - np.iinfo(x.dtype).min]


OPERATORS: dict[str, Callable[[ir.Node, Inputs], Array]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MatMul": _matmul,
    "Add": _add,
    "Mul": _mul,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average_pool,
    "Requantize": _requantize,
    "Lookup": _lookup,
}


def _needed(node: ir.Node, name: str) -> Any:
    value = attr(node, name)
    if value is None:
        raise ValueError(f"attribute {name} is absent")
    return value


def _given(inputs: Inputs, k: int) -> Array:
    value = inputs[k] if k < len(inputs) else None
    if value is None:
        raise ValueError(f"input {k} is absent")
    return value


def _centred(node: ir.Node, stored: Array, name: str) -> Array:
    """int64: what is stored minus its zero point."""
    return stored.astype(np.int64) - int(attr(node, f"{name}_zero_point", 0))


def _x_zero(node: ir.Node) -> int:
    return int(attr(node, "x_zero_point", 0))


def _zero(node: ir.Node) -> int:
    return int(attr(node, "y_zero_point", 0))


def _bounds(node: ir.Node) -> tuple[int, int]:
    info = np.iinfo(_TYPES[_needed(node, "to")])
    low, high = int(attr(node, "low", info.min)), int(attr(node, "high", info.max))
    if not info.min <= low <= high <= info.max:
        raise ValueError(f"{node.name}: [{low}, {high}] is no range of {info.dtype}")
    return low, high


def _stored(node: ir.Node, q: Array) -> Array:
    return q.astype(_TYPES[_needed(node, "to")])


def _fits(node: ir.Node, acc: Array) -> None:
    if acc.size and not (acc.min() >= _INT32.min and acc.max() <= _INT32.max):
        raise OverflowError(f"{node.name}: a sum exceeds 32 bits")
