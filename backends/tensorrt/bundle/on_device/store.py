"""The files of a bundle: checked against their hashes, read without numpy, written in one step."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import struct
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

MANIFEST, BUNDLE, GOLDENS, REPORT = "manifest.json", "bundle.json", "goldens.npz", "report.json"

# numpy's type codes, without the byte order, in struct's language
_CODES = {"f4": "f", "f8": "d", "f2": "e", "i1": "b", "u1": "B", "i2": "h", "u2": "H", "i4": "i",
          "u4": "I", "i8": "q", "u8": "Q", "b1": "?"}  # fmt: skip


class Refused(Exception):
    """One line for the user: what is wrong; `hint` says what to do about it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(" ".join(message.split()))
        self.hint = hint


class Tensor(NamedTuple):
    """An array: numpy's code of its type, its shape, its bytes in C order, little-endian."""

    code: str
    shape: tuple[int, ...]
    data: bytes

    def values(self) -> tuple[Any, ...]:
        """The numbers, as Python's."""
        letter = _CODES[self.code]
        return struct.unpack(f"<{len(self.data) // struct.calcsize(letter)}{letter}", self.data)

    def cast(self, code: str) -> Tensor:
        """The same numbers in another type; as integers they are held to its bounds."""
        if code == self.code:
            return self
        values: Any = self.values()
        if code[0] in "iu":
            bits = 8 * int(code[1:])
            low, high = (
                (-(1 << bits - 1), (1 << bits - 1) - 1) if code[0] == "i" else (0, (1 << bits) - 1)
            )
            values = (min(max(int(v), low), high) for v in values)
        packed = struct.pack(f"<{len(self.values())}{_CODES[code]}", *values)
        return Tensor(code, self.shape, packed)

    @classmethod
    def of(cls, values: list[float], shape: tuple[int, ...]) -> Tensor:
        """Numbers as float64."""
        return cls("f8", shape, struct.pack(f"<{len(values)}d", *values))


def item_size(code: str) -> int:
    return struct.calcsize(_CODES[code])


def check_files(folder: Path) -> dict[str, str]:
    """Hold every file that the manifest names to its SHA-256; the names and hashes."""
    try:
        files = dict(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refused(f"the bundle has no readable {MANIFEST}: {error}", "copy it again") from error
    for name, wanted in sorted(files.items()):
        path = folder / name
        if os.path.isabs(name) or ".." in Path(name).parts:
            raise Refused(f"{MANIFEST} names a file outside of the bundle: {name!r}")
        if not path.is_file():
            raise Refused(f"the bundle lacks its file {name!r}", "copy it again")
        if sha256(path) != wanted:
            raise Refused(
                f"file {name!r} of the bundle is not what was built (SHA-256 differs)",
                "copy the bundle again; it is not to be edited",
            )
    return files


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        block = file.read(1 << 20)
        while block:
            digest.update(block)
            block = file.read(1 << 20)
    return digest.hexdigest()


def identity(files: dict[str, str]) -> str:
    """One hash of all files that the manifest names: a report says by it which bundle it is about."""
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def read_bundle(folder: Path) -> dict[str, Any]:
    """The description of the bundle."""
    try:
        found = json.loads((folder / BUNDLE).read_text(encoding="utf-8"))
        known = found["format"] == 1
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refused(f"the bundle has no readable {BUNDLE}: {error}", "copy it again") from error
    if not known:
        raise Refused("the bundle is of another format than this script's", "copy both again")
    return dict(found)


def read_goldens(folder: Path) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """The recorded inputs and answers, sample by sample."""
    samples: dict[int, tuple[dict[str, Tensor], dict[str, Tensor]]] = {}
    try:
        with zipfile.ZipFile(str(folder / GOLDENS)) as archive:
            for member in archive.namelist():
                role, index, name = member[: -len(".npy")].split("/", 2)
                pair = samples.setdefault(int(index), ({}, {}))
                pair[role == "answers"][name] = _array(archive.read(member))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise Refused(f"{GOLDENS} can't be read: {error}", "copy the bundle again") from error
    if not samples:
        raise Refused(f"{GOLDENS} holds no samples", "build the bundle again")
    return [samples[i] for i in sorted(samples)]


def _array(data: bytes) -> Tensor:
    """An .npy file. Source: numpy.lib.format, versions 1 to 3."""
    wide = data[6] > 1
    size = struct.unpack_from("<I" if wide else "<H", data, 8)[0]
    start = (12 if wide else 10) + size
    header = ast.literal_eval(data[start - size : start].decode("latin1").strip())
    order, code = header["descr"][0], header["descr"][1:]
    if data[:6] != b"\x93NUMPY" or order == ">" or header["fortran_order"] or code not in _CODES:
        raise Refused(
            f"{GOLDENS} holds an array of type {header['descr']!r}, which is not read here"
        )
    return Tensor(code, tuple(header["shape"]), data[start:])


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside, then rename: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    os.replace(str(temporary), str(path))
