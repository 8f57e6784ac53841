"""Integer convolutions and products (`effc.integer`): their kernels, layouts, packed weights.

Activations are uint8 or int8 (shifted to unsigned while they are read, at the cost of an instruction a
step); weights are int8 constants. Kernels accumulate exact int32 and requantize by the rule `float32`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from effc.backends.tvm.anchor import Anchor, finder
from effc.backends.tvm.candidates_int8 import int_conv_space, int_gemm_space
from effc.backends.tvm.isa import Isa
from effc.backends.tvm.kernels.conv import ConvSpec
from effc.backends.tvm.kernels.conv_transpose import ConvTransposeSpec
from effc.backends.tvm.kernels.int8_conv import IntConvSpec, int_conv, pack_int_conv
from effc.backends.tvm.kernels.int8_conv_transpose import (
    IntConvTransposeSpec,
    int_conv_transpose,
    pack_int_conv_transpose,
)
from effc.backends.tvm.kernels.int8_gemm import IntGemmSpec, int_gemm, pack_int_gemm
from effc.backends.tvm.kernels.int8_matmul import IntMatmulSpec, int_matmul, pack_int_matmul
from effc.backends.tvm.kernels.int8_store import Requantize
from effc.backends.tvm.layout import PLAIN, Layout
from effc.backends.tvm.ops.contract import OpNode, Refused, Wanted
from effc.backends.tvm.ops.requantize import byte, number, target

Array = npt.NDArray[Any]
_BIAS, _MULTIPLIER, _RESIDUAL = 2, 3, 4  # inputs
_PLANES = 4  # channels of a plain input that tasks interleave themselves


def _requantize(node: OpNode) -> Requantize:
    """The node's attributes; refuses what these kernels lack. `z` is plain here."""
    goal = target(node)
    z = node.input(_RESIDUAL) if node.has(_RESIDUAL) else None
    how = Requantize(goal.dtype, goal.zero_point, goal.low, goal.high)
    if z is None:
        return how
    byte(z.dtype)
    if how.is_float:
        raise Refused("a residual input and a real result do not go together", "add it apart")
    if z.shape != node.outputs[0].shape:
        raise Refused(f"its residual input is {z.shape}", "give it the shape of the output")
    centre = int(node.attr("z_zero_point", 0))
    return replace(how, z=z, z_zero_point=centre, z_multiplier=number(node, "z_multiplier"))


def _weights(node: OpNode) -> Array:
    """The constant weights, int8 or stored in four bits."""
    byte(node.input(0).dtype)
    weight = node.required(1, "the weight")
    if weight.dtype.name not in ("int8", "int4"):
        raise Refused(f"its weights are {weight.dtype}", "quantize weights to int8")
    if node.attr("w_zero_point", 0):
        raise Refused("its weights have a zero point", "quantize weights symmetrically")
    node.const(_BIAS, "the bias")
    node.required(_MULTIPLIER, "the multiplier")
    return weight.astype(np.int8)


def _constants(node: OpNode, channels: int) -> tuple[Array, Array]:
    """Bias int32 [channels] and multipliers float32 [channels]."""
    bias = node.constants.get(_BIAS, np.zeros(channels, np.int32))
    m = np.asarray(node.constants[_MULTIPLIER], np.float32).reshape(-1)
    return np.asarray(bias).reshape(-1), np.broadcast_to(m, (channels,))


def _placed(node: OpNode, how: Requantize) -> Requantize:
    """`how` with the planned layout of the residual."""
    return replace(how, z=node.input(_RESIDUAL)) if how.z is not None else how


def _conv_spec(node: OpNode, how: Requantize) -> IntConvSpec:
    kernel = node.input(1).shape[2:]
    rank = len(kernel)
    conv = ConvSpec(
        input=node.input(0),
        output=node.outputs[0],
        kernel=tuple(kernel),
        strides=tuple(node.attr("strides", (1,) * rank)),
        pads=tuple(node.attr("pads", (0,) * 2 * rank)),
        dilations=tuple(node.attr("dilations", (1,) * rank)),
        groups=node.attr("group", 1),
        bias=True,
        blocking=node.blocking,
    )
    return IntConvSpec(conv, int(node.attr("x_zero_point", 0)), _placed(node, how))


@finder("effc.integer::Conv")
def _conv(node: OpNode) -> Anchor:
    _weights(node)
    how = _requantize(node)
    groups, channels = node.attr("group", 1), node.input(0).shape[1]
    outputs = node.outputs[0].shape[1]
    depthwise = groups > 1 and groups == channels == outputs
    planes = groups == 1 and channels <= _PLANES

    def wants(node: OpNode, isa: Isa) -> Wanted:
        blocked = Layout(isa.lanes)
        # a quarter of a block would be mostly padding, and somebody would have to unpack it
        few = not depthwise and outputs * 4 <= isa.lanes
        out = PLAIN if few else blocked
        residual = () if how.z is None else (out,)
        return Wanted((PLAIN if planes else blocked, *residual), (out,))

    def pack(node: OpNode, isa: Isa) -> tuple[Array, ...]:
        spec = _conv_spec(node, how)
        return pack_int_conv(spec, isa, _weights(node), *_constants(node, outputs))

    return Anchor(
        "depthwise_int8" if depthwise else "conv_int8",
        (0,) if how.z is None else (0, _RESIDUAL),
        wants,
        lambda n, name, isa, epilogue: int_conv(_conv_spec(n, how), name, isa, epilogue),
        weights=(1, _BIAS, _MULTIPLIER),
        pack=pack,
        beside=int(how.z is not None),
        any_dtype=True,
        any_layout=planes,
        tunes=lambda n, isa: int_conv_space(_conv_spec(n, how), isa),
    )


@finder("effc.integer::ConvTranspose")
def _conv_transpose(node: OpNode) -> Anchor:
    weight = _weights(node)
    how = _requantize(node)
    outputs, rank = node.outputs[0].shape[1], weight.ndim - 2

    def spec(node: OpNode) -> IntConvTransposeSpec:
        conv = ConvTransposeSpec(
            input=node.input(0),
            output=node.outputs[0],
            kernel=tuple(weight.shape[2:]),
            strides=tuple(node.attr("strides", (1,) * rank)),
            pads=tuple(node.attr("pads", (0,) * 2 * rank)),
            dilations=tuple(node.attr("dilations", (1,) * rank)),
            groups=node.attr("group", 1),
        )
        return IntConvTransposeSpec(conv, int(node.attr("x_zero_point", 0)), _placed(node, how))

    def wants(node: OpNode, isa: Isa) -> Wanted:
        blocked = Layout(isa.lanes)
        return Wanted((blocked,) * (2 if how.z is not None else 1), (blocked,))

    return Anchor(
        "conv_transpose_int8",
        (0,) if how.z is None else (0, _RESIDUAL),
        wants,
        lambda n, name, isa, epilogue: int_conv_transpose(spec(n), name, isa, epilogue),
        weights=(1, _BIAS, _MULTIPLIER),
        pack=lambda n, isa: pack_int_conv_transpose(
            spec(n), isa, _weights(n), *_constants(n, outputs)
        ),
        beside=int(how.z is not None),
        any_dtype=True,
    )


@finder("effc.integer::MatMul")
def _matmul(node: OpNode) -> Anchor:
    byte(node.input(0).dtype)
    weight = node.constants.get(1)
    packs = weight is not None and weight.ndim == 2 and weight.dtype.name in ("int8", "int4")
    if not packs or node.attr("w_zero_point", 0):
        return _two_activations(node)
    columns = _weights(node).shape[1]
    how = _requantize(node)

    def spec(node: OpNode) -> IntGemmSpec:
        zero_point = int(node.attr("x_zero_point", 0))
        goal = _placed(node, how)
        return IntGemmSpec(node.input(0), node.outputs[0], zero_point, goal, node.blocking)

    def pack(node: OpNode, isa: Isa) -> tuple[Array, ...]:
        return pack_int_gemm(spec(node), isa, _weights(node), *_constants(node, columns))

    runtime = (0,) if how.z is None else (0, _RESIDUAL)
    return Anchor(
        "gemm_int8",
        runtime,
        lambda n, isa: Wanted((PLAIN,) * len(runtime), (PLAIN,)),
        lambda n, name, isa, epilogue: int_gemm(spec(n), name, isa, epilogue),
        weights=(1, _BIAS, _MULTIPLIER),
        pack=pack,
        beside=int(how.z is not None),
        any_dtype=True,
        tunes=lambda n, isa: int_gemm_space(spec(n), isa),
    )


def _two_activations(node: OpNode) -> Anchor:
    """A product whose right operand is computed at run time, or a constant that is not packed."""
    a, b = node.input(0), node.input(1)
    byte(b.dtype)
    if len(a.shape) < 2 or len(b.shape) < 2:
        raise Refused("one of its operands is a vector", "reshape it to a matrix")
    how = _requantize(node)
    node.const(_BIAS, "the bias")
    node.required(_MULTIPLIER, "the multiplier")
    columns = node.outputs[0].shape[-1]

    def spec(node: OpNode) -> IntMatmulSpec:
        left, right = (int(node.attr(f"{v}_zero_point", 0)) for v in "xw")
        goal = _placed(node, how)
        return IntMatmulSpec(node.input(0), node.input(1), node.outputs[0], left, right, goal)

    runtime = (0, 1) if how.z is None else (0, 1, _RESIDUAL)
    return Anchor(
        "matmul_int8",
        runtime,
        lambda n, isa: Wanted((PLAIN,) * len(runtime), (PLAIN,)),
        lambda n, name, isa, epilogue: int_matmul(spec(n), name, isa, epilogue),
        weights=(_BIAS, _MULTIPLIER),
        pack=lambda n, isa: pack_int_matmul(spec(n), isa, *_constants(n, columns)),
        beside=int(how.z is not None),
        any_dtype=True,
    )
