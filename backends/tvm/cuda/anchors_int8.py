"""Integer convolutions, products and averages (`effc.integer`) on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import tirx

from effc.backends.tvm.anchor import Anchor
from effc.backends.tvm.cuda import direct
from effc.backends.tvm.cuda.anchors import (
    Numbers,
    conv_spec,
    conv_transpose_spec,
    convolution,
    finder,
    matrices,
    plain,
    pool_spec,
    pool_wants,
    type_of,
)
from effc.backends.tvm.cuda.product import (
    fits,
    pad_rows,
    product,
)
from effc.backends.tvm.isa import Isa
from effc.backends.tvm.kernels.epilogue import Epilogue
from effc.backends.tvm.ops import math as m
from effc.backends.tvm.ops.contract import (
    Lazy,
    OpNode,
    Refused,
)
from effc.backends.tvm.ops.requantize import byte, number, real, scaled, target
from effc.backends.tvm.program import Kernel

Array = npt.NDArray[Any]
Expr = Any
_BIAS, _MULTIPLIER, _RESIDUAL = 2, 3, 4  # inputs


def _integer(node: OpNode, channels: int, sums: Array | None, by_columns: bool) -> Numbers:
    """bias + sum, requantized by the rule `float32` of core/integers, the residual added before."""
    goal = target(node)
    bias = np.asarray(node.constants.get(_BIAS, np.zeros(channels, np.int32))).reshape(-1)
    wide = bias.astype(np.int64)
    if sums is not None:
        wide = wide - sums
    bias = wide.astype(np.int32)  # sums wrap around, as they do in registers
    factor = np.asarray(node.constants[_MULTIPLIER], np.float32).reshape(-1)
    factor = np.ascontiguousarray(np.broadcast_to(factor, (channels,)))
    residual = node.has(_RESIDUAL)

    def finish(total: Expr, index: tuple[Expr, ...], loads: Sequence[Lazy]) -> Expr:
        channel = index[-1] if by_columns else index[1]
        y = scaled(total + loads[0]((channel,)), loads[1]((channel,)))
        if residual:
            centre = int(node.attr("z_zero_point", 0))
            y = y + real(loads[2](index), centre, number(node, "z_multiplier"))
        return goal.store(y)

    return Numbers((bias, factor), finish)


def _int_weights(node: OpNode) -> Array:
    byte(node.input(0).dtype)
    weight = node.required(1, "the weight")
    if weight.dtype.name not in ("int8", "int4"):
        raise Refused(f"its weights are {weight.dtype}", "quantize weights to int8")
    if node.attr("w_zero_point", 0):
        raise Refused("its weights have a zero point", "quantize weights symmetrically")
    node.const(_BIAS, "the bias")
    node.required(_MULTIPLIER, "the multiplier")
    if node.has(_RESIDUAL):
        byte(node.input(_RESIDUAL).dtype)
        if target(node).dtype == "float32":
            raise Refused("a residual input and a real result do not go together", "add it apart")
        if node.input(_RESIDUAL).shape != node.outputs[0].shape:
            raise Refused("its residual input has another shape", "give it the shape of the output")
    return weight.astype(np.int8)


@finder("effc.integer::Conv", "effc.integer::ConvTranspose")
def _int_conv(node: OpNode, cores: int) -> Anchor:
    weight = _int_weights(node)
    target(node)
    transposed = node.op_type == "ConvTranspose"

    def plan(node: OpNode) -> tuple[direct.Convolution, Numbers]:
        zero = int(node.attr("x_zero_point", 0))
        spec = conv_transpose_spec(node) if transposed else conv_spec(node)
        c = direct.Convolution.of(spec, zero)
        # tiles multiply what is stored, and stored zero points outside; windows subtract them
        tiled = fits(c) and zero != 0
        sums = zero * weight.astype(np.int64).reshape(len(weight), -1).sum(1) if tiled else None
        return c, _integer(node, node.outputs[0].shape[1], sums, by_columns=False)

    beside = (_RESIDUAL,) if node.has(_RESIDUAL) else ()
    anchor = convolution(node, cores, plan, lambda n: weight, (1, _BIAS, _MULTIPLIER), beside)
    return replace(anchor, template=f"{anchor.template}_int8")


@finder("effc.integer::MatMul")
def _int_matmul(node: OpNode, cores: int) -> Anchor:
    if 1 not in node.constants or len(node.input(1).shape) != 2:
        raise Refused(
            "an integer product of two computed matrices has no kernel for GPUs here",
            "keep it in floats: --keep-float with its name",
        )
    weight = _int_weights(node)
    dtype, zero = node.input(0).dtype, int(node.attr("x_zero_point", 0))
    sums = zero * weight.astype(np.int64).sum(0) if zero else None
    if len(node.input(0).shape) < 2:
        raise Refused("its operand is a vector", "reshape it to a matrix")
    numbers = _integer(node, weight.shape[1], sums, by_columns=True)
    beside = (_RESIDUAL,) if node.has(_RESIDUAL) else ()

    def pack(node: OpNode, isa: Isa) -> tuple[Array, ...]:
        return (pad_rows(weight.T), *numbers.constants)

    def build(node: OpNode, name: str, isa: Isa, epilogue: Epilogue) -> Kernel:
        typed = replace(node, inputs=(node.inputs[0], type_of(weight), *node.inputs[2:]))
        p, second = matrices(typed, dtype, constant=True)
        others = [node.input(i) for i in beside]
        ins = [node.input(0), second, *map(type_of, numbers.constants), *others]
        return product(p, name, cores, node.outputs[0], ins, epilogue, numbers.finish)

    return Anchor(
        "gemm_int8",
        (0, *beside),
        lambda n, isa: plain(1 + len(beside)),
        build,
        weights=(1, _BIAS, _MULTIPLIER),
        pack=pack,
        beside=len(beside),
        any_dtype=True,
    )


@finder("effc.integer::AveragePool", "effc.integer::GlobalAveragePool")
def _integer_pool(node: OpNode, cores: int) -> Anchor:
    byte(node.input(0).dtype)
    goal, zero, factor = target(node), int(node.attr("x_zero_point", 0)), number(node, "multiplier")

    def finish(total: Expr, count: Expr) -> Expr:
        share = tirx.const(factor, "float32") / m.cast(count, "float32")
        return goal.store(scaled(total, share))

    def build(node: OpNode, name: str, isa: Isa, epilogue: Epilogue) -> Kernel:
        everywhere = node.op_type == "GlobalAveragePool"
        if everywhere:
            spatial = node.input(0).shape[2:]
            node = replace(node, attributes={**node.attributes, "kernel_shape": spatial})
        spec = replace(pool_spec(node), average=True)
        return direct.pool(spec, name, epilogue, finish, zero)

    return Anchor(node.op_type.lower(), (0,), pool_wants, build)
