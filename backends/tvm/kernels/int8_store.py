"""From int32 accumulators to stored results: requantization by the rule `float32`, in registers.

`core/integers` specifies it bit for bit. Rounding and clamping to integers commute, so the upper bound
is applied to the float; then nothing overflows in the conversion. On x86, packing saturates the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from effc.backends.tvm.isa import Isa
from effc.backends.tvm.kernels.int8_dot import call, fence, is_x86, read, write
from effc.backends.tvm.layout import TensorType

Expr = Any
Stmt = Any


@dataclass(frozen=True, slots=True)
class Requantize:
    """What becomes of an accumulator; the attributes of `effc.integer`'s Conv and MatMul.

    `dtype` "float32": the real value, without zero point and clamp. `z` is the other branch of a
    residual add, in the output's shape and layout.
    """

    dtype: str
    zero_point: int = 0
    low: int = 0
    high: int = 255
    z: TensorType | None = None
    z_zero_point: int = 0
    z_multiplier: float = 1.0

    @property
    def is_float(self) -> bool:
        """Whether the result is a real number."""
        return self.dtype == "float32"


def real(isa: Isa, how: Requantize, acc: Expr, m: Expr, z: Expr | None) -> Expr:
    """f32(f32(acc) * m), plus the residual; `z` holds 8-bit values in int32 lanes."""
    floats, integers = f"float32x{isa.lanes}", f"int32x{isa.lanes}"
    value = tirx.Cast(floats, acc) * m
    if z is None:
        return fence(value, floats, isa) if how.is_float else value
    centred = tirx.Cast(floats, z - tirx.const(how.z_zero_point, integers))
    other = centred * tirx.const(how.z_multiplier, floats)
    return fence(value, floats, isa) + fence(other, floats, isa)


def rounded(isa: Isa, how: Requantize, value: Expr) -> Expr:
    """rne(min(value, high - zero_point)) as int32 lanes; what lies below int32 gives its least value."""
    lanes = isa.lanes
    value = tirx.min(value, tirx.const(float(how.high - how.zero_point), f"float32x{lanes}"))
    integers = f"int32x{lanes}"
    if not is_x86(isa):
        low = tirx.const(float(how.low - how.zero_point), f"float32x{lanes}")
        return tirx.Cast(integers, tirx.nearbyint(tirx.max(value, low)))
    if lanes == 16:
        return call(
            integers,
            "llvm.x86.avx512.mask.cvtps2dq.512",
            value,
            tirx.const(0, integers),
            tirx.const(-1, "int16"),
            tirx.const(4, "int32"),
        )
    name = "avx.cvt.ps2dq.256" if lanes == 8 else "sse2.cvtps2dq"
    return call(integers, f"llvm.x86.{name}", value)


def clamped(isa: Isa, how: Requantize, value: Expr) -> Expr:
    """What `rounded` gives, with the zero point and inside [low, high], in int32 lanes."""
    integers = f"int32x{isa.lanes}"
    bottom = tirx.const(how.low - how.zero_point, integers)
    return tirx.max(value, bottom) + tirx.const(how.zero_point, integers)


def pack(isa: Isa, how: Requantize, vectors: Sequence[Expr], valid: int) -> Expr:
    """One, two or four vectors that `rounded` gave as bytes, one vector behind the other.

    Lanes from `valid` on are zeros in each.
    """
    lanes, count = isa.lanes, len(vectors)
    a, b = vectors[0], vectors[1 % count]
    pairs = [_words(isa, how, a, b)]
    if count == 4:
        pairs.append(_words(isa, how, vectors[2], vectors[3]))
    kind = "us" if how.dtype == "uint8" else "ss"
    bytes_ = f"{how.dtype}x{4 * lanes}"
    name = {
        16: f"avx512.pack{kind}wb.512",
        8: f"avx2.pack{kind}wb",
        4: f"sse2.pack{kind}wb.128",
    }[lanes]
    packed = call(bytes_, f"llvm.x86.{name}", pairs[0], pairs[-1])
    type_low, type_high = (0, 255) if how.dtype == "uint8" else (-128, 127)
    if how.low > type_low:
        packed = tirx.max(packed, tirx.const(how.low, bytes_))
    # packing works on parts of 16 bytes: [part, vector, 4 lanes] -> [vector, part, 4 lanes]
    order, sources = [], [packed]
    for v in range(count):
        for lane in range(lanes):
            part, byte = divmod(lane, 4)
            order.append(part * 16 + v * 4 + byte if lane < valid else 4 * lanes)
    if valid < lanes:
        sources.append(tirx.const(0, bytes_))
    if len(order) == 4 * lanes == 16 and valid == lanes:
        return packed
    return tirx.Shuffle(sources, [tirx.const(i, "int32") for i in order])


def _words(isa: Isa, how: Requantize, a: Expr, b: Expr) -> Expr:
    """Two vectors as int16, saturated, with the zero point."""
    lanes = isa.lanes
    words = f"int16x{2 * lanes}"
    name = {16: "avx512.packssdw.512", 8: "avx2.packssdw", 4: "sse2.packssdw.128"}[lanes]
    both = call(words, f"llvm.x86.{name}", a, b)
    if how.zero_point:
        both = call(words, "llvm.sadd.sat", both, tirx.const(how.zero_point, words))
    return both


def store_neighbours(
    isa: Isa,
    how: Requantize,
    out: Any,
    vectors: Sequence[tuple[Expr, Expr]],
    valid: int,
) -> list[Stmt]:
    """Store vectors, given as (what `rounded` or `real` gave, element offset), that lie side by side.

    Lanes from `valid` on become zeros.
    """
    lanes = isa.lanes
    if how.is_float or not is_x86(isa):
        stmts = []
        for value, at in vectors:
            if not how.is_float:
                value = tirx.Cast(f"{how.dtype}x{lanes}", clamped(isa, how, value))
            if valid < lanes:
                kind = f"{how.dtype}x{lanes}"
                order = [i if i < valid else lanes for i in range(lanes)]
                value = tirx.Shuffle(
                    [value, tirx.const(0, kind)], [tirx.const(i, "int32") for i in order]
                )
            stmts.append(write(out, value, at, lanes))
        return stmts
    stmts, first = [], 0
    while first < len(vectors):
        left = len(vectors) - first
        count = 4 if left >= 4 else 2 if left >= 2 else 1
        group = vectors[first : first + count]
        packed = pack(isa, how, [v for v, _ in group], valid)
        stmts.append(write(out, packed, group[0][1], count * lanes))
        first += count
    return stmts


def read_residual(isa: Isa, z: Any, at: Expr) -> Expr:
    """8-bit lanes as int32."""
    return tirx.Cast(f"int32x{isa.lanes}", read(z, at, isa.lanes))
