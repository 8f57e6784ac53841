"""Constants stored smaller, without changing a bit: what pruning, palettes and quantization left is coded.

Nobody has to say what was done to a weight: its values tell. Each array is written in the smallest of

raw      its bytes
palette  its distinct values, and for each element which one it is
tables   the same with a palette for each group of elements
grid     float32(level) * scale, a scale for each group, levels small integers: dequantized weights
wide     float32 that float16 or bfloat16 hold exactly: the upper bytes and the lower bytes

and indices, levels and bytes are Huffman coded, over runs where one value prevails (core/coding.py).

The form, varints unless said otherwise: "EFCC", u32 CRC-32 of everything behind it (little-endian),
version, size of the decoded bytes, records; each record: codec, offset, count of elements, then

raw      bytes
palette  element's size (1, 2, 4, 8), entries n, n elements, a stream
tables   element's size, groups, total entries, a stream of the tables' sizes - 1, all entries, a stream
grid     groups, scales t, 1 if they are bfloat16 (0: float32), t scales, zigzag(level of symbol 0), stream
wide     0 for float16, 1 for bfloat16, stream of the upper bytes, stream of the lower bytes

groups   which of the t tables or scales an element has: segments s, then s times (repeats, rows n, row p):
         elements come as n rows of p slots, `repeats` times over, each time with new slots; then 1 if slot i
         has table i, else 0 and a stream with the table of each slot

Bytes that no record covers are zero.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from effc.core.coding import (
    MAX_SYMBOLS,
    Array,
    Reader,
    damaged,
    decode_symbols,
    encode_symbols,
    unzigzag,
    varint,
    zigzag,
)

MAGIC, VERSION = b"EFCC", 1
RAW, PALETTE, TABLES, GRID, WIDE = range(5)
NAMES = ("raw", "palette", "tables", "grid", "wide")
_SAMPLE = 1 << 16
_HALVES: tuple[np.dtype[Any], ...] = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
_UINTS: dict[int, np.dtype[Any]] = {n: np.dtype(f"<u{n}") for n in (1, 2, 4, 8)}


@dataclass(frozen=True, slots=True)
class Grouped:
    """What stands behind the values of an array, element by element in the order of its memory.

    Element i is float32(levels[i]) * scales[groups[i]], bit for bit; without `scales`, the groups are
    those whose elements share a palette.
    """

    groups: Array  # int32 [n], -1 for padding (which is zero)
    levels: Array | None = None  # int32 [n]
    scales: Array | None = None  # float32 [t]


@dataclass(frozen=True, slots=True)
class Coded:
    """Coded constants and what became of them."""

    data: bytes
    raw_bytes: int  # of the arrays, without the padding between them
    codecs: dict[str, int]  # arrays by codec
    by_name: dict[str, tuple[int, int]]  # raw and coded bytes

    @property
    def ratio(self) -> float:
        return self.raw_bytes / max(1, len(self.data))


def encode_arrays(arrays: Iterable[tuple[str, int, Array, Grouped | None]], size: int) -> Coded:
    """Code arrays (name, offset in bytes, array, what is known of it) into `size` bytes."""
    parts: list[bytes] = []
    codecs: Counter[str] = Counter()
    by_name: dict[str, tuple[int, int]] = {}
    raw = 0
    for name, offset, array, grouped in arrays:
        flat = np.ascontiguousarray(array).ravel()
        if not flat.view(np.uint8).any():
            continue
        codec, body = _smallest(flat, grouped)
        count = flat.nbytes if codec == RAW else flat.size
        record = varint(codec, offset, count) + body
        parts.append(record)
        codecs[NAMES[codec]] += 1
        by_name[name] = (flat.nbytes, len(record))
        raw += flat.nbytes
    body = varint(VERSION, size, len(parts)) + b"".join(parts)
    data = MAGIC + zlib.crc32(body).to_bytes(4, "little") + body
    return Coded(data, raw, dict(sorted(codecs.items())), by_name)


def decode_arrays(data: bytes, size: int) -> bytearray:
    """The `size` bytes that `encode_arrays` coded; ConfigError, in one line, where they are damaged."""
    if data[:4] != MAGIC or int.from_bytes(data[4:8], "little") != zlib.crc32(data[8:]):
        raise damaged("their checksum is wrong")
    reader = Reader(data)
    reader.take(8)
    if reader.varint() != VERSION or reader.varint() != size:
        raise damaged("they are of another version or size")
    out = bytearray(size)
    for _ in range(reader.varint()):
        codec, offset, count = reader.varint(), reader.varint(), reader.varint()
        if codec >= len(_DECODERS):
            raise damaged(f"a record of kind {codec}")
        if count > size:
            raise damaged("an array is larger than all")
        found = _DECODERS[codec](reader, count).tobytes()
        if offset + len(found) > size:
            raise damaged("an array reaches behind the end")
        out[offset : offset + len(found)] = found
    if reader.at != len(data):
        raise damaged("something is behind the last record")
    return out


def _smallest(flat: Array, grouped: Grouped | None) -> tuple[int, bytes]:
    found = [(RAW, flat.tobytes())]
    for codec, body in (
        (PALETTE, _palette(flat)),
        (TABLES, _tables(flat, grouped) if grouped is not None else None),
        (GRID, _grid(flat, grouped) if grouped is not None else None),
        (WIDE, _wide(flat)),
    ):
        if body is not None:
            found.append((codec, body))
    return min(found, key=lambda f: len(f[1]))


# palettes


def _bits_of(flat: Array) -> Array:
    """The elements as unsigned integers: equality of bits, not of numbers."""
    return flat.view(_UINTS[flat.dtype.itemsize]) if flat.dtype.itemsize in _UINTS else flat[:0]


def _palette(flat: Array) -> bytes | None:
    bits = _bits_of(flat)
    if not bits.size or np.unique(bits[:_SAMPLE]).size > MAX_SYMBOLS:
        return None
    entries, symbols = np.unique(bits, return_inverse=True)
    if entries.size > MAX_SYMBOLS or entries.size * 2 > bits.size:
        return None
    head = varint(bits.itemsize, entries.size) + entries.tobytes()
    return head + encode_symbols(symbols, entries.size)


def _read_palette(reader: Reader, count: int) -> Array:
    itemsize, n = reader.varint(), reader.varint()
    if itemsize not in _UINTS or not 0 < n <= MAX_SYMBOLS:
        raise damaged("a palette of an unknown form")
    entries = np.frombuffer(reader.take(n * itemsize), _UINTS[itemsize])
    found: Array = entries[decode_symbols(reader, count, n)]
    return found


def _tables(flat: Array, grouped: Grouped) -> bytes | None:
    bits = _bits_of(flat)
    if not bits.size or grouped.scales is not None:
        return None
    groups = np.unique(grouped.groups, return_inverse=True)[1]
    order = np.lexsort((bits, groups))
    new_group = np.diff(groups[order], prepend=-1) != 0
    new = new_group | (np.diff(bits[order].astype(np.int64), prepend=0) != 0)
    sizes = np.bincount(groups[order][new])
    entries = bits[order][new]
    if sizes.max() > MAX_SYMBOLS or entries.nbytes * 2 > flat.nbytes or len(sizes) > MAX_SYMBOLS:
        return None
    firsts = np.cumsum(sizes) - sizes
    symbols = np.empty(bits.size, np.int64)
    symbols[order] = np.cumsum(new) - 1 - firsts[groups[order]]
    described = _describe_groups(groups)
    if described is None:
        return None
    head: bytes = varint(bits.itemsize) + described + varint(len(sizes))
    head += encode_symbols(sizes - 1, MAX_SYMBOLS) + entries.tobytes()
    return head + encode_symbols(symbols, int(sizes.max()))


def _read_tables(reader: Reader, count: int) -> Array:
    itemsize = reader.varint()
    if itemsize not in _UINTS:
        raise damaged("tables of an unknown form")
    groups = _read_groups(reader, count)
    tables = reader.varint()
    if not 0 < tables <= MAX_SYMBOLS or groups.max(initial=0) >= tables:
        raise damaged("an element of a table that is not there")
    sizes = decode_symbols(reader, tables, MAX_SYMBOLS) + 1
    entries = np.frombuffer(reader.take(int(sizes.sum()) * itemsize), _UINTS[itemsize])
    symbols = decode_symbols(reader, count, int(sizes.max()))
    if (symbols >= sizes[groups]).any():
        raise damaged("a symbol is outside its table")
    found: Array = entries[(np.cumsum(sizes) - sizes)[groups] + symbols]
    return found


# grids


def _grid(flat: Array, grouped: Grouped) -> bytes | None:
    levels, scales = grouped.levels, grouped.scales
    if flat.dtype != np.float32 or levels is None or scales is None:
        return None
    groups = grouped.groups
    if (groups < 0).any():  # padding has a scale of its own
        groups = np.where(groups < 0, len(scales), groups)
        scales = np.append(scales, np.float32(0))
    low, high = int(levels.min()), int(levels.max())
    if high - low >= MAX_SYMBOLS:
        return None
    real = levels.astype(np.float32) * scales[groups]
    if not np.array_equal(real.view(np.uint32), flat.view(np.uint32)):
        return None
    segments = _segments(groups)
    slots = _slots(groups, segments)
    if not np.array_equal(slots, np.arange(len(slots))) and len(slots) <= 3 * len(scales):
        # to repeat scales takes less than to say which is whose
        groups, scales = _expand(segments, np.arange(len(slots))), scales[slots]
    described = _describe_groups(groups)
    if described is None:
        return None
    short = scales.astype(ml_dtypes.bfloat16)
    is_short = bool(np.array_equal(short.astype(np.float32), scales))
    head = described + varint(len(scales), is_short) + (short if is_short else scales).tobytes()
    return head + varint(zigzag(low)) + encode_symbols(levels - low, high - low + 1)


def _read_grid(reader: Reader, count: int) -> Array:
    groups = _read_groups(reader, count)
    total, is_short = reader.varint(), reader.varint()
    if is_short > 1 or groups.max(initial=0) >= total:
        raise damaged("an element of a scale that is not there")
    raw = reader.take(total * (2 if is_short else 4))
    scales = np.frombuffer(raw, _HALVES[1] if is_short else np.dtype("<f4")).astype(np.float32)
    low = unzigzag(reader.varint())
    levels = decode_symbols(reader, count, MAX_SYMBOLS) + low
    real: Array = levels.astype(np.float32) * scales[groups]
    return real


# halves


def _wide(flat: Array) -> bytes | None:
    if flat.dtype != np.float32:
        return None
    for kind, half in enumerate(_HALVES):
        with np.errstate(over="ignore"):
            short = flat.astype(half)
        if np.array_equal(short.astype(np.float32).view(np.uint32), flat.view(np.uint32)):
            bits = short.view(np.uint16)
            return varint(kind) + encode_symbols(bits >> 8, 256) + encode_symbols(bits & 255, 256)
    return None


def _read_wide(reader: Reader, count: int) -> Array:
    kind = reader.varint()
    if kind >= len(_HALVES):
        raise damaged("floats of an unknown type")
    upper, lower = decode_symbols(reader, count, 256), decode_symbols(reader, count, 256)
    return (upper << 8 | lower).astype(np.uint16).view(_HALVES[kind]).astype(np.float32)


def _read_raw(reader: Reader, count: int) -> Array:
    return np.frombuffer(reader.take(count), np.uint8)


_DECODERS = (_read_raw, _read_palette, _read_tables, _read_grid, _read_wide)


# groups

_ROWS = (1, 2, 3, 4, 6, 8, 12, *range(16, 513, 16), 576, 640, 768, 1024, 1536, 2048, 4096)


def _describe_groups(groups: Array) -> bytes | None:
    """Segments and slots; None where there are too many different slots."""
    segments = _segments(groups)
    merged = list[list[int]]()
    for n, p in segments:
        if merged and merged[-1][1:] == [n, p]:
            merged[-1][0] += 1
        else:
            merged.append([1, n, p])
    tables = _slots(groups, segments)
    head = varint(len(merged), *(number for segment in merged for number in segment))
    if np.array_equal(tables, np.arange(len(tables))):
        return head + varint(1)
    if int(tables.max()) >= MAX_SYMBOLS:
        return None
    return head + varint(0) + encode_symbols(tables, int(tables.max()) + 1)


def _slots(groups: Array, segments: Iterable[tuple[int, int]]) -> Array:
    """The group of each slot."""
    found, at = list[Array](), 0
    for n, p in segments:
        found.append(groups[at : at + p])
        at += n * p
    return np.concatenate(found)


def _expand(segments: Iterable[tuple[int, int]], ids: Array) -> Array:
    """The slots' `ids`, element by element."""
    found, at = list[Array](), 0
    for n, p in segments:
        found.append(np.tile(ids[at : at + p], n))
        at += p
    return np.concatenate(found)


def _segments(groups: Array) -> list[tuple[int, int]]:
    """Cut into n rows of p slots each, every row the same, as long as can be."""
    size = len(groups)
    breaks = {}
    for p in _ROWS:
        if p < size:
            breaks[p] = np.append(np.flatnonzero(groups[:-p] != groups[p:]), size - p)
    found, at = list[tuple[int, int]](), 0
    while at < size:
        best = (1, min(size - at, _ROWS[-1]))
        for p, ends in breaks.items():
            if at + p <= size:
                equal = ends[np.searchsorted(ends, at)] - at if at < size - p else 0
                n = int(equal) // p + 1
                if n > best[0]:
                    best = (n, p)
        found.append(best)
        at += best[0] * best[1]
    return found


def _read_groups(reader: Reader, count: int) -> Array:
    segments: list[tuple[int, int, int]] = []
    slots = elements = 0
    for _ in range(reader.varint()):
        k, n, p = reader.varint(), reader.varint(), reader.varint()
        slots, elements = slots + k * p, elements + k * n * p
        if not (k and n and p) or elements > count:
            raise damaged("groups are larger than their array")
        segments.append((k, n, p))
    if elements != count:
        raise damaged("groups do not cover their array")
    same = reader.varint()
    ids = np.arange(slots) if same else decode_symbols(reader, slots, MAX_SYMBOLS)
    parts: list[Array] = []
    at = 0
    for k, n, p in segments:
        rows = ids[at : at + k * p].reshape(k, 1, p)
        parts.append(np.broadcast_to(rows, (k, n, p)).ravel())
        at += k * p
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)
