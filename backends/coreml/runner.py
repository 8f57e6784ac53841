"""Where a package runs: in effc's interpreter anywhere, and in Core ML on a Mac."""

from __future__ import annotations

import importlib
import importlib.util
import platform
import time
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from effc.backends.coreml.convert.call import saturate
from effc.backends.coreml.interface import Port
from effc.core.artifact import Artifact
from effc.core.errors import ConfigError, DeviceError
from effc.core.measure import Array, Feeds, Measurement, Runner

_INTERPRETER = "effc.backends.coreml.interpret"
UNITS = ("ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE")


def interpreter_here() -> bool:
    found = importlib.util.find_spec(_INTERPRETER)
    if found is None:
        return False
    return hasattr(importlib.import_module(_INTERPRETER), "Interpreter")


def on_macos() -> bool:
    return platform.system() == "Darwin"


def package_of(artifact: Artifact) -> Path:
    """The folder of the artifact's package."""
    name = artifact.manifest.details.get("package", "")
    if not name or not (artifact.path / str(name)).is_dir():
        raise ConfigError(
            f"artifact {str(artifact.path)!r} holds no .mlpackage", hint="build it again"
        )
    return artifact.path / str(name)


def ports_of(artifact: Artifact) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """The interface, from the manifest."""
    details = artifact.manifest.details.get("interface", {})
    inputs, outputs = (
        tuple(Port.from_description(d) for d in details.get(role, ()))
        for role in ("inputs", "outputs")
    )
    return inputs, outputs


def packed(port: Port, array: Array) -> Any:
    """A tensor of the source as the package takes it: integers as int32, a picture as Pillow's image."""
    if port.image is not None:
        return port.image.image(array)
    if port.kind == "int32":
        wide = np.minimum(array, np.iinfo(np.int64).max) if array.dtype == np.uint64 else array
        whole = saturate(wide)
        return whole if port.open else whole.reshape(port.mil_shape)
    number = {"fp32": np.float32, "fp16": np.float16}[port.kind]
    given = np.asarray(array, number)
    return given if port.open else given.reshape(port.mil_shape)


def unpacked(port: Port, array: Any) -> Array:
    """An output of the package as the source has it."""
    found = np.asarray(array)
    if not port.open:
        found = found.reshape(port.shape)
    if port.dtype == "bool":
        found = found != 0
    result: Array = found.astype(np.dtype(port.dtype))
    return result


@dataclass(frozen=True, slots=True)
class Interpreted:
    """effc's interpreter of the saved package's MIL. Its times mean nothing."""

    name: str = "coreml interpreter"
    source: Literal["device", "emulator"] = "emulator"
    how: str = "interpreted"

    def runner(self, artifact: Artifact, threads: int = 1) -> Runner:
        return InterpreterRunner(artifact)


@dataclass(frozen=True, slots=True)
class Mac:
    """Core ML of this Mac, on some of its compute units."""

    units: str = "ALL"
    source: Literal["device", "emulator"] = "device"
    how: str = "predicted on macOS"

    @property
    def name(self) -> str:
        return f"macOS {platform.mac_ver()[0]}, {self.units}"

    def runner(self, artifact: Artifact, threads: int = 1) -> Runner:
        return MacRunner(artifact, self.units, self.name)


class PackageRunner(Runner):
    """What both runners share: names, types and shapes of the source outside, those of the package inside."""

    source: Literal["device", "emulator"]

    def __init__(self, artifact: Artifact, device: str) -> None:
        self.package = package_of(artifact)
        self.inputs, self.outputs = ports_of(artifact)
        self.device = device

    @abstractmethod
    def predict(self, feeds: dict[str, Any]) -> dict[str, Any]:
        """The package's outputs for its inputs, both by their names in the package."""

    def infer(self, feeds: Feeds) -> dict[str, Array]:
        given = {}
        for port in self.inputs:
            if port.name not in feeds:
                raise ConfigError(f"input {port.name!r} is missing")
            array = np.asarray(feeds[port.name])
            if not port.accepts(array.shape):
                raise ConfigError(
                    f"input {port.name!r} has the shape {list(array.shape)} instead of {port.described()}"
                )
            given[port.mil] = packed(port, array)
        found = self.predict(given)
        return {port.name: unpacked(port, found[port.mil]) for port in self.outputs}

    def time(self, feeds: Feeds, repeats: int) -> Measurement:
        given = {p.mil: packed(p, np.asarray(feeds[p.name])) for p in self.inputs}
        self.predict(given)
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            self.predict(given)
            seconds.append(time.perf_counter() - start)
        return Measurement(self.source, self.device, "effc coreml", 1, tuple(seconds))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class InterpreterRunner(PackageRunner):
    """Runs the saved package in effc's interpreter."""

    source = "emulator"

    def __init__(self, artifact: Artifact) -> None:
        super().__init__(artifact, "coreml interpreter")
        self._interpreter: Any = None

    def __enter__(self) -> Self:
        from effc.backends.coreml.package import quiet

        with quiet():
            module = importlib.import_module(_INTERPRETER)
            self._interpreter = module.Interpreter(self.package)
        return self

    def predict(self, feeds: dict[str, Any]) -> dict[str, Any]:
        return dict(self._interpreter.predict(feeds))


class MacRunner(PackageRunner):
    """Runs the package in Core ML, which compiles it first."""

    source = "device"

    def __init__(self, artifact: Artifact, units: str, device: str) -> None:
        super().__init__(artifact, device)
        self.units = units
        self._model: Any = None

    def __enter__(self) -> Self:
        if not on_macos():
            raise DeviceError(
                "Core ML runs on macOS only", hint="copy the artifact to a Mac and run effc finish"
            )
        import coremltools as ct

        self._model = ct.models.MLModel(
            str(self.package), compute_units=getattr(ct.ComputeUnit, self.units)
        )
        return self

    def predict(self, feeds: dict[str, Any]) -> dict[str, Any]:
        return dict(self._model.predict(feeds))

    def compiled(self) -> str:
        """The path of the compiled model, for MLComputePlan."""
        return str(self._model.get_compiled_model_path())
