"""Convolutions, pooling, dense layers and resizing."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from effc.core.errors import FrontendError
from effc.frontend.tflite.dilation import PADS
from effc.frontend.tflite.graph import NCHW, Graph, Unsupported
from effc.frontend.tflite.read import DAMAGED, Operator

ACTIVATIONS = ("NONE", "RELU", "RELU_N1_TO_1", "RELU6", "TANH", "SIGN_BIT")
_SAME, _VALID = 0, 1


def activation(operator: Operator) -> str:
    """The name of the activation that is fused into `operator`."""
    number = operator.options.get("FusedActivationFunction", 0)
    if not 0 <= number < len(ACTIVATIONS):
        raise FrontendError(f"{operator.place} has the unknown activation {number}", hint=DAMAGED)
    return ACTIVATIONS[number]


def need_rank(g: Graph, operator: Operator, i: int, rank: int) -> tuple[int, ...]:
    """The shape of tensor `i`, which must have this rank."""
    shape = g.shape(i)
    if len(shape) != rank:
        raise FrontendError(
            f"{operator.place} has a tensor of shape {list(shape)} where rank {rank} is needed",
            hint=DAMAGED,
        )
    return shape


def positive(operator: Operator, *names: str) -> list[int]:
    """Options that must be at least one."""
    values = [int(operator.options.get(name, 0)) for name in names]
    if any(v < 1 for v in values):
        raise FrontendError(
            f"{operator.place} has {', '.join(names)} = {values}, which must be positive",
            hint=DAMAGED,
        )
    return values


def _dilation(operator: Operator) -> list[int]:
    values = [int(operator.options.get(f"Dilation{a}Factor", 1)) for a in "HW"]
    if any(v < 1 for v in values):
        raise FrontendError(f"{operator.place} has the dilations {values}", hint=DAMAGED)
    return values


def same_padding(size: int, kernel: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """TFLite's SAME: what is left over goes behind (padding.h, ComputePaddingWithOffset)."""
    out = -(-size // stride)
    total = max((out - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def pads(
    operator: Operator, sizes: Any, kernel: Any, strides: Any, dilations: Any = (1, 1)
) -> list[int]:
    """ONNX's pads (top, left, bottom, right) of an operator with a Padding option."""
    if PADS in operator.options:
        return list(operator.options[PADS])
    kind = operator.options.get("Padding", _SAME)
    if kind == _VALID:
        return [0, 0, 0, 0]
    if kind != _SAME:
        raise FrontendError(f"{operator.place} has the unknown padding {kind}", hint=DAMAGED)
    pairs = [same_padding(*args) for args in zip(sizes, kernel, strides, dilations, strict=True)]
    return [pairs[0][0], pairs[1][0], pairs[0][1], pairs[1][1]]


def conv_2d(g: Graph, operator: Operator) -> None:
    x, w, o = operator.input(0), operator.input(1), operator.output()
    shape, (filters, *kernel, depth) = need_rank(g, operator, x, 4), need_rank(g, operator, w, 4)
    if depth < 1 or shape[3] % depth or filters % max(shape[3] // depth, 1):
        raise FrontendError(
            f"{operator.place} has filters for {depth} of {shape[3]} channels", hint=DAMAGED
        )
    _convolve(g, operator, x, o, g.weights(w, (0, 3, 1, 2)), kernel, shape[3] // depth)


def depthwise_conv_2d(g: Graph, operator: Operator) -> None:
    x, w, o = operator.input(0), operator.input(1), operator.output()
    shape, (one, *kernel, outputs) = need_rank(g, operator, x, 4), need_rank(g, operator, w, 4)
    if one != 1 or shape[3] < 1 or outputs % shape[3]:
        raise FrontendError(
            f"{operator.place} has filters of shape {list(g.shape(w))} for {shape[3]} channels",
            hint=DAMAGED,
        )
    _convolve(g, operator, x, o, g.weights(w, (3, 0, 1, 2)), kernel, shape[3])


def _convolve(
    g: Graph, operator: Operator, x: int, o: int, w: ir.Value, kernel: list[int], group: int
) -> None:
    strides, dilations = positive(operator, "StrideH", "StrideW"), _dilation(operator)
    bias = operator.optional(2)
    y = g.emit(
        "Conv",
        g.real(x, NCHW),
        w,
        g.bias(bias, x, operator.input(1)) if bias is not None else None,
        kernel_shape=kernel,
        strides=strides,
        dilations=dilations,
        group=group,
        pads=pads(operator, g.shape(x)[1:3], kernel, strides, dilations),
    )
    g.put_real(o, y, NCHW, activation(operator))


def transpose_conv(g: Graph, operator: Operator) -> None:
    # inputs: the shape of the output, weights OHWI, x, bias
    w, x, o = operator.input(1), operator.input(2), operator.output()
    shape, (_, *kernel, depth) = need_rank(g, operator, x, 4), need_rank(g, operator, w, 4)
    out = need_rank(g, operator, o, 4)
    if depth != shape[3]:
        raise FrontendError(f"{operator.place}: {depth} and {shape[3]} channels", hint=DAMAGED)
    strides = positive(operator, "StrideH", "StrideW")
    begin, end, extra = [], [], []
    for size, target, k, stride in zip(shape[1:3], out[1:3], kernel, strides, strict=True):
        full = (size - 1) * stride + k
        # the padding of the convolution that this is the transpose of
        total = max(full - target, 0) if operator.options.get("Padding", _SAME) == _SAME else 0
        begin.append(total // 2)
        end.append(max(full - target, 0) - total // 2)
        extra.append(max(target - full, 0))
    if any(e >= max(s, 1) for e, s in zip(extra, strides, strict=True)):
        raise Unsupported("its output is larger than its input, kernel and stride make it")
    bias = operator.optional(3)
    y = g.emit(
        "ConvTranspose",
        g.real(x, NCHW),
        g.weights(w, (3, 0, 1, 2)),
        g.bias(bias, x, w) if bias is not None else None,
        kernel_shape=kernel,
        strides=strides,
        pads=begin + end,
        output_padding=extra if any(extra) else None,
    )
    g.put_real(o, y, NCHW, activation(operator))


def _pool(op_type: str, g: Graph, operator: Operator) -> None:
    x, o = operator.input(0), operator.output()
    shape = need_rank(g, operator, x, 4)
    kernel = positive(operator, "FilterHeight", "FilterWidth")
    strides = positive(operator, "StrideH", "StrideW")
    y = g.emit(
        op_type,
        g.real(x, NCHW),
        kernel_shape=kernel,
        strides=strides,
        pads=pads(operator, shape[1:3], kernel, strides),
    )
    g.put_real(o, y, NCHW, activation(operator))


def average_pool_2d(g: Graph, operator: Operator) -> None:
    _pool("AveragePool", g, operator)


def max_pool_2d(g: Graph, operator: Operator) -> None:
    _pool("MaxPool", g, operator)


def fully_connected(g: Graph, operator: Operator) -> None:
    x, w, o = operator.input(0), operator.input(1), operator.output()
    features, depth = need_rank(g, operator, w, 2)
    if operator.options.get("WeightsFormat", 0):
        raise Unsupported("its weights are shuffled for one processor", "convert without it")
    bias = operator.optional(2)
    value = g.real(x)
    if g.rank(x) != 2 or g.shape(x)[1] != depth:
        value = g.reshape(value, (-1, depth))
    y = g.emit(
        "Gemm",
        value,
        g.weights(w, (0, 1)),
        g.bias(bias, x, w) if bias is not None else None,
        transB=1,
    )
    y = g.activate(y, activation(operator))
    if g.rank(o) != 2:
        y = g.reshape(y, g.shape(o))
    g.put_real(o, y)


def batch_matmul(g: Graph, operator: Operator) -> None:
    values = []
    for k, flag in ((0, "AdjX"), (1, "AdjY")):
        i = operator.input(k)
        if operator.options.get(flag, False):
            order = list(range(g.rank(i)))
            if len(order) < 2:
                raise FrontendError(f"{operator.place} multiplies no matrices", hint=DAMAGED)
            order[-2:] = order[-1], order[-2]
            values.append(g.weights(i, order))
        else:
            values.append(g.real(i))
    g.put_real(operator.output(), g.emit("MatMul", *values))


def _resize(g: Graph, operator: Operator, mode: str) -> None:
    x, o = operator.input(0), operator.output()
    n, h, w, c = need_rank(g, operator, x, 4)
    size = g.ints(operator, 1)
    if len(size) != 2 or min(size) < 1:
        raise FrontendError(f"{operator.place} resizes to {size}", hint=DAMAGED)
    aligned = bool(operator.options.get("AlignCorners", False))
    half = bool(operator.options.get("HalfPixelCenters", False))
    nearest = None
    if mode == "nearest":
        # floor((x + 1/2) * scale) is half_pixel's x rounded half up
        nearest = "round_prefer_ceil" if aligned or half else "floor"
    y = g.emit(
        "Resize",
        g.real(x, NCHW),
        None,
        None,
        g.int64(n, c, *size),
        mode=mode,
        nearest_mode=nearest,
        coordinate_transformation_mode="align_corners"
        if aligned
        else "half_pixel"
        if half
        else "asymmetric",
    )
    g.put_real(o, y, NCHW)


def resize_bilinear(g: Graph, operator: Operator) -> None:
    _resize(g, operator, "linear")


def resize_nearest(g: Graph, operator: Operator) -> None:
    _resize(g, operator, "nearest")


CONVERTERS = {
    "CONV_2D": conv_2d,
    "DEPTHWISE_CONV_2D": depthwise_conv_2d,
    "TRANSPOSE_CONV": transpose_conv,
    "AVERAGE_POOL_2D": average_pool_2d,
    "MAX_POOL_2D": max_pool_2d,
    "FULLY_CONNECTED": fully_connected,
    "BATCH_MATMUL": batch_matmul,
    "RESIZE_BILINEAR": resize_bilinear,
    "RESIZE_NEAREST_NEIGHBOR": resize_nearest,
}
