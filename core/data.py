"""Samples: the inputs for calibration, goldens and evaluation, streamed and with their labels.

A sample set is a folder or tar of pictures (core/pictures.py), an npz, npy or single picture
(core/arrays.py), or made up from the input's types here. A path may end in a slice: `pictures.tar[::5]` is
every fifth sample, `pictures.tar[!::5]` all others, so that calibration and evaluation need not overlap.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np

from effc.core.artifact import TensorSpec
from effc.core.errors import ConfigError
from effc.core.measure import Array, Feeds
from effc.core.preprocess import Preprocess


class Samples(Protocol):
    """Representative inputs. Iterating twice gives the same feeds; the fingerprint keys caches."""

    def __iter__(self) -> Iterator[Feeds]: ...

    def __len__(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def synthetic(self) -> bool:
        """Whether the samples were made up: the report says so."""
        ...


class LabelledSamples(Samples, Protocol):
    """Samples that may know the right answer."""

    def labelled(self) -> Iterator[tuple[Feeds, int | None]]:
        """The feeds with their class index, None where no label is known."""
        ...


class StoredSamples(LabelledSamples, Protocol):
    """Samples of a file or folder, of which some can be read without decoding the others."""

    def labelled(self, only: Container[int] | None = None) -> Iterator[tuple[Feeds, int | None]]:
        """The feeds with their class index; with `only`, of the samples with these indices."""
        ...

    def levels(self, name: str) -> Array | None:
        """Every number that the input `name` can hold, float32, where they are known and few."""
        ...


class SyntheticSamples:
    """Made-up inputs: standard normal floats, integers in -4..4 (0..4 unsigned), coin-flip booleans.

    With `preprocess` the only input gets pictures of random pixels, prepared as pictures are.
    """

    synthetic = True

    def __init__(
        self,
        inputs: Sequence[TensorSpec],
        *,
        count: int,
        seed: int = 0,
        preprocess: Preprocess | None = None,
    ) -> None:
        self.inputs = tuple(inputs)
        self.preprocess = preprocess if _takes_picture(self.inputs, preprocess) else None
        self.count = count
        self.seed = seed

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Feeds]:
        rng = np.random.default_rng(self.seed)
        for _ in range(self.count):
            if self.preprocess is not None:
                yield {self.inputs[0].name: _picture(rng, self.inputs[0], self.preprocess)}
            else:
                yield {spec.name: _random(rng, spec) for spec in self.inputs}

    def labelled(self) -> Iterator[tuple[Feeds, int | None]]:
        """Made-up inputs have no labels."""
        return ((feeds, None) for feeds in self)

    @property
    def fingerprint(self) -> str:
        return f"synthetic:{self.count}:{self.seed}:{fingerprint(self.inputs, self.preprocess)}"


class FirstSamples:
    """The first `count` of other samples."""

    def __init__(self, samples: LabelledSamples, count: int) -> None:
        self.samples = samples
        self.count = min(count, len(samples))

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Feeds]:
        return islice(iter(self.samples), self.count)

    def labelled(self) -> Iterator[tuple[Feeds, int | None]]:
        """The first feeds with their labels."""
        return islice(self.samples.labelled(), self.count)

    @property
    def fingerprint(self) -> str:
        return f"{self.samples.fingerprint}[:{self.count}]"

    @property
    def synthetic(self) -> bool:
        return self.samples.synthetic


class SlicedSamples:
    """Those of other samples that a Python slice picks, or (`excluded`) all but those, in their order."""

    def __init__(self, samples: StoredSamples, picked: slice, *, excluded: bool = False) -> None:
        self.samples = samples
        self.picked = picked
        self.excluded = excluded
        chosen = range(*picked.indices(len(samples)))
        self.indices = (
            frozenset(range(len(samples))) - set(chosen) if excluded else frozenset(chosen)
        )

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Feeds]:
        return (feeds for feeds, _ in self.labelled())

    def labelled(self) -> Iterator[tuple[Feeds, int | None]]:
        """The chosen feeds with their labels."""
        return self.samples.labelled(self.indices)

    @property
    def fingerprint(self) -> str:
        text = ":".join("" if v is None else str(v) for v in _parts(self.picked))
        return f"{self.samples.fingerprint}[{'!' if self.excluded else ''}{text}]"

    @property
    def synthetic(self) -> bool:
        return self.samples.synthetic


_SLICE = re.compile(r"(?P<path>.+)\[(?P<not>!?)(?P<slice>[-\d]*:[-\d]*(?::[-\d]*)?)\]")


def open_samples(
    path: Path, inputs: Sequence[TensorSpec], preprocess: Preprocess | None = None
) -> LabelledSamples:
    """The samples that `path` holds, for a model with these `inputs`.

    A folder or tar of pictures, an npz or npy of arrays, or one picture; see the classes for what each
    means. Any of them with a slice behind it: `[start:stop:step]`, or `[!start:stop:step]` for all others.
    ConfigError where it is none of these, or does not fit the inputs.
    """
    match = _SLICE.fullmatch(str(path))
    if match is None or path.exists():
        return _open(path, inputs, preprocess)
    samples = _open(Path(match["path"]), inputs, preprocess)
    try:
        picked = slice(*(int(t) if t else None for t in match["slice"].split(":")))
        found = SlicedSamples(samples, picked, excluded=bool(match["not"]))
    except ValueError as error:
        raise ConfigError(
            f"samples {str(path)!r}: {error}", hint="a slice is like [::5], [100:200] or [!::5]"
        ) from error
    if not len(found):
        raise ConfigError(
            f"samples {str(path)!r}: the slice picks none of {len(samples)} samples",
            hint="a slice is like [::5], [100:200] or [!::5]",
        )
    return found


def levels(samples: Samples | None, name: str) -> Array | None:
    """Every number that the input `name` can hold, where `samples` are of stored 8-bit values; else None."""
    while isinstance(samples, (FirstSamples, SlicedSamples)):
        samples = samples.samples
    known = getattr(samples, "levels", None)
    found: Array | None = known(name) if known is not None else None
    return found


def _parts(picked: slice) -> tuple[int | None, int | None, int | None]:
    return picked.start, picked.stop, picked.step


def _open(path: Path, inputs: Sequence[TensorSpec], preprocess: Preprocess | None) -> StoredSamples:
    from effc.core.arrays import ArraySamples
    from effc.core.pictures import PictureFolder, PictureTar, SinglePicture

    name = path.name.lower()
    if path.is_dir():
        return PictureFolder(path, inputs, preprocess)
    if not path.is_file():
        what = "is no regular file" if path.exists() else "does not exist"
        raise ConfigError(
            f"samples {str(path)!r}: {what}",
            hint="give a folder or tar of pictures, an npz, an npy, or one picture",
        )
    if name.endswith((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")):
        return PictureTar(path, inputs, preprocess)
    if name.endswith((".npz", ".npy")):
        return ArraySamples(path, inputs, preprocess)
    return SinglePicture(path, inputs, preprocess)


def fingerprint(inputs: Sequence[TensorSpec], preprocess: Preprocess | None) -> str:
    """What decides, beside the files, which tensors come out of them."""
    text = ";".join(f"{s.name}:{s.dtype}:{s.shape}" for s in inputs) + f"|{preprocess or ''}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _random(rng: np.random.Generator, spec: TensorSpec) -> Array:
    dtype = np.dtype(spec.dtype)
    if dtype == np.bool_:
        return rng.random(spec.shape) < 0.5
    if dtype.kind in "iu":
        low = max(int(np.iinfo(dtype).min), -4)
        return rng.integers(low, 4, spec.shape, endpoint=True).astype(dtype)
    return rng.standard_normal(spec.shape).astype(dtype)


def _takes_picture(inputs: Sequence[TensorSpec], preprocess: Preprocess | None) -> bool:
    if preprocess is None or len(inputs) != 1 or not inputs[0].dtype.startswith("float"):
        return False
    try:
        preprocess.geometry(inputs[0].shape)
    except ConfigError:
        return False
    return True


def _picture(rng: np.random.Generator, spec: TensorSpec, preprocess: Preprocess) -> Array:
    _, channels, height, width = preprocess.geometry(spec.shape)
    rows = rng.integers(0, 255, (height, width, channels), endpoint=True).astype(np.uint8)
    return preprocess.pixels(rows, spec.shape, spec.dtype)
