"""What a kernel does to each value of its first output just before it stores it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from effc.backends.tvm.layout import TensorType
from effc.backends.tvm.ops.contract import Lazy

Expr = Any
Apply = Callable[[Expr, tuple[Expr, ...], Sequence[Lazy]], Expr]


def _same(value: Expr, index: tuple[Expr, ...], loads: Sequence[Lazy]) -> Expr:
    return value


@dataclass(frozen=True, slots=True)
class Epilogue:
    """`apply(value, logical_index, loads)` gives what is stored; `loads[i]` reads `operands[i]`.

    The kernel appends `operands` to its params and makes the loads (`ops.contract.load`). The index is
    that of the kernel's output tensor: (n, c, *spatial). `apply` may use `tir.let`, so the store
    stands inside `tir.bound`. In a blocked tensor's padding lanes the kernel stores zeros whatever
    `apply` gives, and keeps the index of the loads inside the physical tensor. `dtype` is the dtype of
    the stored output; "" means the anchor's.
    """

    operands: tuple[TensorType, ...] = ()
    apply: Apply = _same
    dtype: str = ""

    @property
    def identity(self) -> bool:
        """Whether values are stored as they are."""
        return self.apply is _same


IDENTITY = Epilogue()
