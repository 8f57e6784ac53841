"""One kernel for a group of rules: every output element is an expression of elements of the operands.

Outer loops are tasks, the innermost one is vectorized: over the lanes of a block, or along as many
trailing axes as can be walked as one without any access ceasing to be contiguous.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import tirx

from effc.backends.tvm import tir
from effc.backends.tvm.isa import Isa
from effc.backends.tvm.layout import TensorType
from effc.backends.tvm.ops.contract import Lazy, loaded, storage_dtype, stored
from effc.backends.tvm.ops.move import move
from effc.backends.tvm.ops.strided import strided
from effc.backends.tvm.program import Kernel

Expr = Any
Stmt = Any
Body = Callable[[list[Lazy]], Sequence[Lazy]]

TASKS = 128  # enough to balance any number of cores, few enough to keep a task's loops long


def parameter(name: str, tensor: TensorType) -> Any:
    """The buffer of a kernel's parameter; any tensor may be the user's, so it is element-aligned."""
    dtype = storage_dtype(tensor.dtype)
    size = int(np.dtype(dtype).itemsize)
    return tir.buffer(name, max(1, tensor.elements), dtype, alignment=size)


def nothing(name: str, params: Sequence[TensorType], outputs: int) -> Kernel:
    """The kernel of outputs without elements."""
    buffers = [parameter(f"p{i}", t) for i, t in enumerate(params)]
    func = tir.prim_func(name, buffers, lambda b, e: tirx.Evaluate(b))
    return Kernel(name, func, 0, tuple(params), outputs)


@dataclass(slots=True)
class _Loads:
    """Loads of the operands at simplified indices; remembers the indices."""

    buffers: list[Any]
    operands: Sequence[TensorType]
    analyzer: Any
    safe: bool = False  # indices may be past the channels: keep them inside
    seen: list[Expr] | None = None

    def lazies(self) -> list[Lazy]:
        return [self._lazy(b, t) for b, t in zip(self.buffers, self.operands, strict=True)]

    def _lazy(self, buffer: Any, tensor: TensorType) -> Lazy:
        def read(index: tuple[Expr, ...]) -> Expr:
            if self.safe:
                index = self._clamped(index, tensor)
            flat = tensor.layout.flat_index(tensor.shape, index)
            if not isinstance(flat, int):
                flat = self.analyzer.simplify(flat)
            if self.seen is not None:
                self.seen.append(flat)
            value = tirx.BufferLoad(buffer, [flat])
            return loaded(value, tensor.dtype)

        return read

    def _clamped(self, index: tuple[Expr, ...], tensor: TensorType) -> tuple[Expr, ...]:
        inside = []
        for axis, i in enumerate(index):
            extent = tensor.shape[axis]
            if tensor.layout.block and axis == 1:
                extent = -(-extent // tensor.layout.block) * tensor.layout.block
            if not isinstance(i, int):
                if not self.analyzer.can_prove(i < extent):
                    i = tirx.min(i, tirx.const(extent - 1, "int32"))
                if not self.analyzer.can_prove(i >= 0):
                    i = tirx.max(i, tirx.const(0, "int32"))
            inside.append(i)
        return tuple(inside)


def _step(expr: Expr, var: Any) -> int | None:
    """By how much `expr` grows when `var` grows by one; None where that varies."""
    if isinstance(expr, int):
        return 0
    linear = tvm.sym.detect_linear_equation(expr, [var])
    return int(linear[0].value) if len(linear) and isinstance(linear[0], tirx.IntImm) else None


def unflatten(flat: Expr, extents: Sequence[int]) -> tuple[Expr, ...]:
    """Row-major coordinates of element `flat`."""
    index: list[Expr] = []
    for axis, extent in enumerate(extents):
        stride = math.prod(extents[axis + 1 :])
        i = flat // stride if stride > 1 else flat
        index.append(i % extent if axis and extent > 1 else (0 if extent == 1 else i))
    return tuple(index)


class _Nest:
    """The loops for one way of walking the output: `inner` trailing axes as one."""

    def __init__(self, output: TensorType, inner: int, lanes: int) -> None:
        physical = output.layout.physical_shape(output.shape) or (1,)
        self.block = output.layout.block
        axes = physical[:-1] if self.block else physical
        self.output = output
        self.rank = len(axes)
        self.outer, self.walked = axes[: self.rank - inner], axes[self.rank - inner :]
        self.extent = math.prod(self.walked)
        self.width = self.block
        if not self.block:
            self.width = min(lanes, 1 << (self.extent.bit_length() - 1))
        self.analyzer = tvm.sym.Analyzer()
        self.coordinates = [self.var(f"o{i}", e) for i, e in enumerate(self.outer)]
        self.flat = self.var("f", self.extent)
        self.lane = self.var("lane", self.width) if self.width > 1 else tirx.const(0, "int32")

    def var(self, name: str, extent: int) -> Any:
        v = tirx.Var(name, "int32")
        self.analyzer.bind(v, tvm.ir.Range(0, extent))
        return v

    def index(self, position: Expr) -> tuple[Expr, ...]:
        """The logical index at `position` along the walked axes (and at `lane` in a block)."""
        outer = [0 if e == 1 else c for e, c in zip(self.outer, self.coordinates, strict=True)]
        physical = (*outer, *unflatten(position, self.walked))
        if not self.output.shape:
            return ()
        if self.block:
            n, c, *spatial = physical
            return (n, c * self.block + self.lane, *spatial)
        return physical


def injective(
    name: str,
    isa: Isa,
    outputs: Sequence[TensorType],
    operands: Sequence[TensorType],
    body: Body,
) -> Kernel:
    """The kernel that stores `body(operands' lazies)` to `outputs`, all of one shape and layout.

    Loads may be gathers. Padding lanes of blocked outputs are written as zeros.
    """
    first = outputs[0]
    params = (*outputs, *operands)
    if any(e == 0 for e in first.shape):
        return nothing(name, params, len(outputs))
    if len(outputs) == 1 and len(operands) == 1:
        pieces = strided(first, operands[0], body)
        moved = pieces and move(name, isa, first, operands[0], pieces)
        if moved:
            return moved
    buffers = [parameter(f"p{i}", t) for i, t in enumerate(params)]
    outs, ins = buffers[: len(outputs)], buffers[len(outputs) :]
    narrow = all(np.dtype(storage_dtype(t.dtype)).itemsize == 1 for t in params)
    lanes = isa.lanes * (4 if narrow else 1)
    nest = _choose(first, lanes, ins, operands, body)
    emit = _Emit(nest, outs, outputs, ins, operands, body)
    return Kernel(name, tir.prim_func(name, buffers, emit.tasks), emit.count, params, len(outputs))


def _indices(
    nest: _Nest, buffers: list[Any], operands: Sequence[TensorType], body: Body
) -> list[Expr]:
    """Where the body loads when it is asked for the element at `nest.flat`."""
    seen: list[Expr] = []
    loads = _Loads(buffers, operands, nest.analyzer, seen=seen)

    def visit(_: Expr) -> Stmt:
        for lazy in body(loads.lazies()):
            lazy(nest.index(nest.flat))
        return tirx.Evaluate(0)

    tir.lanes(nest.width, visit, nest.lane)
    return seen


def _choose(
    output: TensorType, lanes: int, buffers: list[Any], operands: Sequence[TensorType], body: Body
) -> _Nest:
    """Walk as many trailing axes at once as leave every access contiguous or constant."""
    rank = len(output.layout.physical_shape(output.shape) or (1,)) - bool(output.layout.block)
    most = rank - 2 if output.layout.block else rank
    for inner in range(max(most, 1), 1, -1):
        nest = _Nest(output, inner, lanes)
        steps = {_step(i, nest.flat) for i in _indices(nest, buffers, operands, body)}
        if None not in steps and (output.layout.block or steps <= {0, 1}):
            return nest
    return _Nest(output, 1 if most >= 1 else 0, lanes)


class _Emit:
    """Statements of the nest."""

    def __init__(
        self,
        nest: _Nest,
        outs: list[Any],
        outputs: Sequence[TensorType],
        ins: list[Any],
        operands: Sequence[TensorType],
        body: Body,
    ) -> None:
        self.nest, self.outs, self.outputs = nest, outs, outputs
        self.ins, self.operands, self.body = ins, operands, body
        self.rows = math.prod(nest.outer)
        unit = 1 if nest.block else nest.width
        self.chunk = nest.extent
        if self.rows < TASKS:  # long rows are split too
            share = -(-nest.extent * self.rows // TASKS)
            share = max(share, 1024 // (nest.block or 1))
            self.chunk = min(nest.extent, -(-share // (4 * unit)) * 4 * unit)
        self.chunks = -(-nest.extent // self.chunk)
        self.count = self.rows * self.chunks

    def tasks(self, begin: Expr, end: Expr) -> Stmt:
        return tir.loop("t", end - begin, self.task, begin=begin)

    def task(self, t: Expr) -> Stmt:
        nest = self.nest
        row = t // self.chunks if self.chunks > 1 else t
        stmts: list[Stmt] = [
            tirx.Bind(v, i)
            for v, i, e in zip(
                nest.coordinates, unflatten(row, nest.outer), nest.outer, strict=True
            )
            if e > 1
        ]
        start = (t % self.chunks) * self.chunk if self.chunks > 1 else tirx.const(0, "int32")
        stmts.append(self.blocked(start) if nest.block else self.plain(start, t))
        return tir.seq(*stmts)

    def stores(self, position: Expr, valid: Expr | None) -> Stmt:
        """One vector (or scalar) of every output at `position`, `lane` being the vector's."""
        loads = _Loads(self.ins, self.operands, self.nest.analyzer, safe=valid is not None)
        index = self.nest.index(position)
        stmts = []
        lazies = self.body(loads.lazies())
        for out, tensor, lazy in zip(self.outs, self.outputs, lazies, strict=True):
            value = stored(lazy(index), tensor.dtype)
            if valid is not None:
                value = tirx.Select(valid, value, tirx.const(0, storage_dtype(tensor.dtype)))
            flat = tensor.layout.flat_index(tensor.shape, index)
            if not isinstance(flat, int):
                flat = self.nest.analyzer.simplify(flat)
            stmts.append(tirx.BufferStore(out, value, [flat]))
        return tir.seq(*stmts)

    def vector(self, position: Expr, valid: Expr | None = None) -> Stmt:
        """The loop over the lanes; `position` may read `nest.lane`."""
        nest = self.nest
        return tir.lanes(nest.width, lambda _: self.stores(position, valid), nest.lane)

    def blocked(self, start: Expr) -> Stmt:
        nest = self.nest
        channels, c = self.outputs[0].shape[1], nest.coordinates[1]
        size = tirx.min(tirx.const(self.chunk, "int32"), nest.extent - start)
        if self.chunk == nest.extent:
            size = tirx.const(self.chunk, "int32")

        def walk(valid: Expr | None) -> Stmt:
            at = nest.var("f", nest.extent)
            return tirx.For(at, start, size, tir.SERIAL, self.vector(at, valid))

        if channels % nest.block == 0:
            return walk(None)
        last = nest.outer[1] - 1
        predicated = walk(last * nest.block + nest.lane < channels)
        if last == 0:
            return predicated
        return tirx.IfThenElse(c < last, walk(None), predicated)

    def plain(self, start: Expr, t: Expr) -> Stmt:
        nest, width = self.nest, self.nest.width
        whole = self.chunk // width
        count: Expr = tirx.const(whole, "int32")
        if self.chunks > 1:
            count = tirx.min(count, (nest.extent - start) // width)
        j = nest.var("j", whole)
        stmts: list[Stmt] = []
        if self.chunks > 1:
            first = nest.var("chunk", self.chunks)
            stmts.append(tirx.Bind(first, t % self.chunks))
            start = first * self.chunk
        stmts.append(tirx.For(j, 0, count, tir.SERIAL, self.vector(start + j * width + nest.lane)))
        if nest.extent % width == 0:
            return tir.seq(*stmts)
        # the last vector overlaps the one before it: the same elements get the same values twice
        rest = self.vector(tirx.const(nest.extent - width, "int32") + nest.lane)
        if self.chunks > 1:
            rest = tirx.IfThenElse(tirx.EQ(t % self.chunks, self.chunks - 1), rest, None)
        return tir.seq(*stmts, rest)
