"""The kernel of effc.integer::Lookup: any function of one byte.

With VBMI the table lies in four registers and 64 bytes are looked up by two shuffles; elsewhere each byte
is a load. It works on bytes in the order in which they lie, so on every layout.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx

from effc.backends.tvm import tir
from effc.backends.tvm.isa import Isa
from effc.backends.tvm.layout import TensorType
from effc.backends.tvm.ops.contract import OpNode
from effc.backends.tvm.ops.injective import nothing
from effc.backends.tvm.ops.integers import check_lookup
from effc.backends.tvm.program import Kernel

Expr = Any
Stmt = Any
WIDTH = 64  # bytes of a vector
TASKS = 128
SMALLEST = 4096  # bytes that are worth a task
UNROLL = 8


def lookup(
    node: OpNode, name: str, isa: Isa, out: TensorType, x: TensorType, table: TensorType
) -> Kernel | None:
    """The kernel (params: out, x, table); None where out and x lie in different layouts."""
    check_lookup(node)
    if out.layout != x.layout:
        return None
    params = (out, x, table)
    if not out.elements:
        return nothing(name, params, 1)
    buffers = [
        tir.buffer(f"p{i}", t.elements, "int8" if x.dtype == "int8" and i == 1 else "uint8")
        for i, t in enumerate(params)
    ]
    emit = _Lookup(buffers, isa, out, x.dtype == "int8")
    return Kernel(name, tir.prim_func(name, buffers, emit.tasks), emit.count, params)


class _Lookup:
    """A tensor is `pieces` pieces of `size` bytes; in the last `partial` of every image's some lanes
    are padding."""

    def __init__(self, buffers: list[Any], isa: Isa, out: TensorType, signed: bool) -> None:
        self.out, self.source, self.table = buffers
        self.signed = signed
        self.vectors = isa.has("avx512vbmi") and isa.name == "avx512"
        block = out.layout.block
        self.block, self.valid = block, out.shape[1] % block if block else 0
        self.size, self.per_image = out.elements, 1
        if self.valid:
            self.per_image = -(-out.shape[1] // block)
            self.size = block * math.prod(out.shape[2:])
        pieces = out.elements // self.size
        self.chunk = self.size
        if pieces < TASKS:
            share = max(SMALLEST, -(-out.elements // TASKS))
            self.chunk = min(self.size, -(-share // WIDTH) * WIDTH)
        self.chunks = -(-self.size // self.chunk)
        self.count = pieces * self.chunks

    def tasks(self, begin: Expr, end: Expr) -> Stmt:
        quarters: list[Expr] = []
        stmts: list[Stmt] = []
        if self.vectors:
            for k in range(4):
                register = tir.local(f"t{k}", WIDTH, "uint8")
                at = [tirx.Ramp(tirx.const(0, "int32"), 1, WIDTH)]
                rows = [tirx.Ramp(tirx.const(k * WIDTH, "int32"), 1, WIDTH)]
                stmts.append(tirx.AllocBuffer(register))
                stmts.append(tirx.BufferStore(register, tirx.BufferLoad(self.table, rows), at))
                quarters.append(tirx.BufferLoad(register, at))
        task = tir.loop("t", end - begin, lambda t: self._task(t, quarters), begin=begin)
        return tir.seq(*stmts, task)

    def _task(self, t: Expr, quarters: list[Expr]) -> Stmt:
        piece = t // self.chunks if self.chunks > 1 else t
        within = (t % self.chunks) * self.chunk if self.chunks > 1 else tirx.const(0, "int32")
        start = tirx.Var("start", "int32")
        length = tirx.Var("length", "int32")
        left = tirx.const(self.chunk, "int32")
        if self.size % self.chunk:
            left = tirx.min(left, self.size - within)
        head = [tirx.Bind(start, piece * self.size + within), tirx.Bind(length, left)]
        walk = self._walk
        if not self.valid:
            return tir.seq(*head, walk(start, length, quarters, False))
        if self.per_image == 1:
            return tir.seq(*head, walk(start, length, quarters, True))
        last = tirx.EQ(piece % self.per_image, self.per_image - 1)
        either = tirx.IfThenElse(
            last, walk(start, length, quarters, True), walk(start, length, quarters, False)
        )
        return tir.seq(*head, either)

    def _walk(self, start: Expr, length: Expr, quarters: list[Expr], masked: bool) -> Stmt:
        """`length` bytes from `start`; vectors, then what is left of them one by one."""
        if not quarters:
            return self._bytes(start, length, masked)
        whole = length // WIDTH
        return tir.seq(
            tir.loop("v", whole, lambda v: self._vector(start + v * WIDTH, quarters, masked)),
            self._bytes(start + whole * WIDTH, length % WIDTH, masked),
        )

    def _bytes(self, start: Expr, length: Expr, masked: bool) -> Stmt:
        def one(i: Expr) -> Stmt:
            index = tirx.Cast("int32", tirx.BufferLoad(self.source, [start + i]))
            value = tirx.BufferLoad(self.table, [index + (128 if self.signed else 0)])
            if masked:  # pieces begin with a block, and so do chunks
                value = tirx.Select(i % self.block < self.valid, value, tirx.const(0, "uint8"))
            return tirx.BufferStore(self.out, value, [start + i])

        def some(k: Expr) -> Stmt:
            return tir.loop("u", UNROLL, lambda u: one(k * UNROLL + u), tir.UNROLLED)

        whole = length // UNROLL
        return tir.seq(
            tir.loop("k", whole, some),
            tir.loop("r", length % UNROLL, lambda r: one(whole * UNROLL + r)),
        )

    def _vector(self, at: Expr, quarters: list[Expr], masked: bool) -> Stmt:
        where = [tirx.Ramp(at, 1, WIDTH)]
        x = tir.local("x", WIDTH, "uint8")
        zero = [tirx.Ramp(tirx.const(0, "int32"), 1, WIDTH)]
        load = tirx.BufferLoad(self.source, where)
        if self.signed:
            load = tirx.reinterpret(f"uint8x{WIDTH}", load)
        index = tirx.BufferLoad(x, zero)

        def half(a: Expr, b: Expr) -> Expr:
            name = "llvm.x86.avx512.vpermi2var.qi.512"
            return tirx.call_llvm_pure_intrin(f"uint8x{WIDTH}", name, a, index, b)

        low, high = half(*quarters[:2]), half(*quarters[2:])
        if self.signed:  # -128 is the table's first entry
            low, high = high, low
        top = tirx.Broadcast(tirx.const(128, "uint8"), WIDTH)
        value = tirx.Select(index >= top, high, low)
        if masked:
            lane = tirx.Ramp(tirx.const(0, "int32"), 1, WIDTH)
            inside = tirx.FloorMod(lane, tirx.Broadcast(tirx.const(self.block, "int32"), WIDTH))
            bound = tirx.Broadcast(tirx.const(self.valid, "int32"), WIDTH)
            zeros = tirx.Broadcast(tirx.const(0, "uint8"), WIDTH)
            value = tirx.Select(inside < bound, value, zeros)
        return tir.seq(
            tirx.AllocBuffer(x),
            tirx.BufferStore(x, load, zero),
            tirx.BufferStore(self.out, value, where),
        )
