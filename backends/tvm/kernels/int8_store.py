"""From int32 accumulators to stored results: requantization by the rule `float32`, in registers.

`core/integers` specifies it bit for bit. Rounding and clamping to integers commute, so the upper bound
is applied to the float; then nothing overflows in the conversion. On x86, packing saturates the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tvm import tirx

from effc.backends.tvm import tir
from effc.backends.tvm.isa import Isa
from effc.backends.tvm.kernels.epilogue import Epilogue
from effc.backends.tvm.kernels.int8_dot import call, fence, is_arm, is_x86, read, write
from effc.backends.tvm.kernels.store import Store
from effc.backends.tvm.layout import TensorType
from effc.backends.tvm.ops.contract import Lazy

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


def with_residual(how: Requantize, epilogue: Epilogue) -> Epilogue:
    """The epilogue with the residual as its first operand, which the kernel itself reads."""
    if how.z is None:
        return epilogue
    operands = (how.z, *epilogue.operands)
    if epilogue.identity:
        return replace(epilogue, operands=operands)

    def rest(value: Expr, index: tuple[Expr, ...], loads: Sequence[Lazy]) -> Expr:
        return epilogue.apply(value, index, loads[1:])

    return Epilogue(operands, rest, epilogue.dtype)


@dataclass(frozen=True, slots=True)
class Item:
    """An accumulator: its first element, its first channel, and the index of its first result."""

    acc: int
    channel: Expr
    index: Sequence[Expr]


def real(isa: Isa, how: Requantize, acc: Expr, m: Expr, z: Expr | None) -> Expr:
    """f32(f32(acc) * m), plus the residual; `z` holds 8-bit values in int32 lanes."""
    floats, integers = f"float32x{isa.lanes}", f"int32x{isa.lanes}"
    value = tirx.Cast(floats, acc) * m
    if z is None:
        return fence(value, floats) if how.is_float else value
    centred = tirx.Cast(floats, z - tirx.const(how.z_zero_point, integers))
    other = centred * tirx.const(how.z_multiplier, floats)
    return fence(value, floats) + fence(other, floats)


def rounded(isa: Isa, how: Requantize, value: Expr) -> Expr:
    """rne(min(value, high - zero_point)) as int32 lanes; what lies below int32 gives its least value."""
    lanes = isa.lanes
    integers = f"int32x{lanes}"
    if is_arm(isa):  # saturates; `clamped` and `pack` apply both bounds
        return call(integers, "llvm.aarch64.neon.fcvtns.v4i32.v4f32", value)
    value = tirx.min(value, tirx.const(float(how.high - how.zero_point), f"float32x{lanes}"))
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
    if is_arm(isa):
        value = tirx.min(value, tirx.const(how.high - how.zero_point, integers))
    return tirx.max(value, bottom) + tirx.const(how.zero_point, integers)


def pack(isa: Isa, how: Requantize, vectors: Sequence[Expr], valid: int) -> Expr:
    """One, two or four vectors that `rounded` gave as bytes, one vector behind the other.

    Lanes from `valid` on are zeros in each.
    """
    lanes, count = isa.lanes, len(vectors)
    if is_arm(isa):
        return _narrowed(how, vectors, valid)
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


def _narrowed(how: Requantize, vectors: Sequence[Expr], valid: int) -> Expr:
    """`pack` on AArch64: sqxtn twice, with the zero point added in between."""
    halves = [call("int16x4", "llvm.aarch64.neon.sqxtn.v4i16.v4i32", v) for v in vectors]
    if len(halves) == 1:
        halves = halves * 2
    name = "sqxtn" if how.dtype == "int8" else "sqxtun"
    parts = []
    for i in range(0, len(halves), 2):
        words = tirx.Shuffle(halves[i : i + 2], [tirx.const(k, "int32") for k in range(8)])
        if how.zero_point:
            added = tirx.const(how.zero_point, "int16x8")
            words = call("int16x8", "llvm.sadd.sat", words, added)
        narrow = call("int8x8", f"llvm.aarch64.neon.{name}.v8i8.v8i16", words)
        parts.append(narrow)
    elements = 4 * len(vectors)
    if len(parts) == 2:
        packed = tirx.Shuffle(parts, [tirx.const(k, "int32") for k in range(16)])
    else:
        packed = parts[0]
    width = 8 * len(parts)
    packed = tirx.reinterpret(f"{how.dtype}x{width}", packed)
    type_low, type_high = (0, 255) if how.dtype == "uint8" else (-128, 127)
    if how.low > type_low:
        packed = tirx.max(packed, tirx.const(how.low, f"{how.dtype}x{width}"))
    if how.high < type_high:
        packed = tirx.min(packed, tirx.const(how.high, f"{how.dtype}x{width}"))
    if valid == 4 and elements == width:
        return packed
    order = [i if i % 4 < valid else width for i in range(elements)]
    sources = [packed, tirx.const(0, f"{how.dtype}x{width}")] if valid < 4 else [packed]
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


@dataclass(slots=True)
class IntegerStore:
    """Stores accumulators: side by side in vectors of bytes, or lane by lane through the epilogue.

    `acc` holds them, `m` the multipliers, `z` the residual in the layout of the output.
    """

    isa: Isa
    how: Requantize
    store: Store
    acc: Any
    m: Any
    z: Any | None
    result: Any = field(init=False)
    residual: Any = field(init=False)

    def __post_init__(self) -> None:
        lanes = self.isa.lanes
        self.result = tir.local("result", lanes, "float32" if self.how.is_float else "int32")
        self.residual = tir.local("residual", lanes, "int32")
        self.store.clean = False  # a lane past the channels is no zero before the epilogue

    @property
    def locals(self) -> list[Any]:
        """Registers that the function has to allocate."""
        return [self.result, self.residual]

    def line(self, items: Sequence[Item], valid: int, *, neighbours: bool) -> list[Stmt]:
        """Store vectors of which the first `valid` lanes exist; `neighbours`: side by side in memory."""
        if neighbours and self.store.epilogue.identity:
            vectors = [self._vector(item) for item in items]
            return store_neighbours(self.isa, self.how, self.store.buffer, vectors, valid)
        return [s for item in items for s in self._single(item, valid)]

    def _vector(self, item: Item) -> tuple[Expr, Expr]:
        out = self.store.output
        flat = self.store.analyzer.simplify(out.layout.flat_index(out.shape, item.index))
        z = None
        if self.z is not None:
            z = tirx.Cast(f"int32x{self.isa.lanes}", read(self.z, flat, self.isa.lanes))
        return self._value(item, z), flat

    def _value(self, item: Item, z: Expr | None) -> Expr:
        lanes = self.isa.lanes
        m = read(self.m, item.channel, lanes)
        value = real(self.isa, self.how, read(self.acc, item.acc, lanes), m, z)
        return value if self.how.is_float else rounded(self.isa, self.how, value)

    def _single(self, item: Item, valid: int) -> list[Stmt]:
        lanes, how, axis = self.isa.lanes, self.how, self.store.axis
        stmts: list[Stmt] = []
        z = None
        if how.z is not None:
            source = how.z

            def fetch(lane: Expr) -> Stmt:
                at = [v + lane if a == axis else v for a, v in enumerate(item.index)]
                flat = source.layout.flat_index(source.shape, at)
                value = tirx.Cast("int32", tirx.BufferLoad(self.z, [flat]))
                return tirx.BufferStore(self.residual, value, [lane])

            stmts.append(write(self.residual, tirx.const(0, f"int32x{lanes}"), 0, lanes))
            stmts.append(tir.lanes(valid, fetch))
            z = read(self.residual, 0, lanes)
        value = self._value(item, z)
        if not how.is_float:
            value = clamped(self.isa, how, value)
        stmts.append(write(self.result, value, 0, lanes))

        def take(lane: Expr) -> Expr:
            found = tirx.BufferLoad(self.result, [lane])
            return found if how.is_float else tirx.Cast(how.dtype, found)

        stmts.append(self.store.vector(take, item.index, valid))
        return stmts


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
    if how.is_float or not (is_x86(isa) or is_arm(isa)):
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
