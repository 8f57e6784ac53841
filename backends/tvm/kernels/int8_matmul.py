"""Integer products of two activations: columns of the right one are packed by the task that reads them.

sum (a - za)(b - zb) = sum a b - za sum b - zb sum a + K za zb. Sums over columns of b are taken when they
are packed, and stand in the bias; sums over rows of a are accumulators beside those of the product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import tirx

from effc.backends.tvm import tir
from effc.backends.tvm.isa import Isa
from effc.backends.tvm.kernels.axes import Axis
from effc.backends.tvm.kernels.blocking import Rule, Run
from effc.backends.tvm.kernels.direct_emission import Context
from effc.backends.tvm.kernels.epilogue import IDENTITY, Epilogue
from effc.backends.tvm.kernels.int8_bias import pad_channels
from effc.backends.tvm.kernels.int8_direct import IntegerProduct, IntegerRule
from effc.backends.tvm.kernels.int8_dot import (
    QUAD,
    add_bytes,
    arrange,
    dot,
    quad,
    read,
    shift_of,
    weight_dtype,
    write,
)
from effc.backends.tvm.kernels.int8_emission import IntegerEmission
from effc.backends.tvm.kernels.int8_store import Requantize, with_residual
from effc.backends.tvm.kernels.loops import bound, int32
from effc.backends.tvm.layout import TensorType
from effc.backends.tvm.program import Kernel

Array = npt.NDArray[Any]
Expr = Any
Stmt = Any
_ONES = 0x01010101


@dataclass(frozen=True, slots=True)
class IntMatmulSpec:
    """`a` [..., M, K] @ `b` [..., K, N] -> `out` [..., M, N], 8-bit and plain; leading axes broadcast."""

    a: TensorType
    b: TensorType
    out: TensorType
    a_zero_point: int
    b_zero_point: int
    how: Requantize

    def a_shift(self, isa: Isa) -> int:
        """The zero point of `a` as a step takes it."""
        return shift_of(isa, self.a.dtype, self.a_zero_point)

    @property
    def b_shift(self) -> int:
        """The zero point of `b` as signed bytes."""
        return self.b_zero_point - 128 * (self.b.dtype == "uint8")


class SummingRule(IntegerRule):
    """Tiles with one more accumulator a pixel."""

    def fits(self, isa: Isa, pixels: int, blocks: int) -> bool:
        """As of one more block."""
        return IntegerRule.fits(self, isa, pixels, blocks + 1)


class SummedProduct(IntegerProduct):
    """The plan of a product of two activations."""

    @property
    def rule(self) -> Rule:
        """Room for sums of rows."""
        return SummingRule(body=super().rule.body)


@lru_cache(maxsize=1024)
def int_matmul_of(a: TensorType, b: TensorType, out: TensorType, isa: Isa) -> SummedProduct:
    """The plan."""
    batch = out.shape[:-2]
    if math.prod(b.shape[:-2]) == 1 and a.shape[:-2] == batch:
        batch = ()
    k, n, images = a.shape[-1], out.shape[-1], math.prod(batch)
    m = math.prod(out.shape[len(batch) : -1])
    axes = (Axis(m, m, 1, 0, 1, (0,)),)
    source = TensorType((images, k, m), a.dtype)
    target = TensorType((images, n, m), out.dtype)
    return SummedProduct(isa, source, target, (axes,), 1, True, a, out, batch, b)


def int_matmul(spec: IntMatmulSpec, name: str, isa: Isa, epilogue: Epilogue = IDENTITY) -> Kernel:
    """Params: out, a, b, biases, multipliers, the residual (if any), the epilogue's operands."""
    epilogue = with_residual(spec.how, epilogue)
    return MatmulEmission(
        int_matmul_of(spec.a, spec.b, spec.out, isa),
        name,
        epilogue,
        how=spec.how,
        zero_point=spec.a_zero_point,
        b_shift=spec.b_shift,
    ).kernel()


def pack_int_matmul(spec: IntMatmulSpec, isa: Isa, bias: Array, m: Array) -> tuple[Array, ...]:
    """The constants: bias int32 [N], multipliers [N] or [1]."""
    columns, channels = spec.out.shape[-1], -(-spec.out.shape[-1] // isa.lanes) * isa.lanes
    constant = spec.a.shape[-1] * spec.a_shift(isa) * spec.b_shift
    biases = (bias.astype(np.int64) + constant).astype(np.int32)
    multipliers = np.broadcast_to(m.astype(np.float32).reshape(-1), (columns,))
    return pad_channels(biases[None], channels), pad_channels(multipliers[None], channels)


@dataclass
class MatmulEmission(IntegerEmission):
    """Panels of b, and sums of rows of a."""

    direct: SummedProduct
    b_shift: int = field(kw_only=True)

    def constants(self) -> dict[str, TensorType]:
        d = self.direct
        assert d.second is not None
        channels = d.output_channels
        return {
            "w": d.second,
            "bias": TensorType((channels,), "int32"),
            "m": TensorType((channels,), "float32"),
        }

    @property
    def words(self) -> int:
        """Elements of the panel that an int32 takes."""
        return 4 // np.dtype(weight_dtype(self.direct.isa)).itemsize

    def panel(self) -> Any:
        d = self.direct
        dtype = weight_dtype(d.isa)
        self.widest = max(r.width for p in d.phases for r in p.chunks)
        elements = self.widest * d.lanes * (d.depth + self.words)
        self.scratch = elements * np.dtype(dtype).itemsize
        return tir.buffer("panel", elements, dtype)

    def registers(self) -> list[Any]:
        found = super().registers()
        widest = max(t.width for p in self.direct.phases for t in p.tiles)
        self.sums = tir.local("sums", widest * self.lanes, "int32")
        self.columns = tir.local("columns", self.widest * self.lanes, "int32")
        return [*found, self.sums, self.columns]

    # columns of b

    def fill_panel(self, n: Expr, block: Expr, run: Run) -> Stmt:
        """[K / 4, block, lane, 4] as `arrange` has it, then the biases of the columns."""
        d, lanes, isa = self.direct, self.lanes, self.direct.isa
        columns, depth, step = d.output.shape[1], d.channels, QUAD * run.width * lanes
        stmts: list[Stmt] = []
        assert d.b is not None
        base = bound(stmts, "b0", d.matrix(d.b, n) + block * lanes)
        full, rest = divmod(depth, QUAD)

        def rows(q: Expr, count: int) -> Stmt:
            inner = []
            for j in range(run.width):
                valid = run.valid if j == run.width - 1 else lanes
                first = base + q * (QUAD * columns) + j * lanes
                four = self._quads([first + r * columns for r in range(count)], valid)
                at = q * step + j * (QUAD * lanes)
                inner.append(write(self.w, four, at, QUAD * lanes))
            return tir.seq(*inner)

        if full:
            stmts.append(tir.loop("q", full, lambda q: rows(q, QUAD)))
        if rest:
            stmts.append(rows(int32(full), rest))
        for j in range(run.width):
            stmts.append(write(self.columns, tirx.const(0, f"int32x{lanes}"), j * lanes, lanes))
        if self.shift:

            def add(q: Expr) -> Stmt:
                inner = []
                for j in range(run.width):
                    at = q * step + j * (QUAD * lanes)
                    total = read(self.columns, j * lanes, lanes)
                    total = dot(isa, total, int32(_ONES), self.w, at)
                    inner.append(write(self.columns, total, j * lanes, lanes))
                return tir.seq(*inner)

            stmts.append(tir.loop("q", -(-depth // QUAD), add))
        for j in range(run.width):
            sums = read(self.columns, j * lanes, lanes)
            start = read(self.bias, (block + j) * lanes, lanes)
            start = start - sums * tirx.const(self.shift, f"int32x{lanes}")
            dtype = f"{self.w.dtype}x{lanes * self.words}"
            at = d.depth * run.width * lanes + j * lanes * self.words
            stmts.append(write(self.w, tirx.reinterpret(dtype, start), at, lanes * self.words))
        return tir.seq(*stmts)

    def _quads(self, rows: list[Expr], valid: int) -> Expr:
        """Up to four rows of `valid` columns as a step reads them."""
        lanes, kind = self.lanes, str(self.w.dtype)
        nothing = tirx.const(0, f"{kind}x{lanes}")
        vectors = []
        for at in rows:
            signed = f"int8x{valid}" if valid > 1 else "int8"
            value = tirx.reinterpret(signed, read(self.second, at, valid))
            if self.second.dtype == "uint8":
                value = value ^ tirx.const(-128, signed)
            if kind != "int8":
                value = tirx.Cast(signed.replace("int8", kind), value)
            if valid == 1:
                value = tirx.Broadcast(value, lanes)
            if valid < lanes:
                past = max(valid, 2) if valid > 1 else lanes
                order = [i if i < valid else past for i in range(lanes)]
                value = tirx.Shuffle([value, nothing], [int32(i) for i in order])
            vectors.append(value)
        vectors += [nothing] * (QUAD - len(vectors))
        where = np.arange(QUAD * lanes).reshape(QUAD, lanes).T  # [lane, channel]
        order = arrange(where.astype(np.int16), self.direct.isa).astype(int).tolist()
        return tirx.Shuffle(vectors, [int32(i) for i in order])

    # rows of a

    def _initial(self, ctx: Context) -> list[Stmt]:
        lanes, d, u = self.lanes, self.direct, ctx.run.width
        stmts = []
        for i in range(ctx.tile.width):
            stmts.append(write(self.sums, tirx.const(0, f"int32x{lanes}"), i * lanes, lanes))
            for j in range(u):
                at = d.depth * u * lanes + j * lanes * self.words
                value = tirx.reinterpret(f"int32x{lanes}", read(self.w, at, lanes * self.words))
                stmts.append(write(self.acc, value, (i * u + j) * lanes, lanes))
        return stmts

    def _step(
        self,
        ctx: Context,
        x: Expr,
        pixel_stride: int,
        w: Expr,
        valid: tuple[bool, ...],
        count: int = QUAD,
    ) -> list[Stmt]:
        stmts = super()._step(ctx, x, pixel_stride, w, valid, count)
        if not self.b_shift:
            return stmts
        lanes = self.lanes
        for i in range(ctx.tile.width):
            word = quad(self.x, x + i * pixel_stride, count, flip=self.flip)
            total = add_bytes(self.direct.isa, read(self.sums, i * lanes, lanes), word)
            stmts.append(write(self.sums, total, i * lanes, lanes))
        return stmts

    def _final(self, ctx: Context) -> list[Stmt]:
        lanes, u = self.lanes, ctx.run.width
        stmts = []
        for i in range(ctx.tile.width if self.b_shift else 0):
            less = read(self.sums, i * lanes, lanes) * tirx.const(self.b_shift, f"int32x{lanes}")
            for j in range(u):
                at = (i * u + j) * lanes
                stmts.append(write(self.acc, read(self.acc, at, lanes) - less, at, lanes))
        return [*stmts, *super()._final(ctx)]
