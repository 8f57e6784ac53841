"""Sample sets of arrays: npz and npy files, read row by row."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np

from effc.core.artifact import TensorSpec, sha256_file
from effc.core.data import fingerprint
from effc.core.errors import ConfigError
from effc.core.measure import Array, Feeds
from effc.core.preprocess import Preprocess, guess_layout

MAX_ROW_BYTES = 1 << 31
LABELS = ("y", "labels", "label")


@dataclass(frozen=True, slots=True)
class _Column:
    """One array of the file: `rows` samples of `shape`, stored one after the other."""

    key: str
    dtype: np.dtype[Any]
    rows: int
    shape: tuple[int, ...]  # of one row
    data_at: int  # bytes of the .npy header
    whole: bool  # the array is one sample


class ArraySamples:
    """The arrays of an npz or npy as samples.

    An array feeds the input of its name; `x`, or the only array, feeds the only input. Its first axis
    counts the samples, unless the array has just the shape of the input. A row passes as it is where its
    shape and type fit (axes of extent 1 don't matter; floats are converted). Rows of uint8 that look like
    pictures ([H, W, 3], [H, W, 1], or [H, W] for gray inputs) go through the preprocessing, and other
    integers through its mean and std. Labels are the integers of `y`.
    """

    synthetic = False

    def __init__(
        self, path: Path, inputs: Sequence[TensorSpec], preprocess: Preprocess | None
    ) -> None:
        self.path = path
        self.inputs = tuple(inputs)
        self.preprocess = preprocess
        headers = self._headers()
        label_key = next((k for k in LABELS if k in headers), "")
        if label_key in {s.name for s in inputs}:
            label_key = ""
        self._columns = {s.name: self._column(s, headers, label_key) for s in inputs}
        counts = {c.key: c.rows for c in self._columns.values()}
        self._count = max(counts.values())
        for column in self._columns.values():
            if column.rows != self._count and not column.whole:
                raise ConfigError(
                    f"arrays of {str(path)!r} differ in their number of rows: {counts}"
                )
        if self._count == 0:
            raise ConfigError(f"{str(path)!r} holds no samples")
        self._labels = self._read_labels(label_key)
        for spec in inputs:
            self._fit(
                spec, np.zeros(self._columns[spec.name].shape, self._columns[spec.name].dtype)
            )

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Feeds]:
        return (feeds for feeds, _ in self.labelled())

    def levels(self, name: str) -> Array | None:
        """Every number that an input can hold, float32, where it is made of integers of 8 bits; else None."""
        kind = self._columns[name].dtype
        floating = np.dtype(next(s.dtype for s in self.inputs if s.name == name)).kind == "f"
        if self.preprocess is None or not floating or kind not in (np.uint8, np.int8):
            return None
        return self.preprocess.reals(np.arange(np.iinfo(kind).min, np.iinfo(kind).max + 1))

    def labelled(self, only: Container[int] | None = None) -> Iterator[tuple[Feeds, int | None]]:
        """Every row (with `only`: those with these indices) as the model's inputs, with its label."""
        streams = {s.name: self._rows(self._columns[s.name]) for s in self.inputs}
        for i in range(self._count):
            rows = {s.name: next(streams[s.name]) for s in self.inputs}
            if only is not None and i not in only:
                continue
            feeds = {s.name: self._fit(s, rows[s.name]) for s in self.inputs}
            yield feeds, None if self._labels is None else int(self._labels[i])

    @cached_property
    def fingerprint(self) -> str:
        """From the bytes of the file."""
        return f"{sha256_file(self.path)}:{fingerprint(self.inputs, self.preprocess)}"

    def _headers(self) -> dict[str, _Column]:
        try:
            if self.path.name.lower().endswith(".npy"):
                with self.path.open("rb") as f:
                    return {"x": _header("x", f)}
            with zipfile.ZipFile(self.path) as archive:
                found = {}
                for name in archive.namelist():
                    if name.endswith(".npy"):
                        with archive.open(name) as f:
                            key = name.removesuffix(".npy")
                            found[key] = _header(key, f)
                return found
        except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ConfigError(
                f"{str(self.path)!r} is no array file that can be read: {error}",
                hint="write it with numpy.savez; arrays of objects (pickles) are not loaded",
            ) from error

    def _column(self, spec: TensorSpec, headers: dict[str, _Column], label_key: str) -> _Column:
        data = {k: c for k, c in headers.items() if k != label_key}
        column = data.get(spec.name)
        if column is None and len(self.inputs) == 1:
            column = data.get("x") or (next(iter(data.values())) if len(data) == 1 else None)
        if column is None:
            raise ConfigError(
                f"{str(self.path)!r} has no array for input {spec.name!r}",
                hint=f"its arrays: {', '.join(headers) or 'none'}; name them like the inputs, or x for a "
                "single input",
            )
        shape = (column.rows, *column.shape)
        if shape == spec.shape or column.rows < 0:  # rows < 0: a scalar
            own = shape if column.rows >= 0 else ()
            return _Column(column.key, column.dtype, 1, own, column.data_at, whole=True)
        return column

    def _fit(self, spec: TensorSpec, row: Array) -> Array:
        """One row as the tensor of `spec`."""
        same_size = row.size == math.prod(spec.shape)
        squeezed = tuple(d for d in row.shape if d != 1) == tuple(d for d in spec.shape if d != 1)
        floating = np.dtype(spec.dtype).kind == "f" or spec.dtype == "bfloat16"
        if row.dtype.kind == "f" and floating and squeezed:
            return np.array(row, spec.dtype, order="C").reshape(spec.shape)
        if (
            self.preprocess is not None
            and row.dtype.kind in "iu"
            and (floating or row.dtype == np.uint8)
        ):
            if row.dtype == np.uint8 and _is_picture(row, spec):
                return self.preprocess.pixels(row, spec.shape, spec.dtype)
            if same_size and squeezed:
                return self.preprocess.values(row, spec.shape, spec.dtype)
        if row.dtype == np.dtype(spec.dtype) and squeezed:
            return np.array(row, order="C").reshape(spec.shape)
        needs = self.preprocess is None and row.dtype.kind in "iu" and floating
        raise ConfigError(
            f"array {self._columns[spec.name].key!r} of {str(self.path)!r} has samples {row.dtype}"
            f"{list(row.shape)}, and input {spec.name!r} is {spec.dtype}{list(spec.shape)}",
            hint="add --preprocess, so that integers become the model's numbers"
            if needs
            else "give floats of the input's shape, or uint8 pictures [N, H, W, 3] and --preprocess",
        )

    def _rows(self, column: _Column) -> Iterator[Array]:
        size = math.prod(column.shape) * column.dtype.itemsize
        if size > MAX_ROW_BYTES:
            raise ConfigError(f"one sample of {str(self.path)!r} takes {size} bytes")
        try:
            if self.path.name.lower().endswith(".npy"):
                with self.path.open("rb") as f:
                    yield from _read_rows(f, column, size, self._count)
                return
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{column.key}.npy") as member:
                yield from _read_rows(member, column, size, self._count)
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ConfigError(f"{str(self.path)!r} can't be read: {error}") from error

    def _read_labels(self, key: str) -> Array | None:
        if not key:
            return None
        with np.load(self.path, allow_pickle=False) as archive:
            found = archive[key]
        if found.dtype.kind not in "iu" or found.size != self._count:
            raise ConfigError(
                f"labels {key!r} of {str(self.path)!r} are {found.dtype}{list(found.shape)}, and "
                f"{self._count} integers are needed"
            )
        return np.asarray(found.reshape(-1))


def _header(key: str, f: IO[bytes]) -> _Column:
    version = np.lib.format.read_magic(f)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, fortran, dtype = read(f)
    if dtype.hasobject:
        raise ValueError(f"array {key!r} holds Python objects")
    if fortran and len(shape) > 1:
        raise ValueError(f"array {key!r} is in Fortran order; save numpy.ascontiguousarray of it")
    if not shape:
        return _Column(key, dtype, -1, (), f.tell(), whole=True)
    return _Column(key, dtype, shape[0], tuple(shape[1:]), f.tell(), whole=False)


def _read_rows(f: IO[bytes], column: _Column, size: int, count: int) -> Iterator[Array]:
    f.read(column.data_at)
    row: Array | None = None
    for index in range(count):
        if row is None or not column.whole:
            data = f.read(size)
            if len(data) != size:
                raise EOFError(f"array {column.key!r} ends within sample {index}")
            row = np.frombuffer(data, column.dtype).reshape(column.shape)
        yield row


def _is_picture(row: Array, spec: TensorSpec) -> bool:
    layout = guess_layout(spec.shape)
    if not layout:
        return False
    if row.ndim == 2:
        return 1 in (spec.shape[1], spec.shape[3])
    return row.ndim == 3 and row.shape[2] in (1, 3)
