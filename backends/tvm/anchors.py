"""ONNX operators that have a kernel of their own: which one, the layouts it wants, what it packs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import tirx

from effc.backends.tvm import anchors_int8 as _integers  # noqa: F401  registers its operators
from effc.backends.tvm.anchor import Anchor, find_anchor, finder, nothing
from effc.backends.tvm.candidates import conv_space, gemm_space
from effc.backends.tvm.isa import Isa
from effc.backends.tvm.kernels.conv import ConvSpec, conv2d, pack_conv2d
from effc.backends.tvm.kernels.conv_transpose import (
    ConvTransposeSpec,
    conv_transpose,
    pack_conv_transpose,
)
from effc.backends.tvm.kernels.epilogue import Epilogue
from effc.backends.tvm.kernels.gemm import GemmSpec, MatmulSpec, gemm, matmul, pack_gemm
from effc.backends.tvm.kernels.pool import PoolSpec, pool
from effc.backends.tvm.kernels.pool_bytes import Average, global_pool_bytes, pool_bytes
from effc.backends.tvm.layout import PLAIN, Layout, TensorType
from effc.backends.tvm.ops import all as _all_ops  # noqa: F401  registers the rules
from effc.backends.tvm.ops.contract import (
    Lazy,
    OpNode,
    Refused,
    Wanted,
)
from effc.backends.tvm.ops.requantize import BYTES, byte, number, target
from effc.backends.tvm.program import Kernel

__all__ = ["Anchor", "conv_pads", "find_anchor"]
Array = npt.NDArray[Any]


def _blocked(shape: Sequence[int], isa: Isa) -> Layout:
    """Blocked, unless padding the channels to whole blocks would more than double the tensor."""
    return Layout(isa.lanes) if shape[1] * 2 >= isa.lanes else PLAIN


def conv_pads(
    node: OpNode, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[int, ...]:
    """`pads` in ONNX order (all begins, then all ends), auto_pad resolved."""
    rank = len(kernel)
    auto = node.attr("auto_pad", "NOTSET")
    if auto == "NOTSET":
        return tuple(node.attr("pads", (0,) * 2 * rank))
    if auto == "VALID":
        return (0,) * 2 * rank
    begins, ends = [], []
    for size, k, s, d in zip(node.input(0).shape[2:], kernel, strides, dilations, strict=True):
        total = max(0, (-(-size // s) - 1) * s + d * (k - 1) + 1 - size)
        small, large = total // 2, total - total // 2
        begins.append(small if auto == "SAME_UPPER" else large)
        ends.append(large if auto == "SAME_UPPER" else small)
    return (*begins, *ends)


def _float32(node: OpNode) -> None:
    dtype = node.input(0).dtype
    if dtype != "float32":
        raise Refused(
            f"its data is {dtype}, and this kernel computes in float32",
            "export the model in float32, or build with --backend ort",
        )


def _conv_spec(node: OpNode) -> ConvSpec:
    kernel = node.input(1).shape[2:]
    rank = len(kernel)
    strides = tuple(node.attr("strides", (1,) * rank))
    dilations = tuple(node.attr("dilations", (1,) * rank))
    return ConvSpec(
        input=node.input(0),
        output=node.outputs[0],
        kernel=tuple(kernel),
        strides=strides,
        pads=conv_pads(node, kernel, strides, dilations),
        dilations=dilations,
        groups=node.attr("group", 1),
        bias=node.has(2),
        blocking=node.blocking,
    )


@finder("Conv")
def _conv(node: OpNode) -> Anchor:
    _float32(node)
    node.required(1, "the weight")
    node.const(2, "the bias")
    groups = node.attr("group", 1)
    depthwise = groups > 1 and groups == node.input(0).shape[1]

    def wants(node: OpNode, isa: Isa) -> Wanted:
        out = Layout(isa.lanes)
        if depthwise:
            return Wanted((out,), (out,))
        # a quarter of a block would be mostly padding, and somebody would have to unpack it
        few = node.outputs[0].shape[1] * 4 <= isa.lanes
        source = out if groups > 1 else _blocked(node.input(0).shape, isa)
        return Wanted((source,), (PLAIN if few else out,))

    def pack(node: OpNode, isa: Isa) -> tuple[Array, ...]:
        bias = np.asarray(node.constants[2]) if node.has(2) else None
        return pack_conv2d(_conv_spec(node), isa, np.asarray(node.constants[1]), bias)

    return Anchor(
        "depthwise" if depthwise else "conv",
        (0,),
        wants,
        lambda n, name, isa, epilogue: conv2d(_conv_spec(n), name, isa, epilogue),
        weights=(1, 2),
        pack=pack,
        any_dtype=True,
        any_layout=groups == 1,
        tunes=lambda n, isa: conv_space(_conv_spec(n), isa),
    )


@finder("ConvTranspose")
def _conv_transpose(node: OpNode) -> Anchor:
    _float32(node)
    node.required(1, "the weight")
    node.const(2, "the bias")

    def pack(node: OpNode, isa: Isa) -> tuple[Array, ...]:
        bias = np.asarray(node.constants[2]) if node.has(2) else None
        weight = np.asarray(node.constants[1])
        return pack_conv_transpose(_conv_transpose_spec(node), isa, weight, bias)

    return Anchor(
        "conv_transpose",
        (0,),
        lambda n, isa: Wanted((_blocked(n.input(0).shape, isa),), (Layout(isa.lanes),)),
        lambda n, name, isa, epilogue: conv_transpose(_conv_transpose_spec(n), name, isa, epilogue),
        weights=(1, 2),
        pack=pack,
        any_dtype=True,
    )


def _conv_transpose_spec(node: OpNode) -> ConvTransposeSpec:
    """Pads follow from the output's shape where auto_pad or output_shape leaves them open."""
    kernel = tuple(node.input(1).shape[2:])
    rank = len(kernel)
    strides = tuple(node.attr("strides", (1,) * rank))
    dilations = tuple(node.attr("dilations", (1,) * rank))
    pads = tuple(node.attr("pads", (0,) * 2 * rank))
    auto = node.attr("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER") or node.attr("output_shape") is not None:
        extra = node.attr("output_padding", (0,) * rank)
        begins, ends = [], []
        for i in range(rank):
            full = (node.input(0).shape[2 + i] - 1) * strides[i] + dilations[i] * (kernel[i] - 1)
            total = full + 1 + extra[i] - node.outputs[0].shape[2 + i]
            half, rest = total // 2, total - total // 2
            begins.append(half if auto == "SAME_UPPER" else rest)
            ends.append(rest if auto == "SAME_UPPER" else half)
        pads = (*begins, *ends)
    elif auto == "VALID":
        pads = (0,) * 2 * rank
    return ConvTransposeSpec(
        input=node.input(0),
        output=node.outputs[0],
        kernel=kernel,
        strides=strides,
        pads=pads,
        dilations=dilations,
        groups=node.attr("group", 1),
        bias=node.has(2),
    )


def _pool_spec(node: OpNode) -> PoolSpec:
    kernel = tuple(node.attr("kernel_shape"))
    strides = tuple(node.attr("strides", (1,) * len(kernel)))
    dilations = tuple(node.attr("dilations", (1,) * len(kernel)))
    return PoolSpec(
        input=node.input(0),
        output=node.outputs[0],
        kernel=kernel,
        strides=strides,
        pads=conv_pads(node, kernel, strides, dilations),
        dilations=dilations,
        average=node.op_type == "AveragePool",
        count_include_pad=bool(node.attr("count_include_pad", 0)),
    )


def _pool_anchor(node: OpNode, build: Callable[..., Kernel]) -> Anchor:
    """`build(spec, name, isa, epilogue)` on blocked tensors."""
    return Anchor(
        node.op_type.lower(),
        (0,),
        lambda n, isa: Wanted((Layout(isa.lanes),), (Layout(isa.lanes),)),
        lambda n, name, isa, epilogue: build(_pool_spec(n), name, isa, epilogue),
    )


@finder("MaxPool", "AveragePool")
def _pool(node: OpNode) -> Anchor:
    if len(node.outputs) > 1:
        raise Refused("its indices are read", "use MaxPool without the output Indices")
    if node.op_type == "MaxPool" and node.input(0).dtype in BYTES:
        return _pool_anchor(
            node, lambda spec, name, isa, e: pool_bytes(spec, name, isa, None, epilogue=e)
        )
    _float32(node)
    return _pool_anchor(node, pool)


def _average(node: OpNode) -> Average:
    byte(node.input(0).dtype)
    return Average(node.attr("x_zero_point", 0), number(node, "multiplier"), target(node))


@finder("effc.integer::AveragePool")
def _integer_pool(node: OpNode) -> Anchor:
    average = _average(node)
    return _pool_anchor(
        node, lambda spec, name, isa, e: pool_bytes(spec, name, isa, average, epilogue=e)
    )


@finder("effc.integer::GlobalAveragePool")
def _integer_global_pool(node: OpNode) -> Anchor:
    average = _average(node)
    return Anchor(
        node.op_type.lower(),
        (0,),
        lambda n, isa: Wanted((Layout(isa.lanes),), (Layout(isa.lanes),)),
        lambda n, name, isa, epilogue: global_pool_bytes(
            n.input(0), n.outputs[0], average, name, isa
        ),
        fuses=False,
    )


def _plain(node: OpNode, isa: Isa, count: int) -> Wanted:
    return Wanted((PLAIN,) * count, (PLAIN,))


@finder("Gemm")
def _gemm(node: OpNode) -> Anchor:
    """alpha A B + beta C; a constant C of one row is the bias, any other C is added in registers."""
    _float32(node)
    if node.attr("transA", 0):
        raise Refused("its A is transposed at run time", "put a Transpose before it")
    n = node.outputs[0].shape[1]
    alpha, beta = node.attr("alpha", 1.0), node.attr("beta", 1.0)
    transposed = bool(node.attr("transB", 0))
    constant = 1 in node.constants
    rows = node.has(2) and np.size(node.constants.get(2, ())) == n
    adds = node.has(2) and not (constant and rows)
    if not constant and alpha != 1.0:
        raise Refused("alpha scales a product of two computed matrices", "multiply by it apart")

    def pack(node: OpNode, isa: Isa) -> tuple[Array, ...]:
        weight = np.asarray(node.constants[1])
        weight = np.float32(alpha) * (weight.T if transposed else weight)
        bias = (
            np.float32(beta) * np.asarray(node.constants[2]).reshape(n)
            if not adds and rows
            else None
        )
        return pack_gemm(_gemm_spec(node, not adds and rows), isa, weight.astype(np.float32), bias)

    def build(node: OpNode, name: str, isa: Isa, epilogue: Epilogue) -> Kernel:
        if adds:
            epilogue = _adding(node.input(2), float(beta), epilogue)
        if constant:
            return gemm(_gemm_spec(node, not adds and rows), name, isa, epilogue)
        spec = MatmulSpec(node.input(0), node.input(1), node.outputs[0], transposed)
        return matmul(spec, name, isa, epilogue)

    runtime = (0, *(() if constant else (1,)), *((2,) if adds else ()))
    return Anchor(
        "gemm" if constant else "matmul",
        runtime,
        lambda n, isa: _plain(n, isa, len(runtime)),
        build,
        weights=(1, 2) if constant else (),
        pack=pack if constant else nothing,
        beside=int(adds),
        any_dtype=True,
        tunes=lambda n, isa: (
            gemm_space(_gemm_spec(n, not adds and rows), isa) if constant else None
        ),
    )


def _gemm_spec(node: OpNode, bias: bool) -> GemmSpec:
    return GemmSpec(node.input(0), node.outputs[0], bias, node.blocking)


def _adding(c: TensorType, beta: float, epilogue: Epilogue) -> Epilogue:
    """`epilogue` of the value plus beta C, where C broadcasts to it."""

    def apply(value: Any, index: tuple[Any, ...], loads: Sequence[Lazy]) -> Any:
        tail = index[len(index) - len(c.shape) :]
        term = loads[0](tuple(0 if e == 1 else i for e, i in zip(c.shape, tail, strict=True)))
        if beta != 1.0:
            term = term * tirx.const(beta, "float32")
        return epilogue.apply(value + term, index, loads[1:])

    return Epilogue((c, *epilogue.operands), apply)


@finder("MatMul")
def _matmul(node: OpNode) -> Anchor:
    """numpy.matmul; a constant right operand of two axes is packed."""
    _float32(node)
    a, b = node.input(0), node.input(1)
    constant = 1 in node.constants and len(b.shape) <= 2
    vectors = len(a.shape) == 1 or len(b.shape) == 1  # the output lacks an axis that kernels have

    def types(node: OpNode) -> tuple[TensorType, TensorType, TensorType]:
        a, b, out = node.input(0), node.input(1), node.outputs[0]
        shape = out.shape
        if len(b.shape) == 1:
            b, shape = TensorType((*b.shape, 1), b.dtype), (*shape, 1)
        if len(a.shape) == 1:
            a, shape = TensorType((1, *a.shape), a.dtype), (*shape[:-1], 1, shape[-1])
        return a, b, TensorType(shape, out.dtype)

    def spec(node: OpNode) -> GemmSpec:
        a, _, out = types(node)
        return GemmSpec(a, out, False, node.blocking)

    def pack(node: OpNode, isa: Isa) -> tuple[Array, ...]:
        b = types(node)[1]
        return pack_gemm(spec(node), isa, np.asarray(node.constants[1]).reshape(b.shape))

    def build(node: OpNode, name: str, isa: Isa, epilogue: Epilogue) -> Kernel:
        a, b, out = types(node)
        if constant:
            return gemm(spec(node), name, isa, epilogue)
        return matmul(MatmulSpec(a, b, out), name, isa, epilogue)

    runtime = (0,) if constant else (0, 1)
    return Anchor(
        "gemm" if constant else "matmul",
        runtime,
        lambda n, isa: _plain(n, isa, len(runtime)),
        build,
        weights=(1,) if constant else (),
        pack=pack if constant else nothing,
        any_dtype=True,
        fuses=not vectors,
        tunes=lambda n, isa: gemm_space(spec(n), isa) if constant else None,
    )
