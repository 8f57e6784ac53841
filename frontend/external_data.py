"""External data of ONNX tensors, confined to the folder of the model.

Refused: absolute paths, `..`, symbolic links that leave the folder, hard links, anything but regular
files, ranges past the end. See CVE-2022-25882, CVE-2024-27318, CVE-2025-51480, CVE-2026-27489 and
CVE-2026-34447, which all got around weaker forms of these checks.
Source: https://onnx.ai/onnx/repo-docs/ExternalData.html
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from effc.core.errors import FrontendError
from effc.frontend.files import open_regular, printable

_KEYS = {"location", "offset", "length", "checksum"}
_INSIDE = "the model may only name files beside or below itself; save it again with its data there"


def byte_count(dtype: ir.DataType, dims: Sequence[int]) -> int:
    """The bytes that a tensor takes in raw form; sub-byte types are packed."""
    return -(-math.prod(dims) * dtype.bitwidth // 8)


class ExternalData:
    """The data files beside one model. Every file is opened and mapped once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._maps: dict[str, mmap.mmap | bytes] = {}
        self._sizes: dict[str, int] = {}
        self._digests: dict[str, str] = {}

    def tensor(self, proto: onnx.TensorProto, where: str) -> ir.TensorProtocol:
        """The tensor behind an external TensorProto: a view on the mapped file, read when it is used.

        `where` names the tensor in errors.
        """
        dtype = ir.DataType(proto.data_type)
        dims = tuple(proto.dims)
        if dtype in (ir.DataType.STRING, ir.DataType.UNDEFINED):
            raise FrontendError(f"{where} keeps {dtype.name} elements in external data")
        entries = self._entries(proto, where)
        location = entries.get("location", "")
        needed = byte_count(dtype, dims)
        offset = _number(entries.get("offset", "0"), "offset", where)
        data = self._map(location, where)
        size = self._sizes[location]
        length = (
            _number(entries["length"], "length", where) if entries.get("length") else size - offset
        )
        if offset > size or (entries.get("length") and offset + length > size):
            raise FrontendError(
                f"{where} reads bytes {offset} to {offset + length} of {printable(location)}, "
                f"which has {size}",
                hint="the data file is cut off or belongs to another model",
            )
        if length != needed and (entries.get("length") or length < needed):
            raise FrontendError(
                f"{where} of shape {list(dims)} and type {dtype.name} needs {needed} bytes, "
                f"its external data has {length}",
                hint="the data file belongs to another model",
            )
        return map_tensor(data, offset, dtype, dims, proto.name)

    def digests(self) -> list[str]:
        """`location sha256` of every file that was read, sorted."""
        return sorted(f"{location} {digest}" for location, digest in self._digests.items())

    def _entries(self, proto: onnx.TensorProto, where: str) -> dict[str, str]:
        entries: dict[str, str] = {}
        for entry in proto.external_data:
            if entry.key in entries or entry.key not in _KEYS:
                raise FrontendError(
                    f"{where} has external data with the {'second' if entry.key in entries else ''}"
                    f" key {printable(entry.key)}",
                    hint="only location, offset, length and checksum are known, each once",
                )
            entries[entry.key] = entry.value
        return entries

    def _map(self, location: str, where: str) -> mmap.mmap | bytes:
        if location in self._maps:
            return self._maps[location]
        parts = re.split(r"[/\\]", location)
        if (
            not location.strip()
            or any(ord(c) < 32 or ord(c) == 127 for c in location)
            or location.startswith(("/", "\\"))
            or re.match(r"[A-Za-z]:", location)
            or ".." in parts
        ):
            raise FrontendError(
                f"{where} names the data file {printable(location)}, outside the model's folder",
                hint=_INSIDE,
            )
        path = self.folder / location
        folder = os.path.realpath(self.folder)
        real = os.path.realpath(path)
        if os.path.commonpath([folder, real]) != folder:
            raise FrontendError(
                f"{where} names the data file {printable(location)}, a link out of the model's folder",
                hint="put a copy of the file there (cp -L), if you trust it",
            )
        descriptor = open_regular(Path(real), f"data file of {where},", follow=False)
        with os.fdopen(descriptor, "rb") as stream:
            status = os.fstat(descriptor)
            if status.st_nlink > 1:
                raise FrontendError(
                    f"{where} names the data file {printable(location)}, which has "
                    f"{status.st_nlink} hard links: it may be any file of this machine",
                    hint="put a copy of the file there (cp), if you trust it",
                )
            self._sizes[location] = status.st_size
            # by reading: pages of a mapping would count as memory of this process
            self._digests[location] = hashlib.file_digest(stream, "sha256").hexdigest()
            self._maps[location] = (
                mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) if status.st_size else b""
            )
        return self._maps[location]


def map_tensor(
    data: mmap.mmap | bytes, offset: int, dtype: ir.DataType, dims: Sequence[int], name: str
) -> ir.TensorProtocol:
    """A tensor whose little-endian bytes stay in `data` until they are used.

    The file must not be changed in place while the tensor lives; renaming another one over it is fine.
    """
    count = byte_count(dtype, dims)
    if dtype.bitwidth < 8:
        packed = np.frombuffer(data, np.uint8, count, offset)
        return ir.PackedTensor(packed, dtype, shape=ir.Shape(dims), name=name)
    plain = dtype.numpy().newbyteorder("<")
    array = np.frombuffer(data, plain, math.prod(dims), offset).reshape(tuple(dims))
    return ir.Tensor(array, dtype=dtype, shape=ir.Shape(dims), name=name)


def _number(text: str, key: str, where: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise FrontendError(
            f"{where} has external data with the {key} {printable(text)}",
            hint=f"{key} is a number of bytes",
        )
    return int(text)
