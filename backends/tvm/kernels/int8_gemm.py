"""Integer products of bytes with constant weights: `effc.integer`'s MatMul."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from effc.backends.tvm.isa import Isa
from effc.backends.tvm.kernels.axes import Axis
from effc.backends.tvm.kernels.choice import Blocking
from effc.backends.tvm.kernels.epilogue import IDENTITY, Epilogue
from effc.backends.tvm.kernels.int8_bias import pad_channels
from effc.backends.tvm.kernels.int8_direct import IntegerProduct
from effc.backends.tvm.kernels.int8_dot import shift_of
from effc.backends.tvm.kernels.int8_emission import integer_kernel
from effc.backends.tvm.kernels.int8_store import Requantize
from effc.backends.tvm.layout import TensorType
from effc.backends.tvm.program import Kernel

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class IntGemmSpec:
    """`a` [..., K] of bytes @ B [K, N] -> `out` [..., N], all plain; B is a constant."""

    a: TensorType
    out: TensorType
    zero_point: int
    how: Requantize
    blocking: Blocking | None = None  # None: the rule's

    def shift(self, isa: Isa) -> int:
        """The zero point of the input as a step takes it."""
        return shift_of(isa, self.a.dtype, self.zero_point)


def int_product_of(spec: IntGemmSpec, isa: Isa) -> IntegerProduct:
    """The plan of a product."""
    return _product(spec.a, spec.out, spec.blocking, isa)


@lru_cache(maxsize=1024)
def _product(a: TensorType, out: TensorType, blocking: Blocking | None, isa: Isa) -> IntegerProduct:
    k, n, m = a.shape[-1], out.shape[-1], math.prod(out.shape[:-1])
    return IntegerProduct(
        isa,
        TensorType((1, k, m), a.dtype),
        TensorType((1, n, m), out.dtype),
        ((Axis(m, m, 1, 0, 1, (0,)),),),
        1,
        True,
        a,
        out,
        blocking=blocking,
    )


def int_gemm(spec: IntGemmSpec, name: str, isa: Isa, epilogue: Epilogue = IDENTITY) -> Kernel:
    """Params: out, a, weights, biases, multipliers, the residual (if any), the epilogue's operands."""
    return integer_kernel(int_product_of(spec, isa), name, spec.how, spec.zero_point, epilogue)


def pack_int_gemm(
    spec: IntGemmSpec, isa: Isa, weight: Array, bias: Array, m: Array
) -> tuple[Array, ...]:
    """The constants of `int_gemm`: B [K, N] int8, bias int32 [N], multipliers [N] or [1]."""
    product = int_product_of(spec, isa)
    columns = weight.shape[1]
    table = bias.astype(np.int64) - spec.shift(isa) * weight.astype(np.int64).sum(axis=0)
    packed = product.pack(np.ascontiguousarray(weight.T)[:, :, None])
    multipliers = np.broadcast_to(m.astype(np.float32).reshape(-1), (columns,))
    return (
        packed,
        pad_channels(table.astype(np.int32)[None], product.output_channels),
        pad_channels(multipliers[None], product.output_channels),
    )
