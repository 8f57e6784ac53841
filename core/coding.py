"""Entropy coding of small integers (symbols 0..n-1): canonical Huffman codes, also over runs, or plain bits.

A stream begins with its kind; whichever of the three is smallest is written. Integers are varints
(LEB128: seven bits a byte, the low ones first); bits are filled in from the top of each byte.

plain    width, bytes, bits: every symbol in `width` bits
huffman  symbols, lengths, bytes, bits: code lengths of 0 (unused) to 12 bits, two a byte, low half first
runs     symbols, common, filler, lengths of the tokens, lengths of the symbols, bytes, bits: a token
         0..filler-1 is that many times `common` and then a symbol's code; the token `filler` is so many
         times `common` and nothing else. The stream ends with the last symbol that is wanted.

Sources: Huffman, 1952; Larmore and Hirschberg, "A fast algorithm for optimal length-limited Huffman
codes", 1990; runs between the weights that pruning left: Han et al., "Deep Compression", arXiv 1510.00149.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from effc.core.errors import ConfigError

Array = npt.NDArray[Any]

MAX_BITS = 12  # of a code: decoders look all of them up in one table of 4,096 entries
MAX_SYMBOLS = 1 << MAX_BITS
PLAIN, HUFFMAN, RUNS = range(3)
_FILLERS = (15, 255)
_CHUNK = 1 << 20  # symbols whose bits are laid out at once


def damaged(what: str) -> ConfigError:
    """The error of a stream that no encoder wrote."""
    return ConfigError(f"coded data are damaged: {what}", hint="build the artifact again")


class Reader:
    """Bytes, from the front; ConfigError where they end too early."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        if count > len(self.data) - self.at:
            raise damaged("they end too early")
        self.at += count
        return self.data[self.at - count : self.at]

    def varint(self) -> int:
        """An unsigned integer of at most 63 bits."""
        value = shift = 0
        while True:
            (byte,) = self.take(1)
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 56:
                raise damaged("an integer is too long")


def varint(*values: int) -> bytes:
    """Unsigned integers, seven bits a byte."""
    out = bytearray()
    for value in values:
        while value > 127:
            out.append(value & 127 | 128)
            value >>= 7
        out.append(value)
    return bytes(out)


def zigzag(value: int) -> int:
    """0, -1, 1, -2, ... -> 0, 1, 2, 3, ..."""
    return 2 * value if value >= 0 else -2 * value - 1


def unzigzag(value: int) -> int:
    """The inverse of `zigzag`."""
    return -(value + 1) // 2 if value & 1 else value // 2


# codes


def code_lengths(counts: Array) -> npt.NDArray[np.uint8]:
    """The lengths of an optimal prefix code of at most MAX_BITS bits (package-merge); 0 for count 0."""
    used = np.flatnonzero(counts)
    lengths = np.zeros(len(counts), np.uint8)
    if used.size <= 1:
        lengths[used] = 1
        return lengths
    leaves = sorted((int(counts[s]), (int(s),)) for s in used)
    packages: list[tuple[int, tuple[int, ...]]] = []
    for _ in range(MAX_BITS):
        pairs = zip(packages[::2], packages[1::2], strict=False)
        packages = sorted(
            [*leaves, *((a[0] + b[0], a[1] + b[1]) for a, b in pairs)], key=lambda p: p[0]
        )
    for _, symbols in packages[: 2 * used.size - 2]:
        for s in symbols:
            lengths[s] += 1
    return lengths


def canonical_codes(lengths: Array) -> npt.NDArray[np.uint32]:
    """The code of each symbol: shorter codes first, among equals lower symbols first."""
    codes = np.zeros(len(lengths), np.uint32)
    code = previous = 0
    for s in np.lexsort((np.arange(len(lengths)), lengths)):
        length = int(lengths[s])
        if length == 0:
            continue
        code <<= length - previous
        codes[s], previous = code, length
        code += 1
    return codes


def _decoding_table(lengths: Array) -> list[tuple[int, int]]:
    """The next MAX_BITS bits -> (symbol, length); length 0 where no code begins so."""
    if (lengths > MAX_BITS).any():
        raise damaged("a code is too long")
    if sum(1 << (MAX_BITS - int(n)) for n in lengths if n) > MAX_SYMBOLS:
        raise damaged("the codes overlap")
    table = [(0, 0)] * MAX_SYMBOLS
    for s, (length, code) in enumerate(zip(lengths, canonical_codes(lengths), strict=True)):
        if length:
            spread = 1 << (MAX_BITS - int(length))
            table[int(code) * spread : (int(code) + 1) * spread] = [(s, int(length))] * spread
    return table


def _nibbles(lengths: Array) -> bytes:
    padded = np.append(lengths, np.zeros(len(lengths) % 2, np.uint8)).astype(np.uint8)
    return bytes(padded[::2] | padded[1::2] << 4)


def _read_lengths(reader: Reader, count: int) -> Array:
    if not 0 < count <= MAX_SYMBOLS:
        raise damaged(f"a code of {count} symbols")
    raw = np.frombuffer(reader.take((count + 1) // 2), np.uint8)
    return np.stack([raw & 15, raw >> 4], 1).ravel()[:count]


# bits


def _pack(codes: Array, lengths: Array) -> bytes:
    """The codes one after the other."""
    out: list[bytes] = []
    rest = np.zeros(0, np.uint8)
    for begin in range(0, len(codes), _CHUNK):
        code = codes[begin : begin + _CHUNK].astype(np.uint32)
        length = lengths[begin : begin + _CHUNK].astype(np.int64)
        ends = np.cumsum(length) + rest.size
        bits = np.zeros(int(ends[-1]), np.uint8)
        bits[: rest.size] = rest
        for j in range(MAX_BITS):
            has = length > j
            if has.any():
                bits[ends[has] - 1 - j] = code[has] >> j & 1
        whole = bits.size // 8 * 8
        out.append(np.packbits(bits[:whole]).tobytes())
        rest = bits[whole:]
    out.append(np.packbits(rest).tobytes())
    return b"".join(out)


class _Bits:
    """Bits from the front; zeros behind the end, and `check` says whether any were used."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def peek(self, width: int) -> int:
        byte, shift = divmod(self.at, 8)
        window = int.from_bytes(self.data[byte : byte + 3].ljust(3, b"\0"), "big")
        return window >> (24 - shift - width) & ((1 << width) - 1)

    def symbol(self, table: list[tuple[int, int]]) -> int:
        found, length = table[self.peek(MAX_BITS)]
        if length == 0:
            raise damaged("bits that are no code")
        self.skip(length)
        return found

    def skip(self, width: int) -> None:
        self.at += width
        if self.at > 8 * len(self.data):
            raise damaged("a stream ends too early")

    def check(self) -> None:
        if len(self.data) != (self.at + 7) // 8:
            raise damaged("a stream goes on behind its end")


# streams


def encode_symbols(symbols: Array, alphabet: int) -> bytes:
    """The smallest stream of `symbols`, integers 0..alphabet-1 [n]; alphabet is at most 4096."""
    flat = np.asarray(symbols).ravel().astype(np.int64)
    if not 0 < alphabet <= MAX_SYMBOLS or (
        flat.size and not 0 <= flat.min() <= flat.max() < alphabet
    ):
        raise ValueError(f"symbols outside an alphabet of {alphabet}")
    found = [_encode_plain(flat, alphabet)]
    if alphabet > 1 and flat.size:
        counts = np.bincount(flat, minlength=alphabet)
        found.append(_encode_huffman(flat, counts))
        if 2 * counts.max() > flat.size:
            found += [_encode_runs(flat, int(counts.argmax()), alphabet, f) for f in _FILLERS]
    return min(found, key=len)


def _encode_plain(flat: Array, alphabet: int) -> bytes:
    width = (alphabet - 1).bit_length()
    bits = _pack(flat, np.full(flat.size, width)) if width else b""
    return varint(PLAIN, width, len(bits)) + bits


def _encode_huffman(flat: Array, counts: Array) -> bytes:
    lengths = code_lengths(counts)
    bits = _pack(canonical_codes(lengths)[flat], lengths[flat])
    return varint(HUFFMAN, len(counts)) + _nibbles(lengths) + varint(len(bits)) + bits


def _encode_runs(flat: Array, common: int, alphabet: int, filler: int) -> bytes:
    places = np.flatnonzero(flat != common)
    gaps = np.diff(places, prepend=-1) - 1
    tail = flat.size - 1 - (places[-1] if places.size else -1)
    gaps = np.append(gaps, tail)
    fillers, rest = np.divmod(gaps, filler)
    # each gap: its fillers, then the rest, then a symbol; the last one has no symbol
    starts = np.cumsum(fillers + 1) - 1
    tokens = np.full(int(starts[-1]) + 1, filler)
    tokens[starts] = rest
    if rest[-1] == 0:
        tokens = tokens[:-1]
    token_lengths = code_lengths(np.bincount(tokens, minlength=filler + 1))
    symbol_lengths = code_lengths(np.bincount(flat[places], minlength=alphabet))
    # token i stands before the symbols of the tokens up to it that are no fillers
    ends = starts[: places.size]
    at = np.arange(len(tokens)) + np.searchsorted(ends, np.arange(len(tokens)))
    size = len(tokens) + places.size
    codes, lengths = np.zeros(size, np.uint32), np.zeros(size, np.uint8)
    codes[at], lengths[at] = canonical_codes(token_lengths)[tokens], token_lengths[tokens]
    behind = ends + np.arange(places.size) + 1
    codes[behind] = canonical_codes(symbol_lengths)[flat[places]]
    lengths[behind] = symbol_lengths[flat[places]]
    bits = _pack(codes, lengths)
    head = varint(RUNS, alphabet, common, filler) + _nibbles(token_lengths)
    return head + _nibbles(symbol_lengths) + varint(len(bits)) + bits


def decode_symbols(reader: Reader, count: int, alphabet: int) -> npt.NDArray[np.int64]:
    """The next stream of `reader`: `count` symbols below `alphabet`. ConfigError where it is damaged."""
    kind = reader.varint()
    if kind == PLAIN:
        out = _decode_plain(reader, count)
    elif kind == HUFFMAN:
        table = _decoding_table(_read_lengths(reader, reader.varint()))
        bits = _Bits(reader.take(reader.varint()))
        out = np.fromiter((bits.symbol(table) for _ in range(count)), np.int64, count)
        bits.check()
    elif kind == RUNS:
        out = _decode_runs(reader, count)
    else:
        raise damaged(f"a stream of kind {kind}")
    if count and int(out.max()) >= alphabet:
        raise damaged("a symbol is out of range")
    return out


def _decode_plain(reader: Reader, count: int) -> npt.NDArray[np.int64]:
    width, size = reader.varint(), reader.varint()
    if width > MAX_BITS or size != (count * width + 7) // 8:
        raise damaged("a stream has the wrong length")
    bits = np.unpackbits(np.frombuffer(reader.take(size), np.uint8))[: count * width]
    weights = 1 << np.arange(width, dtype=np.int64)[::-1]
    return bits.reshape(count, width).astype(np.int64) @ weights


def _decode_runs(reader: Reader, count: int) -> npt.NDArray[np.int64]:
    alphabet, common, filler = reader.varint(), reader.varint(), reader.varint()
    if not 0 < filler < MAX_SYMBOLS or common >= alphabet:
        raise damaged("runs of an unknown form")
    tokens = _decoding_table(_read_lengths(reader, filler + 1))
    symbols = _decoding_table(_read_lengths(reader, alphabet))
    bits = _Bits(reader.take(reader.varint()))
    out = np.full(count, common, np.int64)
    at = 0
    while at < count:
        token = bits.symbol(tokens)
        at += token
        if at > count:
            raise damaged("a run goes on behind the end")
        if token < filler and at < count:
            out[at] = bits.symbol(symbols)
            at += 1
    bits.check()
    return out
