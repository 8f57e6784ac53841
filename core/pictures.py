"""Sample sets of pictures: a folder, a tar, a single file. One picture is in memory at a time."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Container, Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np

from effc.core.artifact import TensorSpec, sha256_file
from effc.core.data import fingerprint
from effc.core.errors import ConfigError
from effc.core.measure import Array, Feeds
from effc.core.preprocess import Preprocess

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"}
)
MAX_PICTURE_BYTES = 1 << 28
MAX_PICTURES = 1 << 22

_LEADING_INTEGER = re.compile(r"(\d{1,9})[_-]")


class _Pictures(ABC):
    """Pictures for the only input of a model.

    Labels: with two or more class folders, the index of the picture's folder in sorted order (by number
    where all folder names are numbers); otherwise the leading integer of the file name, `123_cat.jpg`.
    """

    synthetic = False

    def __init__(
        self, path: Path, inputs: Sequence[TensorSpec], preprocess: Preprocess | None
    ) -> None:
        if len(inputs) != 1:
            raise ConfigError(
                f"pictures can feed one input, and the model has {len(inputs)}",
                hint="give an npz with one array for each input, by its name",
            )
        if preprocess is None:
            raise ConfigError(
                f"pictures of {str(path)!r} need a preprocessing",
                hint="add --preprocess imagenet, inception, unit, raw or mean=...,std=...",
            )
        self.path = path
        self.inputs = tuple(inputs)
        self.preprocess = preprocess
        preprocess.geometry(inputs[0].shape)
        self.names = self._list()
        if not self.names:
            raise ConfigError(
                f"{str(path)!r} holds no pictures",
                hint=f"pictures end in {', '.join(sorted(SUFFIXES))}",
            )
        self._labels = labels(self.names)

    @abstractmethod
    def _list(self) -> tuple[str, ...]:
        """Relative names in the order of iteration."""

    @abstractmethod
    def _open(self) -> Iterator[tuple[str, Path | IO[bytes]]]:
        """The pictures of `names`, in that order."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Changes with the pictures, the preprocessing or the input."""

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Feeds]:
        return (feeds for feeds, _ in self.labelled())

    def levels(self, name: str) -> Array:
        """Every number that an input can hold, float32: pictures have 256 levels a channel."""
        return self.preprocess.reals(np.arange(256))

    def labelled(self, only: Container[int] | None = None) -> Iterator[tuple[Feeds, int | None]]:
        """The preprocessed pictures with their labels; with `only`, those with these indices."""
        spec = self.inputs[0]
        for index, (name, source) in enumerate(self._open()):
            if only is not None and index not in only:
                continue
            tensor = self.preprocess.picture(source, spec.shape, spec.dtype, name)
            yield {spec.name: tensor}, self._labels[name]


class PictureFolder(_Pictures):
    """The pictures below a folder, sorted by name; other files and hidden ones are passed over."""

    def _list(self) -> tuple[str, ...]:
        found = []
        for file in self.path.rglob("*"):
            name = file.relative_to(self.path)
            hidden = any(part.startswith(".") for part in name.parts)
            if file.suffix.lower() in SUFFIXES and not hidden and file.is_file():
                found.append(name.as_posix())
        return tuple(sorted(found, key=_natural))

    def _open(self) -> Iterator[tuple[str, Path | IO[bytes]]]:
        for name in self.names:
            file = self.path / name
            if file.stat().st_size > MAX_PICTURE_BYTES:
                raise ConfigError(f"picture {name!r} is larger than {MAX_PICTURE_BYTES} bytes")
            yield name, file

    @cached_property
    def fingerprint(self) -> str:
        """From names, sizes and contents of the files."""
        digest = hashlib.sha256(fingerprint(self.inputs, self.preprocess).encode())
        for name in self.names:
            digest.update(f"{name}\0{sha256_file(self.path / name)}\0".encode())
        return digest.hexdigest()


class SinglePicture(PictureFolder):
    """One picture."""

    def _list(self) -> tuple[str, ...]:
        self.path, name = self.path.parent, self.path.name
        return (name,)


class PictureTar(_Pictures):
    """The pictures of a tar (plain or compressed), in its order, read as a stream and never unpacked.

    An archive with a link, a device, an absolute name or `..` is refused as a whole.
    """

    def _list(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self._members(read=False))

    def _open(self) -> Iterator[tuple[str, Path | IO[bytes]]]:
        for name, data in self._members(read=True):
            yield name, io.BytesIO(data)

    def _members(self, *, read: bool) -> Iterator[tuple[str, bytes]]:
        seen = set()
        try:
            # seeking in a plain tar skips what is not read; a compressed one must be streamed
            with tarfile.open(self.path, "r:" if self._plain else "r|*") as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # it would keep every header
                    _refuse_unsafe(member, self.path)
                    name = PurePosixPath(member.name)
                    hidden = any(part.startswith(".") for part in name.parts)
                    if not member.isreg() or hidden or name.suffix.lower() not in SUFFIXES:
                        continue
                    if name.as_posix() in seen:
                        raise ConfigError(f"tar {str(self.path)!r} holds {member.name!r} twice")
                    seen.add(name.as_posix())
                    if len(seen) > MAX_PICTURES:
                        raise ConfigError(
                            f"tar {str(self.path)!r} holds over {MAX_PICTURES} pictures"
                        )
                    data = b""
                    if read and (stream := tar.extractfile(member)) is not None:
                        data = stream.read(MAX_PICTURE_BYTES)
                    yield name.as_posix(), data
        except (tarfile.TarError, OSError, EOFError) as error:
            raise ConfigError(f"{str(self.path)!r} is no tar that can be read: {error}") from error

    @cached_property
    def _plain(self) -> bool:
        with self.path.open("rb") as f:
            return f.read(262)[257:262] == b"ustar"

    @cached_property
    def fingerprint(self) -> str:
        """From the bytes of the tar."""
        return f"{sha256_file(self.path)}:{fingerprint(self.inputs, self.preprocess)}"


def labels(names: Sequence[str]) -> dict[str, int | None]:
    """The label of each relative picture name, by class folder or leading integer."""
    folders = {str(PurePosixPath(n).parent) for n in names}
    if len(folders) > 1 and "." not in folders:
        index = {folder: i for i, folder in enumerate(sorted(folders, key=_natural_if_number))}
        return {n: index[str(PurePosixPath(n).parent)] for n in names}
    found: dict[str, int | None] = {}
    for name in names:
        match = _LEADING_INTEGER.match(PurePosixPath(name).name)
        found[name] = int(match.group(1)) if match else None
    return found


def _refuse_unsafe(member: tarfile.TarInfo, path: Path) -> None:
    name = PurePosixPath(member.name)
    reason = ""
    if name.is_absolute() or ".." in name.parts or "\0" in member.name:
        reason = "leads outside of the archive"
    elif member.islnk() or member.issym():
        reason = "is a link"
    elif not (member.isreg() or member.isdir()):
        reason = "is no regular file"
    elif member.size > MAX_PICTURE_BYTES:
        reason = f"is larger than {MAX_PICTURE_BYTES} bytes"
    if reason:
        raise ConfigError(
            f"tar {str(path)!r}: {member.name!r} {reason}",
            hint="pack the pictures as plain files",
        )


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sorts `2.jpg` before `10.jpg`."""
    return [
        (0, int(part), "") if part.isdigit() and part.isascii() else (1, 0, part)
        for part in re.split(r"(\d+)", name)
        if part
    ]


def _natural_if_number(folder: str) -> tuple[int, int, str]:
    return (0, int(folder), "") if folder.isascii() and folder.isdigit() else (1, 0, folder)
