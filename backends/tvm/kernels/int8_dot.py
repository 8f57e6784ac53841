"""Sums of products of bytes in int32 lanes: one step takes four input channels.

A step broadcasts four neighbouring bytes of the input and multiplies them with four weights in each lane.
Nothing saturates. x86 takes the bytes as unsigned: `vpdpbusd` where there is VNNI, else `vpmaddwd` on int16
(weights are stored as int16 there). AArch64 takes them as signed: `sdot` by element where there is the
dot product, else `smlal` by element on int16. Plain arithmetic on unsigned bytes elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import tirx

from effc.backends.tvm.isa import Isa

Expr = Any
QUAD = 4  # channels of a step
_FLIP = -0x7F7F7F80  # 0x80808080 as int32
_BITS = {16: "512", 8: "256", 4: "128"}


def scheme(isa: Isa) -> str:
    """How a step is computed: "vnni", "madd", "sdot", "smlal" or "wide"."""
    if is_arm(isa):
        return "sdot" if isa.has("dotprod") else "smlal"
    if not is_x86(isa):
        return "wide"
    narrow = isa.has("avxvnni") or (isa.has("avx512vnni") and isa.has("avx512vl"))
    if (isa.lanes == 16 and isa.has("avx512vnni")) or (isa.lanes < 16 and narrow):
        return "vnni"
    return "madd"


def is_x86(isa: Isa) -> bool:
    """Whether x86's intrinsics exist."""
    return isa.triple.partition("-")[0] in ("x86_64", "amd64")


def is_arm(isa: Isa) -> bool:
    """Whether the intrinsics of AArch64 exist."""
    return isa.triple.partition("-")[0] in ("aarch64", "arm64")


def weight_dtype(isa: Isa) -> str:
    """The type of packed weights."""
    return "int8" if scheme(isa) in ("vnni", "sdot") else "int16"


def flips(isa: Isa, dtype: str) -> bool:
    """Whether bytes of `dtype` become the other kind, by 128 or -128, before a step takes them."""
    return dtype == ("uint8" if is_arm(isa) else "int8")


def shift_of(isa: Isa, dtype: str, zero_point: int) -> int:
    """The zero point of bytes of `dtype` as a step takes them."""
    if not flips(isa, dtype):
        return zero_point
    return zero_point + (128 if dtype == "int8" else -128)


def arrange(quads: npt.NDArray[Any], isa: Isa) -> npt.NDArray[Any]:
    """Weights [..., lane, 4] as a step reads them, flat.

    "vnni", "sdot": as they are. "madd": even channels of all lanes as pairs, then odd ones. "smlal",
    "wide": channel by channel.
    """
    kind = scheme(isa)
    if kind == "madd":
        pairs = quads.reshape(*quads.shape[:-1], 2, 2)  # [..., lane, (0 1 | 2 3)]
        moved = np.moveaxis(np.swapaxes(pairs, -1, -2), -2, -3)  # [..., parity, lane, 2]
    elif kind in ("smlal", "wide"):
        moved = np.moveaxis(quads, -1, -2)
    else:
        moved = quads
    return np.ascontiguousarray(moved.astype(weight_dtype(isa))).ravel()


def ramp(at: Expr, lanes: int) -> Expr:
    """The index of `lanes` elements from `at` on."""
    first = tirx.const(at, "int32") if isinstance(at, int) else at
    return first if lanes == 1 else tirx.Ramp(first, tirx.const(1, "int32"), lanes)


def read(buffer: Any, at: Expr, lanes: int) -> Expr:
    """`lanes` neighbouring elements."""
    return tirx.BufferLoad(buffer, [ramp(at, lanes)])


def write(buffer: Any, value: Expr, at: Expr, lanes: int) -> Any:
    """Store `lanes` neighbouring elements."""
    return tirx.BufferStore(buffer, value, [ramp(at, lanes)])


def call(dtype: str, name: str, *args: Expr) -> Expr:
    """An intrinsic of LLVM without side effects."""
    return tirx.call_llvm_pure_intrin(dtype, name, *args)


def fence(value: Expr, dtype: str) -> Expr:
    """`value`, rounded: never contracted with an addition that follows."""
    return call(dtype, "llvm.arithmetic.fence", value)


def quad(x: Any, at: Expr, count: int = QUAD, *, flip: bool = False) -> Expr:
    """Four bytes from element `at` of `x` in an int32, zeros past `count`; `flip` as of `flips`."""
    if count == QUAD:
        word = tirx.reinterpret("int32", read(x, at, QUAD))
    else:
        word = tirx.const(0, "int32")
        for i in range(count):
            byte = tirx.reinterpret("uint8", tirx.BufferLoad(x, [at + i]))
            word = word | (tirx.Cast("int32", byte) << tirx.const(8 * i, "int32"))
    if not flip:
        return word
    return word ^ tirx.const(_FLIP if count == QUAD else 0x808080 >> 8 * (3 - count), "int32")


@dataclass(frozen=True, slots=True)
class Part:
    """Four bytes that are part `number` (0 to 3) of a vector of 16: AArch64 multiplies by elements."""

    vector: Expr  # int8x16
    number: int

    def words(self) -> Expr:
        """The four bytes in each of four int32."""
        words = tirx.reinterpret("int32x4", self.vector)
        return tirx.Shuffle([words], [tirx.const(self.number, "int32")] * 4)

    def channel(self, i: int) -> Expr:
        """Byte i as four int16."""
        half, place = divmod(self.number, 2)
        order = [tirx.const(8 * half + k, "int32") for k in range(8)]
        wide = tirx.Cast("int16x8", tirx.Shuffle([self.vector], order))
        # the fence keeps LLVM from widening each element by itself
        wide = tirx.reinterpret("int16x8", fence(tirx.reinterpret("float32x4", wide), "float32x4"))
        return tirx.Shuffle([wide], [tirx.const(place * QUAD + i, "int32")] * 4)


def vector_of_bytes(x: Any, at: Expr, *, flip: bool = False) -> Expr:
    """Sixteen bytes from element `at` of `x` as int8x16."""
    vector = tirx.reinterpret("int8x16", read(x, at, 16))
    return vector ^ tirx.const(-128, "int8x16") if flip else vector


def quads_of_row(
    x: Any, at: Expr, offsets: Sequence[int], *, flip: bool = False
) -> dict[int, Part] | None:
    """offset -> the four bytes that far behind element `at`.

    Read as vectors that stay between the first and the last quad. None where they span less than a
    vector, or lie far apart.
    """
    first, end, size = offsets[0], offsets[-1] + QUAD, 4 * QUAD
    if end - first < size or any((o - first) % QUAD for o in offsets):
        return None
    found: dict[int, Part] = {}
    left = list(offsets)
    while left:
        start = min(left[0], end - size)
        vector = vector_of_bytes(x, at + start, flip=flip)
        taken = [o for o in left if o < start + size]
        found.update((o, Part(vector, (o - start) // QUAD)) for o in taken)
        left = left[len(taken) :]
        if len(taken) == 1 and left:
            return None
    return found


def dot(isa: Isa, total: Expr, word: Expr | Part, w: Any, at: Expr) -> Expr:
    """`total` (int32 lanes) plus the step of the input `word` and the weights at element `at` of `w`."""
    lanes = isa.lanes
    if scheme(isa) in ("vnni", "sdot"):
        spread = tirx.reinterpret(f"int8x{4 * lanes}", every_lane(isa, word))
        return dp(isa, total, spread, read(w, at, 4 * lanes))
    if scheme(isa) == "smlal":
        part = word
        if not isinstance(part, Part):
            part = Part(tirx.reinterpret("int8x16", every_lane(isa, word)), 0)
        for i in range(QUAD):
            total = smlal(total, part.channel(i), read(w, at + i * lanes, lanes))
        return total
    if scheme(isa) == "madd":
        spread = tirx.reinterpret(f"int16x{2 * lanes}", tirx.Broadcast(word, lanes))
        return madd(isa, total, spread, read(w, at, 2 * lanes), read(w, at + 2 * lanes, 2 * lanes))
    for i in range(QUAD):
        byte = (word >> tirx.const(8 * i, "int32")) & tirx.const(255, "int32")
        weights = tirx.Cast(f"int32x{lanes}", read(w, at + i * lanes, lanes))
        total = total + tirx.Broadcast(byte, lanes) * weights
    return total


def add_bytes(isa: Isa, total: Expr, word: Expr) -> Expr:
    """`total` plus the four bytes of `word`, in every lane."""
    lanes = isa.lanes
    if scheme(isa) in ("vnni", "sdot"):
        kind = f"int8x{4 * lanes}"
        return dp(isa, total, tirx.reinterpret(kind, every_lane(isa, word)), tirx.const(1, kind))
    if scheme(isa) == "smlal":
        four = tirx.Cast("int32x4", tirx.reinterpret("int8x4", word))
        for i in range(QUAD):
            total = total + tirx.Shuffle([four], [tirx.const(i, "int32")] * lanes)
        return total
    for i in range(QUAD):
        byte = (word >> tirx.const(8 * i, "int32")) & tirx.const(255, "int32")
        total = total + tirx.Broadcast(byte, lanes)
    return total


def every_lane(isa: Isa, word: Expr | Part) -> Expr:
    """An int32 in every lane."""
    return word.words() if isinstance(word, Part) else tirx.Broadcast(word, isa.lanes)


def smlal(total: Expr, x: Expr, w: Expr) -> Expr:
    """total + x * w: int32 lanes, int16 factors."""
    return total + call("int32x4", "llvm.aarch64.neon.smull.v4i32", w, x)


def dp(isa: Isa, total: Expr, x: Expr, w: Expr) -> Expr:
    """vpdpbusd: unsigned bytes times signed bytes; sdot: signed ones, those of `x` by element."""
    if is_arm(isa):
        return call("int32x4", "llvm.aarch64.neon.sdot.v4i32.v16i8", total, w, x)
    return call(f"int32x{isa.lanes}", f"llvm.x86.avx512.vpdpbusd.{_BITS[isa.lanes]}", total, x, w)


def madd(isa: Isa, total: Expr, x: Expr, even: Expr, odd: Expr) -> Expr:
    """The same by vpmaddwd; `x` holds bytes in int16 lanes."""
    wide = f"int16x{2 * isa.lanes}"
    low = x & tirx.const(255, wide)
    unsigned = tirx.reinterpret(f"uint16x{2 * isa.lanes}", x)
    high = tirx.reinterpret(wide, unsigned >> tirx.const(8, f"uint16x{2 * isa.lanes}"))
    return total + pmaddwd(isa, low, even) + pmaddwd(isa, high, odd)


def pmaddwd(isa: Isa, a: Expr, b: Expr) -> Expr:
    """Products of int16, added in pairs to int32 lanes."""
    name = {16: "avx512.pmaddw.d.512", 8: "avx2.pmadd.wd", 4: "sse2.pmadd.wd"}[isa.lanes]
    return call(f"int32x{isa.lanes}", f"llvm.x86.{name}", a, b)
