"""Finishing an engine: goldens compared, times taken in. The GPU is onnxruntime on the source model here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

pytest.importorskip("tensorrt_rtx")

from effc.artifacts import load_artifact  # noqa: E402
from effc.backends.tensorrt.finish import finish, read_goldens  # noqa: E402
from effc.build import build  # noqa: E402
from effc.choices import BuildOptions  # noqa: E402
from effc.core.artifact import Artifact  # noqa: E402
from effc.core.errors import ConfigError  # noqa: E402
from effc.core.measure import Array, Feeds, Runner  # noqa: E402
from effc.core.reference import OnnxRuntimeRunner  # noqa: E402
from effc.sources import load  # noqa: E402


class Wrong(OnnxRuntimeRunner):
    """Answers that are far off."""

    def infer(self, feeds: Feeds) -> dict[str, Array]:
        return {n: np.roll(a, 1, axis=-1) for n, a in super().infer(feeds).items()}


@dataclass(frozen=True)
class Gpu:
    right: bool = True
    name: str = "a stand-in"
    source: Literal["device", "emulator"] = "device"

    def runner(self, artifact: Artifact, threads: int = 1) -> Runner:
        kind = OnnxRuntimeRunner if self.right else Wrong
        return kind(load("zoo:tiny-conv", {}).model)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    place = tmp_path_factory.mktemp("finish") / "e"
    build("zoo:tiny-conv", "rtx-3060", place, BuildOptions(precision="fp16"))
    return load_artifact(place)


def test_answers_are_held_to_what_was_recorded(artifact: Artifact) -> None:
    done = finish(artifact, Gpu()).manifest
    assert done.verdict.status == "passed" and done.verdict.samples == 4
    assert "ROUNDED" in done.verdict.reason
    (measured,) = done.measurements
    assert len(measured.seconds) == 100 and "layer_times" in done.details
    assert done.details["fusion"] == artifact.manifest.details["fusion"]
    wrong = finish(artifact, Gpu(right=False)).manifest.verdict
    assert wrong.status == "failed" and "SQNR" in wrong.reason


def test_without_goldens_nothing_is_finished(artifact: Artifact, tmp_path: Path) -> None:
    feeds, answers = read_goldens(artifact)
    assert len(feeds) == len(answers) == 4 and feeds[0]["image"].shape == (1, 3, 32, 32)
    for content in (b"", b"no archive"):
        (tmp_path / "goldens.npz").write_bytes(content)
        with pytest.raises(ConfigError, match="holds no goldens"):
            read_goldens(Artifact(tmp_path, artifact.manifest))
