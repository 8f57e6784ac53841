"""The ONNX files of a bundle in onnxruntime: what can be proven of it where its device is not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import msgspec

from effc.backends.tensorrt.finish import read_goldens
from effc.core.artifact import Artifact
from effc.core.errors import ConfigError, VerificationError
from effc.core.measure import Array, Feeds, Measurement, Runner
from effc.core.reference import OnnxRuntimeRunner
from effc.core.verify import compare_outputs

DESCRIPTION = "bundle.json"


@dataclass(frozen=True, slots=True)
class Bundled:
    """onnxruntime on the bundle's main ONNX file, the others held to the goldens. Times mean nothing."""

    name: str = "onnxruntime"
    source: Literal["device", "emulator"] = "emulator"
    how: str = "ONNX of the bundle in onnxruntime; engine not built: no Jetson here"

    def runner(self, artifact: Artifact, threads: int = 1) -> Runner:
        return BundleRunner(artifact, threads)


def describe(folder: Path) -> dict[str, Any]:
    """The bundle's own description; ConfigError where there is none."""
    try:
        return dict(msgspec.json.decode((folder / DESCRIPTION).read_bytes()))
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(
            f"{str(folder)!r} is no bundle: {error}", hint="build it again"
        ) from error


class BundleRunner(Runner):
    """Runs the main form as the newest TensorRT gets it; other files must agree with the goldens first."""

    def __init__(self, artifact: Artifact, threads: int) -> None:
        self.artifact = artifact
        self.description = describe(artifact.path)
        main = self.description["forms"][self.description["main"]]
        self.file = str(main["strong"]["file"])
        self._runner = OnnxRuntimeRunner(
            artifact.path / self.file, threads=threads, integer_kernels=False
        )

    def __enter__(self) -> Self:
        self._check_others()
        self._runner.__enter__()
        return self

    def _check_others(self) -> None:
        feeds, goldens = read_goldens(self.artifact)
        for name, file, limit in onnx_files(self.description):
            if file == self.file:
                continue
            path = self.artifact.path / file
            with OnnxRuntimeRunner(path, integer_kernels=False) as runner:
                answers = [runner.infer(f) for f in feeds]
            for e in compare_outputs(goldens, answers):
                if e.sqnr_db is not None and not e.sqnr_db >= limit:
                    raise VerificationError(
                        f"{file} (form {name}) of the bundle: output {e.name!r} has SQNR {e.sqnr_db:.1f} dB,"
                        f" {limit:g} dB are asked",
                        hint="give representative samples, or take --precision auto",
                    )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._runner.__exit__(kind, error, trace)

    def infer(self, feeds: Feeds) -> dict[str, Array]:
        return self._runner.infer(feeds)

    def time(self, feeds: Feeds, repeats: int) -> Measurement:
        timed = self._runner.time(feeds, repeats)
        return msgspec.structs.replace(timed, source="emulator", device="onnxruntime")


def onnx_files(description: dict[str, Any]) -> list[tuple[str, str, float]]:
    """(form, file, least SQNR in decibels) of every ONNX file, each once."""
    found = {}
    for form, entry in description["forms"].items():
        for typing in ("strong", "weak"):
            found[entry[typing]["file"]] = (
                form,
                entry[typing]["file"],
                float(entry["min_sqnr_db"]),
            )
    return list(found.values())
