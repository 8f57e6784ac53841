"""How a kernel stores vectors of results: through the epilogue, and never past a tensor's channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm
from tvm import sym, tirx

from effc.backends.tvm import tir
from effc.backends.tvm.kernels.epilogue import Epilogue
from effc.backends.tvm.layout import TensorType
from effc.backends.tvm.ops.contract import Lazy, loaded, storage_dtype, stored

Expr = Any
Stmt = Any


def parameter(name: str, tensor: TensorType) -> Any:
    """The buffer of a kernel's parameter; any tensor may be the user's, so it is element-aligned."""
    dtype = storage_dtype(tensor.dtype)
    return tir.buffer(name, max(1, tensor.elements), dtype, alignment=np.dtype(dtype).itemsize)


@dataclass(slots=True)
class Store:
    """Stores `width` results that lie along logical axis `axis` of the output.

    Results past the axis' extent become zeros in a blocked output and are not stored in a plain one.
    """

    output: TensorType
    buffer: Any
    epilogue: Epilogue
    operands: Sequence[Any]  # the buffers of the epilogue's operands
    width: int
    axis: int
    clean: bool = True  # results past the extent are zeros before the epilogue
    analyzer: Any = field(default_factory=sym.Analyzer)

    def vector(self, value: Callable[[Expr], Expr], index: Sequence[Expr], valid: int) -> Stmt:
        """Store `value(lane)` at `index` with `lane` added on the axis; the first `valid` exist."""
        blocked = bool(self.output.layout.block)
        if valid == self.width or (blocked and self._may_read_past()):
            return self._lanes(value, index, self.width, valid)
        some = self._lanes(value, index, valid, valid)
        if not blocked:
            return some

        def zero(lane: Expr) -> Stmt:
            where = self._flat(self.output, self._at(index, lane + valid))
            return tirx.BufferStore(self.buffer, tirx.const(0, self.buffer.dtype), [where])

        return tir.seq(some, self._vectorized(self.width - valid, zero))

    def _may_read_past(self) -> bool:
        """Whether operands may be read at lanes past the axis: they are blocked alike, or scalars."""
        block = self.output.layout.block
        return all(t.layout.block == block or t.elements == 1 for t in self.epilogue.operands)

    def _lanes(
        self, value: Callable[[Expr], Expr], index: Sequence[Expr], extent: int, valid: int
    ) -> Stmt:
        def body(lane: Expr) -> Stmt:
            at = self._at(index, lane)
            result = self.epilogue.apply(value(lane), at, self._loads())
            result = stored(result, self.output.dtype)
            if valid < extent and not (self.clean and self.epilogue.identity):
                result = tirx.Select(lane < valid, result, tirx.const(0, self.buffer.dtype))
            return tirx.BufferStore(self.buffer, result, [self._flat(self.output, at)])

        return self._vectorized(extent, body)

    def _vectorized(self, extent: int, body: Callable[[Expr], Stmt]) -> Stmt:
        lane = tirx.Var("lane", "int32")
        self.analyzer.bind(lane, tvm.ir.Range(0, extent))
        return tir.lanes(extent, body, lane)

    def _at(self, index: Sequence[Expr], lane: Expr) -> tuple[Expr, ...]:
        return tuple(i + lane if a == self.axis else i for a, i in enumerate(index))

    def _loads(self) -> list[Lazy]:
        return [
            self._load(t, b) for t, b in zip(self.epilogue.operands, self.operands, strict=True)
        ]

    def _load(self, tensor: TensorType, buffer: Any) -> Lazy:
        def read(index: tuple[Expr, ...]) -> Expr:
            value = tirx.BufferLoad(buffer, [self._flat(tensor, index)])
            return loaded(value, tensor.dtype)

        return read

    def _flat(self, tensor: TensorType, index: Sequence[Expr]) -> Expr:
        flat = tensor.layout.flat_index(tensor.shape, index)
        return tirx.const(flat, "int32") if isinstance(flat, int) else self.analyzer.simplify(flat)
