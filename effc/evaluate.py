"""Task accuracy: top-1, top-5, and agreement with a reference, one sample at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from effc.core.artifact import TensorSpec
from effc.core.data import LabelledSamples
from effc.core.errors import ConfigError
from effc.core.measure import Array, Feeds, Runner

OnSample = Callable[[int, int], None]  # samples done, of how many


class Evaluation(msgspec.Struct, frozen=True):
    """Accuracy in percent. None where no sample has a label, or no reference was given."""

    top1: float | None
    top5: float | None
    samples: int
    agreement: float | None
    unlabelled: int = 0
    nonfinite: int = 0  # samples whose scores hold a NaN or infinity


def evaluate(
    runner: Runner,
    samples: LabelledSamples,
    output: str,
    *,
    reference: Callable[[Feeds], Array] | None = None,
    on_sample: OnSample = lambda done, total: None,
) -> Evaluation:
    """Classify every sample by the scores of `output`, with the already entered `runner`.

    A sample counts for top-k if fewer than k classes score higher than its label (or as high, with a lower
    index); a label's NaN score never counts. Agreement is how often the scores of `reference` have the
    same best class. ConfigError where a label is no class of the model, or there is nothing to compare with.
    """
    hits1 = hits5 = labelled = same = nonfinite = done = 0
    total = len(samples)
    for done, (feeds, label) in enumerate(samples.labelled(), 1):
        scores = runner.infer(feeds)[output].reshape(-1)
        nonfinite += not np.isfinite(scores).all()
        if label is not None:
            if label < 0 or label >= scores.size:
                raise ConfigError(
                    f"label {label} is no class of output {output!r}, which has {scores.size}",
                    hint="classes count from 0 in the order of the model's outputs",
                )
            place = rank(scores, label)
            hits1 += place < 1
            hits5 += place < 5
            labelled += 1
        if reference is not None:
            same += best(scores) == best(reference(feeds).reshape(-1))
        on_sample(done, total)
    if labelled == 0 and reference is None:
        raise ConfigError(
            "the samples have no labels, so there is no accuracy",
            hint="name pictures like 123_cat.jpg, use class folders, or y in the npz; or add --reference",
        )
    return Evaluation(
        _percent(hits1, labelled),
        _percent(hits5, labelled),
        done,
        _percent(same, done) if reference is not None else None,
        done - labelled,
        nonfinite,
    )


def scores_output(outputs: Sequence[TensorSpec], wanted: str = "") -> str:
    """The output that holds class scores: `wanted`, or the only one of shape [K], [1, K] or [1, K, 1, 1]."""
    candidates = [o.name for o in outputs if is_scores(o)]
    if wanted:
        if wanted not in {o.name for o in outputs}:
            raise ConfigError(
                f"the model has no output {wanted!r}",
                hint=f"its outputs: {', '.join(o.name for o in outputs)}",
            )
        return wanted
    if len(candidates) != 1:
        found = ", ".join(f"{o.name} {o.dtype}{list(o.shape)}" for o in outputs)
        raise ConfigError(
            f"{'no' if not candidates else 'more than one'} output looks like class scores: {found}",
            hint="name it with --output; accuracy is defined for classifiers only",
        )
    return candidates[0]


def is_scores(spec: TensorSpec) -> bool:
    """Whether an output looks like the scores of at least two classes; int64 is what indices are made of."""
    extents = [d for d in spec.shape if d != 1]
    numbers = spec.dtype.startswith(("float", "bfloat", "int", "uint"))
    return len(extents) == 1 and numbers and spec.dtype != "int64"


def rank(scores: Array, label: int) -> int:
    """How many classes come before `label`: those that score higher, or as high with a lower index."""
    own = scores[label]
    if np.isnan(own):
        return int(scores.size)
    return int((scores > own).sum() + (scores[:label] == own).sum())


def best(scores: Array) -> int:
    """The class with the highest score, the first of equals; NaN is never the highest unless all are."""
    if np.isnan(scores).all():
        return -1
    return int(np.nanargmax(scores))


def _percent(count: int, total: int) -> float | None:
    return round(100 * count / total, 4) if total else None
