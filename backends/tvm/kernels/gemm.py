"""Matrix products: activations times packed constant weights, and batches of two activations.

A product is a pointwise convolution whose input channels lie next to each other: the same register
tiles, with rows of A as pixels and columns of B as output channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import tirx

from effc.backends.tvm import tir
from effc.backends.tvm.isa import Isa
from effc.backends.tvm.kernels.axes import Axis
from effc.backends.tvm.kernels.blocking import Run
from effc.backends.tvm.kernels.choice import Blocking
from effc.backends.tvm.kernels.direct import Direct, Source
from effc.backends.tvm.kernels.direct_emission import direct_kernel
from effc.backends.tvm.kernels.epilogue import IDENTITY, Epilogue
from effc.backends.tvm.kernels.loops import int32, unflatten, vector
from effc.backends.tvm.layout import TensorType
from effc.backends.tvm.program import Kernel

Expr = Any
Stmt = Any


@dataclass(frozen=True, slots=True)
class GemmSpec:
    """`a` [..., K] @ B [K, N] -> `out` [..., N], all plain; B is a constant."""

    a: TensorType
    out: TensorType
    bias: bool = False
    blocking: Blocking | None = None  # None: the rule's


@dataclass(frozen=True, slots=True)
class MatmulSpec:
    """`a` [..., M, K] @ `b` [..., K, N] -> `out` [..., M, N], plain; leading axes broadcast.

    `transposed`: b is [..., N, K].
    """

    a: TensorType
    b: TensorType
    out: TensorType
    transposed: bool = False


def gemm(spec: GemmSpec, name: str, isa: Isa, epilogue: Epilogue = IDENTITY) -> Kernel:
    """Params: out, a, packed weights, packed bias (where `spec.bias`), the epilogue's operands."""
    return direct_kernel(gemm_of(spec, isa), name, epilogue)


def pack_gemm(
    spec: GemmSpec, isa: Isa, weight: npt.NDArray[Any], bias: npt.NDArray[Any] | None = None
) -> tuple[npt.NDArray[Any], ...]:
    """The constants of `gemm` in the order of its params: B [K, N], bias [N]."""
    packed = gemm_of(spec, isa).pack(np.ascontiguousarray(weight.T)[:, :, None])
    return (packed,) if bias is None else (packed, np.pad(bias, (0, -bias.size % isa.lanes)))


def matmul(spec: MatmulSpec, name: str, isa: Isa, epilogue: Epilogue = IDENTITY) -> Kernel:
    """Params: out, a, b, the epilogue's operands. It has scratch: a panel of b, packed."""
    batch = spec.out.shape[:-2]
    if math.prod(spec.b.shape[:-2]) == 1 and spec.a.shape[:-2] == batch:
        batch = ()
    m = math.prod(spec.out.shape[len(batch) : -1])
    product = _product(isa, spec.a, spec.out, batch, m, False, spec.b, spec.transposed)
    return direct_kernel(product, name, epilogue)


@lru_cache(maxsize=1024)
def gemm_of(spec: GemmSpec, isa: Isa) -> Product:
    m = math.prod(spec.out.shape[:-1])
    return _product(isa, spec.a, spec.out, (), m, spec.bias, blocking=spec.blocking)


def _product(
    isa: Isa,
    a: TensorType,
    out: TensorType,
    batch: tuple[int, ...],
    m: int,
    bias: bool,
    b: TensorType | None = None,
    transposed: bool = False,
    blocking: Blocking | None = None,
) -> Product:
    k, n, images = a.shape[-1], out.shape[-1], math.prod(batch)
    return Product(
        isa,
        TensorType((images, k, m), "float32"),
        TensorType((images, n, m), "float32"),
        ((Axis(m, m, 1, 0, 1, (0,)),),),
        1,
        bias,
        a,
        out,
        batch,
        b,
        transposed,
        blocking=blocking,
    )


@dataclass(frozen=True)
class Product(Direct):
    """`a` [*batch, M, K] times weights, or times `b` [*batch, K, N], to `out` [*batch, M, N]."""

    a: TensorType = field(kw_only=False, default_factory=lambda: TensorType((), "float32"))
    out: TensorType = field(kw_only=False, default_factory=lambda: TensorType((), "float32"))
    batch: tuple[int, ...] = ()
    b: TensorType | None = None
    transposed: bool = False

    @cached_property
    def source(self) -> Source:
        """Rows of a."""
        k = self.a.shape[-1]
        return Source(self.a, 1, self.lanes, (k,), lambda n: self.matrix(self.a, n))

    def matrix(self, tensor: TensorType, n: Expr) -> Expr:
        """The offset of the matrix of `tensor` in batch element `n`."""
        if not self.batch:
            return int32(0)
        leading = tensor.shape[:-2]
        index = unflatten(n, self.batch)[len(self.batch) - len(leading) :]
        offset: Expr = int32(0)
        for i, extent in zip(index, leading, strict=True):
            offset = offset * extent + (i if extent > 1 else 0)
        return offset * math.prod(tensor.shape[-2:])

    @property
    def result(self) -> TensorType:
        """[*batch, M, N]."""
        return self.out

    @property
    def lane_axis(self) -> int:
        """Columns."""
        return len(self.out.shape) - 1

    def place(self, n: Expr, channel: Expr, spatial: Sequence[Expr]) -> list[Expr]:
        """[batch..., row, column]."""
        rows = self.out.shape[len(self.batch) : -1]
        head = unflatten(n, self.batch) if self.batch else []
        return [*head, *unflatten(spatial[0], rows), channel]

    @property
    def second(self) -> TensorType | None:
        """b."""
        return self.b

    def pack_panel(self, n: Expr, block: Expr, run: Run, panel: Any, second: Any) -> Stmt:
        """Columns of b as [K, block, lane], zeros past N."""
        assert self.b is not None
        columns, depth, lanes = self.output.shape[1], self.channels, self.lanes
        base = tirx.Var("b0", "int32")

        def row(k: Expr) -> Stmt:
            stmts = []
            for j in range(run.width):
                valid = run.valid if j == run.width - 1 else lanes
                to = (k * run.width + j) * lanes

                def copy(lane: Expr, j: int = j, to: Expr = to) -> Stmt:
                    column = (block + j) * lanes + lane
                    if self.transposed:
                        at = base + column * depth + k
                    else:
                        at = base + k * columns + column
                    return tirx.BufferStore(panel, tirx.BufferLoad(second, [at]), [to + lane])

                def zero(lane: Expr, valid: int = valid, to: Expr = to) -> Stmt:
                    value = tirx.const(0.0, "float32")
                    return tirx.BufferStore(panel, value, [to + valid + lane])

                stmts.append(vector(valid, copy))
                if valid < lanes:
                    stmts.append(vector(lanes - valid, zero))
            return tir.seq(*stmts)

        return tir.seq(
            tirx.Bind(base, self.matrix(self.b, n) + int32(0)), tir.loop("k", depth, row)
        )
