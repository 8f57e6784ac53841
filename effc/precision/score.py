"""What a variant of a model loses against the float model, on the same samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import msgspec
import numpy as np
import onnx_ir as ir

from effc.core.artifact import TensorSpec
from effc.core.data import Samples
from effc.core.host import available_cores
from effc.core.measure import Array, Feeds
from effc.core.reference import OnnxRuntimeRunner
from effc.core.specs import static_specs
from effc.evaluate import best, is_scores, rank

REFERENCE_BYTES = 256 << 20  # float answers that are kept; more samples than fit are not used

Metric = Literal["top-1", "agreement", "noise"]


class Score(msgspec.Struct, frozen=True):
    """A variant's answers beside the float model's.

    `drop` is in points: of top-1 accuracy, or 100 - agreement of the best class where there are no
    labels, or noise in percent of the signal (100 * 10^(-SQNR / 20)) where no output is class scores.
    """

    metric: Metric
    drop: float
    sqnr_db: float  # of all outputs together; inf: the same bits
    agreement: float | None = None  # percent
    top1: float | None = None  # percent
    samples: int = 0

    @property
    def noise(self) -> float:
        """Power of the error over power of the signal."""
        return 0.0 if math.isinf(self.sqnr_db) else float(10 ** (-self.sqnr_db / 10))


@dataclass(frozen=True)
class Judge:
    """The samples, their labels, and the float model's answers on them."""

    feeds: Sequence[Feeds]
    labels: Sequence[int | None]
    answers: Sequence[dict[str, Array]]
    scores: str  # the output with class scores, "" for none

    @classmethod
    def record(cls, model: ir.Model, samples: Samples, limit: int = 1000) -> Judge:
        """Run the float `model` on the first samples; at most `limit`, and as many as fit in memory."""
        outputs = static_specs(model.graph.outputs)
        inputs = static_specs(
            [v for v in model.graph.inputs if v.name not in model.graph.initializers]
        )
        each = sum(_bytes(s) for s in (*inputs, *outputs))
        count = max(1, min(limit, len(samples), REFERENCE_BYTES // max(each, 1)))
        labelled = getattr(samples, "labelled", None)
        pairs = labelled() if labelled is not None else ((f, None) for f in samples)
        feeds, labels = [], []
        for one, label in islice(pairs, count):
            feeds.append(one)
            labels.append(label)
        found = [o.name for o in outputs if is_scores(o)]
        scores = found[0] if len(outputs) == len(found) == 1 else ""
        return cls(feeds, labels, _answers(model, feeds), scores)

    @property
    def metric(self) -> Metric:
        """What a drop is measured in."""
        if not self.scores:
            return "noise"
        return "top-1" if any(x is not None for x in self.labels) else "agreement"

    def first(self, count: int) -> Judge:
        """The same on fewer samples."""
        return Judge(self.feeds[:count], self.labels[:count], self.answers[:count], self.scores)

    def score(self, model: ir.Model) -> Score:
        """Run `model` (Q/DQ in float arithmetic, as ONNX means it) and compare."""
        return self.compare(_answers(model, self.feeds))

    def compare(self, answers: Sequence[dict[str, Array]]) -> Score:
        """Compare the answers of any runner."""
        ratios = [
            _noise([w[n] for w in self.answers], [a[n] for a in answers]) for n in self.answers[0]
        ]
        noise = float(np.mean(ratios))
        sqnr = (
            math.inf if noise == 0 else -10 * math.log10(noise) if noise < math.inf else -math.inf
        )
        if not self.scores:
            return Score("noise", 100 * math.sqrt(noise), sqnr, samples=len(answers))
        want = [a[self.scores].reshape(-1) for a in self.answers]
        have = [a[self.scores].reshape(-1) for a in answers]
        same = np.mean([best(w) == best(h) for w, h in zip(want, have, strict=True)])
        agreement = round(100 * float(same), 4)
        known = [(i, x) for i, x in enumerate(self.labels) if x is not None]
        if not known:
            return Score(
                "agreement", round(100 - agreement, 4), sqnr, agreement, None, len(answers)
            )
        before, after = (
            100 * float(np.mean([rank(s[i], x) < 1 for i, x in known])) for s in (want, have)
        )
        return Score(
            "top-1", round(before - after, 4), sqnr, agreement, round(after, 4), len(answers)
        )


def _answers(model: ir.Model, feeds: Sequence[Feeds]) -> list[dict[str, Array]]:
    with OnnxRuntimeRunner(model, threads=available_cores(), integer_kernels=False) as runner:
        return [runner.infer(f) for f in feeds]


def _noise(want: Sequence[Array], have: Sequence[Array]) -> float:
    """Mean over the samples of noise power over signal power of one output."""
    power = error = 0.0
    for w, h in zip(want, have, strict=True):
        w64, h64 = w.astype(np.float64), h.astype(np.float64)
        power += float((w64**2).sum())
        error += float(((w64 - h64) ** 2).sum())
    if math.isnan(error):
        return math.inf
    if power == 0:
        return 0.0 if error == 0 else math.inf
    return error / power


def _bytes(spec: TensorSpec) -> int:
    return math.prod(spec.shape) * np.dtype(spec.dtype).itemsize
