"""Measurements and what produces them: runners on devices. Emulator, estimate and device never mix."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

import msgspec
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from effc.core.artifact import Artifact

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]

BURST_VALUES = 20


class Measurement(msgspec.Struct, frozen=True, omit_defaults=True):
    """One measured (or estimated, and then so named) cost of one inference."""

    source: Literal["device", "emulator", "estimate"]
    device: str
    name: str = ""  # what ran: the artifact, or "onnxruntime 1.31.1" beside it
    threads: int = 1
    seconds: tuple[float, ...] = ()  # one per repetition, after warm-up
    instructions: int | None = None
    peak_bytes: int | None = None  # intermediate tensors and scratch, constants apart
    joules: float | None = None

    @property
    def median(self) -> float | None:
        """Median seconds of one inference."""
        return float(np.median(self.seconds)) if self.seconds else None

    def interval(self, confidence: float = 0.95) -> tuple[float, float] | None:
        """Distribution-free confidence interval of the median, in seconds (order statistics)."""
        return median_interval(self.seconds, confidence) if self.seconds else None


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """The order statistics that hold the median with `confidence` (normal approximation of the binomial).

    Source: Conover, Practical Nonparametric Statistics, section 3.2.
    """
    ordered = sorted(values)
    n = len(ordered)
    z = 1.959964 if confidence == 0.95 else _normal_quantile(0.5 + confidence / 2)
    half = z * np.sqrt(n) / 2
    low = max(int(np.floor(n / 2 - half)), 0)
    high = min(int(np.ceil(n / 2 + half)), n - 1)
    return float(ordered[low]), float(ordered[high])


def _normal_quantile(p: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(p)


class Runner(ABC):
    """One loaded artifact on one device; a context manager that owns what it opened."""

    @abstractmethod
    def __enter__(self) -> Self: ...

    @abstractmethod
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    @abstractmethod
    def infer(self, feeds: Feeds) -> dict[str, Array]:
        """One inference: input name -> array in, output name -> array out."""

    @abstractmethod
    def time(self, feeds: Feeds, repeats: int) -> Measurement:
        """Run `repeats` inferences (after one that is not counted) and time each."""

    def layers(self, feeds: Feeds, repeats: int) -> list[LayerTime]:
        """Median time of every call, in order; empty where the device can't tell."""
        return []


class LayerTime(msgspec.Struct, frozen=True):
    """The time of one call of an artifact and the IR nodes that it computes.

    An emulator counts `instructions`, and its `seconds` are 0.
    """

    name: str
    template: str
    nodes: tuple[str, ...]
    seconds: float
    instructions: int | None = None


def interleaved(
    runners: Sequence[Runner],
    feeds: Feeds | Sequence[Feeds],
    *,
    seconds: float = 2.0,
    rounds: int = 10,
    on_round: Callable[[int, int], None] | None = None,
) -> list[Measurement]:
    """Time `runners`, already entered, in turn (A B A B ...), so that a machine whose speed drifts is fair.

    Every runner first gets one warm-up burst, which also sets its burst length: all bursts together take
    about `seconds`, split over `rounds`. `feeds` are the same for all runners, or one for each.
    `on_round(done, rounds)` reports progress. Of a burst with more than BURST_VALUES repetitions, the
    medians of that many equal stretches are kept.
    """
    each = [feeds] * len(runners) if isinstance(feeds, Mapping) else list(feeds)
    share = seconds / (rounds * max(len(runners), 1))
    repeats = []
    parts: list[list[Measurement]] = [[] for _ in runners]
    for runner, feed, part in zip(runners, each, parts, strict=True):
        first = runner.time(feed, 3)
        if first.instructions is not None and not first.seconds:
            part.append(first)  # counted, not timed: again would be the same
        repeats.append(max(1, int(share / (first.median or 1e-6))))
    for done in range(rounds):
        for runner, feed, count, part in zip(runners, each, repeats, parts, strict=True):
            if not part or part[0].seconds:
                part.append(_thinned(runner.time(feed, count)))
        if on_round is not None:
            on_round(done + 1, rounds)
    return [
        msgspec.structs.replace(part[0], seconds=tuple(s for m in part for s in m.seconds))
        for part in parts
    ]


def _thinned(measured: Measurement) -> Measurement:
    if len(measured.seconds) <= BURST_VALUES:
        return measured
    stretches = np.array_split(np.array(measured.seconds), BURST_VALUES)
    return msgspec.structs.replace(measured, seconds=tuple(float(np.median(s)) for s in stretches))


class Device(Protocol):
    """Somewhere an artifact can run: this host, ssh, an RPC server, an emulator."""

    @property
    def name(self) -> str: ...

    @property
    def source(self) -> Literal["device", "emulator"]: ...

    def runner(self, artifact: Artifact, threads: int = 1) -> Runner: ...
