"""Which kernel an operator has on a GPU: tiles, windows, or the tasks of `ops/` as threads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from effc.backends.tvm.anchor import Anchor
from effc.backends.tvm.anchors import _conv_spec as conv_spec
from effc.backends.tvm.anchors import _conv_transpose_spec as conv_transpose_spec
from effc.backends.tvm.anchors import _pool_spec as pool_spec
from effc.backends.tvm.cuda import direct
from effc.backends.tvm.cuda.gpu import scalar
from effc.backends.tvm.cuda.kernel import of_tasks
from effc.backends.tvm.cuda.product import (
    Operand,
    Product,
    columns_of,
    fits,
    implicit,
    pack_patches,
    pad_rows,
    product,
    rows_of,
    takes,
)
from effc.backends.tvm.isa import Isa
from effc.backends.tvm.kernels.epilogue import Epilogue
from effc.backends.tvm.layout import PLAIN, Layout, TensorType
from effc.backends.tvm.ops import math as m
from effc.backends.tvm.ops.contract import (
    Lazy,
    OpNode,
    Refused,
    Wanted,
    find_kernel,
    operands,
    operator_key,
)
from effc.backends.tvm.ops.injective import unflatten
from effc.backends.tvm.ops.requantize import BYTES
from effc.backends.tvm.program import Kernel

Array = npt.NDArray[Any]
Expr = Any
Finder = Callable[[OpNode, int], Anchor | None]
_FLOATS = ("float16", "float32", "float64")
FINDERS: dict[str, Finder] = {}


def finder(*op_types: str) -> Callable[[Finder], Finder]:
    """Register how these operators are lowered for GPUs, `domain::Op` outside of ONNX's."""

    def register(function: Finder) -> Finder:
        FINDERS.update(dict.fromkeys(op_types, function))
        return function

    return register


def find_anchor(node: OpNode, cores: int) -> Anchor | None:
    """The kernel for `node` on a GPU of `cores` multiprocessors, if it has one of its own."""
    known = FINDERS.get(operator_key(node.op_type, node.domain))
    if known is not None:
        return known(node, cores)
    entry = find_kernel(node)
    if entry is None:
        return None
    return Anchor(
        entry.template or node.op_type.lower(),
        operands(node),
        lambda n, isa: entry.wants(n, isa.lanes),
        lambda n, name, isa, epilogue: of_tasks(entry.build(n, name, scalar(), epilogue)),
        fuses=entry.fuses,
    )


def type_of(array: Array) -> TensorType:
    return TensorType(array.shape, array.dtype.name)


def _floats(node: OpNode) -> str:
    dtype = node.input(0).dtype
    if dtype not in _FLOATS:
        raise Refused(f"its data is {dtype}", "use float16 or float32, or quantize the model")
    return dtype


@dataclass(frozen=True, slots=True)
class Numbers:
    """What a convolution or product does with its sums: constants of the columns, and the formula."""

    constants: tuple[Array, ...]  # after the packed weights
    finish: direct.Finish


# floats


def _real(node: OpNode, bias: Array | None) -> Numbers:
    """sum + bias, in the type of the data."""
    dtype = node.input(0).dtype
    wide = "float64" if dtype == "float64" else "float32"

    def finish(total: Expr, index: tuple[Expr, ...], loads: Sequence[Lazy]) -> Expr:
        channel = index[1] if len(index) > 1 else index[0]
        value = total if bias is None else total + loads[0]((channel,))
        return m.cast(value, dtype)

    return Numbers(() if bias is None else (bias.astype(wide).reshape(-1),), finish)


def _bias(node: OpNode, i: int = 2) -> Array | None:
    return np.asarray(node.constants[i]) if node.has(i) else None


def _conv_wants(node: OpNode, isa: Isa) -> Wanted:
    """Blocks of channels, but for a few channels that would mostly be padding."""
    blocked = Layout(isa.lanes)
    ins, outs = node.input(0).shape[1], node.outputs[0].shape[1]
    return Wanted(
        (blocked if ins * 2 > isa.lanes else PLAIN,), (blocked if outs * 2 > isa.lanes else PLAIN,)
    )


@finder("Conv")
def _conv(node: OpNode, cores: int) -> Anchor:
    _floats(node)
    node.required(1, "the weight")
    node.const(2, "the bias")

    def plan(node: OpNode) -> tuple[direct.Convolution, Numbers]:
        return direct.Convolution.of(conv_spec(node)), _real(node, _bias(node))

    return convolution(node, cores, plan, lambda n: np.asarray(n.constants[1]), (1, 2), ())


@finder("ConvTranspose")
def _conv_transpose(node: OpNode, cores: int) -> Anchor:
    _floats(node)
    node.required(1, "the weight")
    node.const(2, "the bias")

    def plan(node: OpNode) -> tuple[direct.Convolution, Numbers]:
        return direct.Convolution.of(conv_transpose_spec(node)), _real(node, _bias(node))

    return convolution(node, cores, plan, lambda n: np.asarray(n.constants[1]), (1, 2), ())


def convolution(
    node: OpNode,
    cores: int,
    plan: Callable[[OpNode], tuple[direct.Convolution, Numbers]],
    weight: Callable[[OpNode], Array],
    weights: tuple[int, ...],
    beside: tuple[int, ...],
) -> Anchor:
    """A convolution in tiles where it fits into them, else one thread an element."""

    def wants(node: OpNode, isa: Isa) -> Wanted:
        wanted = _conv_wants(node, isa)
        return Wanted((*wanted.inputs, *wanted.outputs * len(beside)), wanted.outputs)

    def pack(node: OpNode, isa: Isa) -> tuple[Array, ...]:
        c, numbers = plan(node)
        packed = pack_patches(c, weight(node)) if fits(c) else c.pack(weight(node))
        return (packed, *numbers.constants)

    def build(node: OpNode, name: str, isa: Isa, epilogue: Epilogue) -> Kernel:
        c, numbers = plan(node)
        constants = [type_of(a) for a in numbers.constants]
        others = [node.input(i) for i in beside]
        kind = type_of(weight(node)).dtype
        if not fits(c):
            outputs, taps = c.output.shape[1], math.prod(c.kernel)
            packed = TensorType((taps, c.inner, outputs), kind)
            return direct.convolution(c, name, packed, constants, others, epilogue, numbers.finish)
        packed = TensorType((c.output.shape[1], pack_patches(c, weight(node)).shape[1]), kind)
        p = implicit(c, packed)
        ins = [c.input, packed, *constants, *others]
        return product(p, name, cores, c.output, ins, epilogue, numbers.finish)

    c = plan(node)[0]
    grouped = c.groups > 1 and c.groups == node.input(0).shape[1]
    template = "depthwise" if grouped else ("conv_transpose" if c.transposed else "conv")
    return Anchor(
        template,
        (0, *beside),
        wants,
        build,
        weights=weights,
        pack=pack,
        beside=len(beside),
        any_dtype=True,
        any_layout=not beside and c.groups == 1 and not c.transposed,
    )


def plain(count: int) -> Wanted:
    return Wanted((PLAIN,) * count, (PLAIN,))


@finder("Gemm")
def _gemm(node: OpNode, cores: int) -> Anchor:
    """alpha A B + beta C; C broadcasts."""
    dtype = _floats(node)
    _tiled(dtype)
    if node.attr("transA", 0):
        raise Refused("its A is transposed at run time", "put a Transpose before it")
    alpha, beta = float(node.attr("alpha", 1.0)), float(node.attr("beta", 1.0))
    turned, constant = bool(node.attr("transB", 0)), 1 in node.constants
    rows, k = node.input(0).shape
    columns = node.outputs[0].shape[1]
    adds = node.has(2)

    def finish(total: Expr, index: tuple[Expr, ...], loads: Sequence[Lazy]) -> Expr:
        value = total * m.const(alpha, total) if alpha != 1.0 else total
        if adds:
            c = node.input(2)
            tail = index[len(index) - len(c.shape) :]
            at = tuple(0 if e == 1 else i for e, i in zip(c.shape, tail, strict=True))
            value = value + m.cast(loads[0](at), "float32") * m.const(beta, total)
        return m.cast(value, dtype)

    def pack(node: OpNode, isa: Isa) -> tuple[Array, ...]:
        w = np.asarray(node.constants[1])
        return (pad_rows(w if turned else w.T),)

    def build(node: OpNode, name: str, isa: Isa, epilogue: Epilogue) -> Kernel:
        a = rows_of("p1", node.input(0), rows, k)
        if constant:
            weight = TensorType(pad_rows(np.empty((columns, k), dtype)).shape, dtype)
            b = rows_of("p2", weight, columns, weight.shape[1])
        else:
            weight = node.input(1)
            b = (rows_of if turned else columns_of)("p2", weight, columns, k)
        p = Product(dtype, rows, columns, k, a, b, lambda z, i, j: (i, j))
        ins = [node.input(0), weight, *([node.input(2)] if adds else [])]
        return product(p, name, cores, node.outputs[0], ins, epilogue, finish)

    runtime = (0, *(() if constant else (1,)), *((2,) if adds else ()))
    return Anchor(
        "gemm" if constant else "matmul",
        runtime,
        lambda n, isa: plain(len(runtime)),
        build,
        weights=(1,) if constant else (),
        pack=pack if constant else lambda n, isa: (),
        beside=int(adds) if constant else 0,
        any_dtype=True,
    )


def _tiled(dtype: str) -> None:
    if not takes(dtype):
        raise Refused(f"products of {dtype} have no kernel for GPUs here", "export it in float32")


@dataclass(frozen=True, slots=True)
class Shapes:
    """numpy.matmul of matrices: batch axes that broadcast, then [rows, k] and [k, columns]."""

    batch: tuple[int, ...]
    rows: int
    k: int
    columns: int
    a: tuple[int, ...]
    b: tuple[int, ...]
    flat: bool  # B is one matrix: all rows of A are rows of one product

    @classmethod
    def of(cls, node: OpNode) -> Shapes:
        a, b = node.input(0).shape, node.input(1).shape
        batch = tuple(np.broadcast_shapes(a[:-2], b[:-2]))
        flat = math.prod(b[:-2]) == 1
        rows = a[-2] * (math.prod(batch) if flat else 1)
        return cls(batch, rows, a[-1], b[-1], a, b, flat)

    def offset(self, shape: tuple[int, ...]) -> str:
        """C: where the matrix of batch z begins in an operand, in elements."""
        rank, terms = len(self.batch), []
        stride = math.prod(shape[-2:])
        own = (1,) * (rank - len(shape[:-2])) + tuple(shape[:-2])
        step = 1
        for axis in reversed(range(rank)):
            if own[axis] > 1:
                terms.append(f"blockIdx.z / {step} % {self.batch[axis]} * {stride}ll")
                stride *= own[axis]
            step *= self.batch[axis]
        return f" + ({' + '.join(terms)})" if terms else ""

    def index(self, z: Expr, i: Expr, j: Expr) -> tuple[Expr, ...]:
        """The index in the output: [*batch, rows, columns]."""
        if self.flat:
            *lead, row = unflatten(i, (*self.batch, self.a[-2]))
        else:
            lead, row = list(unflatten(z, self.batch)), i
        return (*lead, row, j)


@finder("MatMul")
def _matmul(node: OpNode, cores: int) -> Anchor:
    """numpy.matmul; a constant right operand of two axes is packed."""
    dtype = _floats(node)
    _tiled(dtype)
    if len(node.input(0).shape) < 2 or len(node.input(1).shape) < 2:
        raise Refused("one of its operands is a vector", "reshape it to a matrix")
    constant = 1 in node.constants and len(node.input(1).shape) == 2

    def finish(total: Expr, index: tuple[Expr, ...], loads: Sequence[Lazy]) -> Expr:
        return m.cast(total, dtype)

    def build(node: OpNode, name: str, isa: Isa, epilogue: Epilogue) -> Kernel:
        p, second = matrices(node, dtype, constant)
        ins = [node.input(0), second]
        return product(p, name, cores, node.outputs[0], ins, epilogue, finish)

    runtime = (0,) if constant else (0, 1)
    return Anchor(
        "gemm" if constant else "matmul",
        runtime,
        lambda n, isa: plain(len(runtime)),
        build,
        weights=(1,) if constant else (),
        pack=(lambda n, isa: (pad_rows(np.asarray(n.constants[1]).T),))
        if constant
        else (lambda n, isa: ()),
        any_dtype=True,
    )


def matrices(node: OpNode, dtype: str, constant: bool) -> tuple[Product, TensorType]:
    s = Shapes.of(node)
    batch = 1 if s.flat else math.prod(s.batch)
    if batch > 65535:
        raise Refused(f"it has {batch} matrices", "a launch takes 65535; make the batch smaller")
    a = rows_of("p1", node.input(0), s.rows, s.k, "" if s.flat else s.offset(s.a))
    second = node.input(1)
    b: Operand
    if constant:
        per = 16 // np.dtype(second.dtype).itemsize
        second = TensorType((s.columns, -(-s.k // per) * per), second.dtype)
        b = rows_of("p2", second, s.columns, second.shape[1])
    else:
        b = columns_of("p2", second, s.columns, s.k, "" if s.flat else s.offset(s.b))
    return Product(dtype, s.rows, s.columns, s.k, a, b, s.index, batch), second


# pooling


def pool_wants(node: OpNode, isa: Isa) -> Wanted:
    blocked = Layout(isa.lanes)
    return Wanted((blocked,), (blocked,))


@finder("MaxPool", "AveragePool")
def _pool(node: OpNode, cores: int) -> Anchor:
    if len(node.outputs) > 1:
        raise Refused("its indices are read", "use MaxPool without the output Indices")
    if node.op_type == "AveragePool" or node.input(0).dtype not in BYTES:
        _floats(node)
    return Anchor(
        node.op_type.lower(),
        (0,),
        pool_wants,
        lambda n, name, isa, epilogue: direct.pool(pool_spec(n), name, epilogue),
    )
