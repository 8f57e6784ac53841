"""The search of autotuning: which blocking of each kernel is the fastest, within a time budget.

All kernels are tuned at once, inside the running model (insitu.py): an inference measures one blocking of
every kernel. In a round each blocking runs once, so ratios of times of the same round are fair on a machine
whose speed drifts. A blocking replaces the best so far only if it is faster beyond the noise in a second
sample, by which it was not chosen; the whole is held against the untuned program in the end.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from effc.backends.tvm.candidates import Space
from effc.backends.tvm.kernels.choice import Blocking
from effc.backends.tvm.records import FORMAT, Known, Record, Records
from effc.core.measure import median_interval

RULE = Blocking()
MARGIN = 0.995  # a gain below half a percent is not worth another kernel
MOST_VARIANTS = 4  # of a kernel in one batch
LEAST_ROUNDS, MOST_ROUNDS = 12, 150
PATIENCE = 0.85  # a kernel's claim to the budget shrinks so with each vain trial
BATCH_SECONDS = 2.0  # of compiling

Progress = Callable[[str, float], None]


class Bench(Protocol):
    """Runs the program with kernels cut as wished, the others by rule."""

    threads: int  # of an inference; may be set

    def prepare(self, choices: Mapping[str, Sequence[Blocking]]) -> None:
        """Compile these blockings of these kernels."""

    def forget(self, kernel: str, blocking: Blocking) -> None:
        """This blocking won't be run again."""

    def run(self, choice: Mapping[str, Blocking]) -> Mapping[str, float]:
        """One inference; seconds by kernel, over its calls; "" is the whole."""


@dataclass
class Subject:
    """A kernel under tuning. `known` is what the records say about it."""

    kernel: str
    key: str  # of its records
    space: Space
    known: Known
    best: Blocking = RULE
    gain: float = 1.0  # time of the best over the rule's
    seconds: float = 0.0  # of its calls in an inference
    vain: int = 0  # trials since the last improvement
    trials: int = 0
    seen: set[Hashable] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.seen |= {self.space.effective(b) for b in (RULE, *self.known.tried)}
        if self.known.best != RULE and self.space.effective(self.known.best) is not None:
            self.best, self.gain = self.known.best, self.known.gain

    def fresh(self) -> Iterator[Blocking]:
        """Candidates that nobody has measured."""
        for blocking in self.space.candidates(self.best):
            cut = self.space.effective(blocking)
            if cut is not None and cut not in self.seen:
                self.seen.add(cut)
                yield blocking


@dataclass(frozen=True, slots=True)
class Ratio:
    """The median of ratios of paired times, and its 95 % interval."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
        """Below one where `ours` are faster."""
        ratios = [max(a, 1e-9) / max(b, 1e-9) for a, b in zip(ours, theirs, strict=True)]
        return cls(float(np.median(ratios)), *median_interval(ratios))

    @property
    def faster(self) -> bool:
        """Whether it is faster beyond the noise."""
        return self.high < 1.0 and self.median < MARGIN


Times = dict[tuple[str, Blocking], list[float]]


class Search:
    """Spends the time until `deadline` (of `clock`) where an inference spends its own."""

    def __init__(
        self,
        subjects: Sequence[Subject],
        bench: Bench,
        records: Records,
        deadline: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        seed: int = 0,
        most_trials: int = 0,
        progress: Progress = lambda what, done: None,
    ) -> None:
        self.subjects = {s.kernel: s for s in subjects}
        self.bench, self.records, self.clock, self.progress = bench, records, clock, progress
        self.begun, self.deadline = clock(), deadline
        self.random = random.Random(seed)
        self.most_trials = most_trials or 1 << 30
        self.trials = 0
        self.before = self.now = 0.0  # seconds of an inference
        self._compile = 0.2  # seconds for one kernel; corrected by every batch

    @property
    def choice(self) -> dict[str, Blocking]:
        """The best blockings so far, where they are not the rule's."""
        return {s.kernel: s.best for s in self.subjects.values() if s.best != RULE}

    def run(self) -> None:
        """Tune until the time is over or nothing is left to try."""
        self.bench.prepare({kernel: [best] for kernel, best in self.choice.items()})
        self._profile()
        while batch := self._batch():
            begun = self.clock()
            self.bench.prepare(batch)
            spent = self.clock() - begun
            self._compile = spent / sum(map(len, batch.values()))
            self._judge(batch, spent)
            self._report()

    def _report(self) -> None:
        left = self.deadline - self.clock()
        share = 1 - max(0.0, left) / max(self.deadline - self.begun, 1e-9)
        saved = f"{1e3 * self.before:.3g} -> {1e3 * self.now:.3g} ms"
        self.progress(f"tune: {saved}, {self.trials} trials, {max(0.0, left):.0f} s left", share)

    def _profile(self) -> None:
        self.bench.run(self.choice)
        runs = [self.bench.run(self.choice) for _ in range(7)]
        for subject in self.subjects.values():
            subject.seconds = float(np.median([r[subject.kernel] for r in runs]))
        self.before = self.now = float(np.median([r[""] for r in runs]))
        self._report()

    def _batch(self) -> dict[str, list[Blocking]]:
        """What to compile next: untried blockings of the kernels that promise most. Empty: stop."""
        left = self.deadline - self.clock()
        rounds = left / 2 / (LEAST_ROUNDS * max(self.now, 1e-9))  # inferences that a round may have
        each = min(MOST_VARIANTS, int(rounds) - 1)
        number = int(min(BATCH_SECONDS, 0.4 * left) / max(self._compile, 1e-9))
        number = min(number, self.most_trials - self.trials, 64)
        batch: dict[str, list[Blocking]] = {}
        claims = {k: s.seconds * PATIENCE**s.vain for k, s in self.subjects.items()}
        queues = {k: s.fresh() for k, s in self.subjects.items()}
        while number > 0 and each > 0 and claims:
            kernel = max(claims, key=lambda k: claims[k])
            blocking = next(queues[kernel], None)
            if blocking is None:
                del claims[kernel]
                continue
            batch.setdefault(kernel, []).append(blocking)
            claims[kernel] *= PATIENCE
            if len(batch[kernel]) == each:
                del claims[kernel]
            number -= 1
        return batch

    def _judge(self, batch: Mapping[str, Sequence[Blocking]], spent: float) -> None:
        """Measure the batch, measure again what seems faster, keep what is, and write it all down."""
        inference = max(self.now, 1e-9)
        widest = 1 + max(map(len, batch.values()))
        rounds = int(max(spent / 2, 0.5) / (widest * inference))
        rounds = min(max(rounds, LEAST_ROUNDS), MOST_ROUNDS)
        field_ = {k: [self.subjects[k].best, *variants] for k, variants in batch.items()}
        first = self._measure(field_, rounds)
        ratios: dict[tuple[str, Blocking], Ratio] = {}
        again: dict[str, list[Blocking]] = {}
        for kernel, variants in batch.items():
            best = self.subjects[kernel].best
            if len(first[kernel, best]) < LEAST_ROUNDS:
                continue
            for blocking in variants:
                ratios[kernel, blocking] = Ratio.of(first[kernel, blocking], first[kernel, best])
            fastest = min(variants, key=lambda b: ratios[kernel, b].median)
            if ratios[kernel, fastest].median < MARGIN:
                again[kernel] = [best, fastest]
        second = self._measure(again, 2 * rounds) if again else {}
        confirmed = set()
        for kernel, (best, fastest) in again.items():
            if len(second[kernel, best]) < LEAST_ROUNDS:
                continue
            ratio = Ratio.of(second[kernel, fastest], second[kernel, best])
            ratios[kernel, fastest] = ratio
            if ratio.faster:
                confirmed.add((kernel, fastest))
        self._settle(batch, ratios, confirmed, {**first, **second})

    def _settle(
        self,
        batch: Mapping[str, Sequence[Blocking]],
        ratios: Mapping[tuple[str, Blocking], Ratio],
        confirmed: set[tuple[str, Blocking]],
        times: Times,
    ) -> None:
        """Write the trials down; the confirmed blockings become the best."""
        found = []
        for kernel, variants in batch.items():
            subject = self.subjects[kernel]
            measured = [b for b in variants if (kernel, b) in ratios]
            subject.trials += len(measured)
            self.trials += len(measured)
            subject.vain += len(variants)
            against, gain = subject.best, subject.gain
            for blocking in variants:
                ratio, kept = ratios.get((kernel, blocking)), (kernel, blocking) in confirmed
                if ratio is not None:
                    total = gain * ratio.median
                    seconds = float(np.median(times[kernel, blocking]))
                    found.append(
                        Record(
                            FORMAT, self.records.place, subject.key, str(blocking), str(against),
                            ratio.median, ratio.low, ratio.high, total, seconds, kept,
                        )
                    )  # fmt: skip
                    if kept:
                        subject.best, subject.gain, subject.vain = blocking, total, 0
                        self.now -= subject.seconds * (1 - ratio.median)
                        subject.seconds *= ratio.median
                if not kept:
                    self.bench.forget(kernel, blocking)
            if subject.best != against:
                self.bench.forget(kernel, against)
        self.records.add(*found)

    def _measure(self, variants: Mapping[str, Sequence[Blocking]], rounds: int) -> Times:
        """Times of each variant, one a round; fewer rounds where the deadline comes first."""
        times: Times = {(k, b): [] for k, bs in variants.items() for b in bs}
        length = max(map(len, variants.values()))
        base = self.choice
        for _ in range(rounds):
            orders = {k: self.random.sample(list(bs), len(bs)) for k, bs in variants.items()}
            sums = dict.fromkeys(times, (0.0, 0))
            for i in range(length):
                chosen = {k: order[i % len(order)] for k, order in orders.items()}
                took = self.bench.run({**base, **chosen})
                for kernel, blocking in chosen.items():
                    total, count = sums[kernel, blocking]
                    sums[kernel, blocking] = total + took[kernel], count + 1
            for at, (total, count) in sums.items():
                times[at].append(total / count)
            if self.clock() >= self.deadline:
                break
        return times


@dataclass(frozen=True, slots=True)
class Comparison:
    """The tuned program beside the untuned one: seconds of an inference, by kernel ("" is the whole)."""

    before: Mapping[str, float]
    after: Mapping[str, float]
    ratio: Ratio


def compare(
    bench: Bench,
    choice: Mapping[str, Blocking],
    seconds: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    seed: int = 0,
) -> Comparison:
    """Run the untuned program and that of `choice` in turn for `seconds`, and LEAST_ROUNDS at least."""
    order = random.Random(seed)
    untuned: list[Mapping[str, float]] = []
    tuned: list[Mapping[str, float]] = []
    for warm in ({}, choice):
        bench.run(warm)
    deadline = clock() + seconds
    while len(tuned) < LEAST_ROUNDS or (clock() < deadline and len(tuned) < 20 * MOST_ROUNDS):
        if order.random() < 0.5:
            untuned.append(bench.run({}))
            tuned.append(bench.run(choice))
        else:
            tuned.append(bench.run(choice))
            untuned.append(bench.run({}))
    names = untuned[0]
    return Comparison(
        {n: float(np.median([r[n] for r in untuned])) for n in names},
        {n: float(np.median([r[n] for r in tuned])) for n in names},
        Ratio.of([r[""] for r in tuned], [r[""] for r in untuned]),
    )
