"""Weight files of ML Programs ("blob v2"), read without coremltools.

Format: a header of 64 bytes (count: u32, version: u32 = 2), then pairs of metadata and data, each at a
multiple of 64. Metadata: sentinel u32 0xDEADBEEF, type u32, size u64, offset u64, padding bits u64.
Source: coremltools, mlmodel/src/MILBlob/Blob/StorageFormat.hpp and BlobDataType.hpp.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

import numpy as np

from effc.core.errors import FrontendError
from effc.core.measure import Array

HEADER = struct.Struct("<II")
METADATA = struct.Struct("<IIQQQ")
SENTINEL = 0xDEADBEEF
VERSION = 2

# type code -> (bits of an element, numpy type of the unpacked element)
TYPES: dict[int, tuple[int, str]] = {
    1: (16, "float16"),
    2: (32, "float32"),
    3: (8, "uint8"),
    4: (8, "int8"),
    6: (16, "int16"),
    7: (16, "uint16"),
    8: (4, "int8"),
    9: (1, "uint8"),
    10: (2, "uint8"),
    11: (4, "uint8"),
    12: (3, "uint8"),
    13: (6, "uint8"),
    14: (32, "int32"),
    15: (32, "uint32"),
}


def unpack(data: bytes | memoryview, bits: int, dtype: str, count: int) -> Array:
    """`count` elements of `bits` bits, packed from the least significant bit upwards across bytes."""
    if bits >= 8:
        return np.frombuffer(data, np.dtype(dtype).newbyteorder("<"), count).astype(
            dtype, copy=False
        )
    stream = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little", count=count * bits)
    weights = (1 << np.arange(bits)).astype(np.uint8)
    values: Array = (stream.reshape(count, bits) * weights).sum(axis=1, dtype=np.uint8)
    if np.dtype(dtype).kind == "i":  # two's complement of `bits` bits
        values = (
            values.astype(np.int16) - ((values >> (bits - 1)).astype(np.int16) << bits)
        ).astype(dtype)
    return values


class WeightFile:
    """One weight file; `read` gives the blob whose metadata stands at an offset."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (OSError, ValueError) as error:  # ValueError: an empty file can't be mapped
            raise FrontendError(f"{path}: the weight file can't be read: {error}") from error
        if len(self._data) < 64:
            raise FrontendError(f"{path}: the weight file is cut off ({len(self._data)} bytes)")
        _, version = HEADER.unpack_from(self._data, 0)
        if version != VERSION:
            raise FrontendError(f"{path}: weight file version {version}; only {VERSION} is known")

    def read(self, offset: int, bits: int, dtype: str, count: int) -> Array:
        """`count` elements of the declared type; the file has to agree with it."""
        where = f"{self.path}: blob at offset {offset}"
        if offset % 64 or not 64 <= offset <= len(self._data) - 64:
            raise FrontendError(f"{where}: outside the file ({len(self._data)} bytes) or unaligned")
        sentinel, code, size, start, padding = METADATA.unpack_from(self._data, offset)
        if sentinel != SENTINEL:
            raise FrontendError(f"{where}: no blob starts here")
        if code not in TYPES:
            raise FrontendError(f"{where}: type {code} is not known")
        if TYPES[code] != (bits, dtype):
            raise FrontendError(f"{where}: stored as {TYPES[code]}, declared as {(bits, dtype)}")
        if start > len(self._data) or size > len(self._data) - start:
            raise FrontendError(f"{where}: its {size} bytes at {start} pass the end of the file")
        held = (size * 8 - (padding if bits < 8 else 0)) // bits
        if held != count or size * 8 < count * bits:
            raise FrontendError(f"{where}: holds {held} elements, {count} are declared")
        return unpack(self._data[start : start + size], bits, dtype, count)
