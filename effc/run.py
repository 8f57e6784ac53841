"""Inputs through a runner, and what its answers say."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from effc.core.artifact import TensorSpec, write_atomically
from effc.core.errors import ConfigError
from effc.core.measure import Array, Feeds, Runner
from effc.evaluate import is_scores

_SHOWN = 1000  # samples whose answers are listed


class Guess(msgspec.Struct, frozen=True):
    """One class with its score as the model gives it; `label` is empty without a labels file."""

    index: int
    score: float
    label: str = ""


class Answer(msgspec.Struct, frozen=True):
    """One output of one sample: its range, and its best classes where it looks like class scores."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    minimum: float | None
    maximum: float | None
    mean: float | None
    nonfinite: int
    top: tuple[Guess, ...] = ()


def run_samples(
    runner: Runner,
    samples: Iterable[Feeds],
    outputs: Sequence[TensorSpec],
    labels: Sequence[str] = (),
    top: int = 5,
    keep: list[dict[str, Array]] | None = None,
) -> list[list[Answer]]:
    """The answers for each sample, at most the first 1000; every sample's outputs go to `keep` if given."""
    scores = {o.name for o in outputs if is_scores(o)}
    answers: list[list[Answer]] = []
    for feeds in samples:
        found = runner.infer(feeds)
        if keep is not None:
            keep.append({name: np.array(array) for name, array in found.items()})
        if len(answers) < _SHOWN:
            answers.append(
                [_answer(n, np.asarray(a), n in scores, labels, top) for n, a in found.items()]
            )
        elif keep is None:
            break
    return answers


def read_labels(path: Path) -> tuple[str, ...]:
    """Class names, one a line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"labels {str(path)!r} can't be read: {error}") from error
    return tuple(line.strip() for line in lines)


def save_outputs(path: Path, outputs: Sequence[dict[str, Array]]) -> None:
    """Write an npz of the outputs by name; several samples are stacked along the first axis."""
    if path.suffix.lower() != ".npz":
        raise ConfigError(
            f"outputs are written as npz, and {str(path)!r} is not named so",
            hint=f"-o {path.with_suffix('.npz')}",
        )
    arrays = {}
    for name in outputs[0]:
        parts = [o[name] for o in outputs]
        if len(parts) == 1:
            arrays[name] = parts[0]
        elif parts[0].ndim and parts[0].shape[0] == 1:
            arrays[name] = np.concatenate(parts)
        else:
            arrays[name] = np.stack(parts)
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]  # numpy types the keywords as `allow_pickle`
    try:
        write_atomically(path, stream.getvalue())
    except OSError as error:
        raise ConfigError(f"can't write {str(path)!r}: {error.strerror or error}") from error


def _answer(name: str, array: Array, scored: bool, labels: Sequence[str], top: int) -> Answer:
    numbers = array.astype(np.float64).reshape(-1)
    finite = numbers[np.isfinite(numbers)]
    some = finite.size > 0
    best: tuple[Guess, ...] = ()
    if scored:
        order = np.argsort(-np.where(np.isnan(numbers), -np.inf, numbers), kind="stable")[:top]
        best = tuple(
            Guess(int(i), float(numbers[i]), labels[i] if i < len(labels) else "") for i in order
        )
    return Answer(
        name,
        array.dtype.name,
        tuple(array.shape),
        float(finite.min()) if some else None,
        float(finite.max()) if some else None,
        float(finite.mean()) if some else None,
        int(numbers.size - finite.size),
        best,
    )
