"""Runs an artifact's library on this machine."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np

from effc.core.artifact import Artifact
from effc.core.measure import Array, Feeds, LayerTime, Measurement, Runner
from effc.core.native import Model

LIBRARY = "model.so"


@dataclass(frozen=True, slots=True)
class Host:
    """This machine's CPU."""

    name: str = "host"
    source: Literal["device", "emulator"] = "device"

    def runner(self, artifact: Artifact, threads: int = 1) -> Runner:
        return LibraryRunner(artifact.path / LIBRARY, threads)


class LibraryRunner(Runner):
    """A model library in this process."""

    def __init__(self, path: Path, threads: int = 1, name: str = "effc") -> None:
        self.path, self.threads, self.name = path, threads, name
        self._model: Model | None = None

    def __enter__(self) -> Self:
        self._model = Model(self.path, self.threads)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._model is not None:
            self._model.close()
            self._model = None

    @property
    def model(self) -> Model:
        if self._model is None:
            raise RuntimeError("the runner is used outside its with block")
        return self._model

    def infer(self, feeds: Feeds) -> dict[str, Array]:
        return self.model.run(feeds)

    def time(self, feeds: Feeds, repeats: int) -> Measurement:
        model = self.model
        model.run(feeds)
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            model.run(feeds)
            seconds.append(time.perf_counter() - start)
        return Measurement(
            "device",
            "host",
            self.name,
            self.threads,
            tuple(seconds),
            peak_bytes=model.arena_bytes,
        )

    def layers(self, feeds: Feeds, repeats: int) -> list[LayerTime]:
        runs = [self.model.profile(feeds) for _ in range(repeats + 1)][1:]
        return [
            LayerTime(
                call[0].nodes[0],
                call[0].template,
                call[0].nodes,
                float(np.median([c.seconds for c in call])),
            )
            for call in zip(*runs, strict=True)
        ]
