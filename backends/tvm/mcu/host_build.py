"""The firmware's C, compiled for this machine: for tests, simulation, and where no emulator is."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np

from effc.backends.tvm.library import c_compiler
from effc.backends.tvm.mcu.program import Border, border_of
from effc.backends.tvm.mcu.sources import FILES
from effc.core.artifact import Artifact
from effc.core.errors import BackendUnavailable, DeviceError, LoweringError
from effc.core.measure import Array, Feeds, Measurement, Runner

SOURCES = "firmware"  # the folder of the artifact that holds the C files
NAME = "host build of the firmware's C"
FLAGS = ("-std=c99", "-O2", "-Wall", "-Wextra")


@dataclass(frozen=True, slots=True)
class HostBuild:
    """This machine, running the same C as the microcontroller. Never timed as the device."""

    name: str = NAME
    source: Literal["device", "emulator"] = "emulator"
    how: str = f"answers of the {NAME}"

    def runner(self, artifact: Artifact, threads: int = 1) -> Runner:
        described = artifact.manifest.details[SOURCES]
        return HostRunner(
            artifact.path / SOURCES,
            [border_of(b) for b in described["inputs"]],
            [border_of(b) for b in described["outputs"]],
        )


class HostRunner(Runner):
    """A firmware's sources, compiled into a library of this process while the `with` lasts."""

    def __init__(
        self,
        sources: Path,
        inputs: Sequence[Border],
        outputs: Sequence[Border],
        flags: Sequence[str] = (),
    ) -> None:
        self.sources, self.inputs, self.outputs = sources, inputs, outputs
        self.flags = tuple(flags)
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._library: ctypes.CDLL | None = None

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="effc-")
        path = Path(self._folder.name) / "firmware.so"
        try:
            compile_library(self.sources, path, self.flags)
            library = ctypes.CDLL(str(path))
        except BaseException:
            self._folder.cleanup()
            raise
        for kind in ("input", "output"):
            getattr(library, f"effc_{kind}").restype = ctypes.c_void_p
            getattr(library, f"effc_{kind}_bytes").restype = ctypes.c_size_t
        self._library = library
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # the library stays mapped until the process ends; its file may go
        self._library = None
        if self._folder is not None:
            self._folder.cleanup()

    def infer(self, feeds: Feeds) -> dict[str, Array]:
        library = self._library
        if library is None:
            raise RuntimeError("the runner is used outside its with block")
        for index, border in enumerate(self.inputs):
            if border.name not in feeds:
                raise DeviceError(f"input {border.name!r} is not fed")
            packed = border.pack(feeds[border.name])
            ctypes.memmove(library.effc_input(index), packed.ctypes.data, packed.nbytes)
        status = library.effc_invoke()
        if status:
            raise DeviceError(f"effc_invoke returned {status}")
        found = {}
        for index, border in enumerate(self.outputs):
            stored = np.empty(border.tensor.count, border.tensor.dtype)
            ctypes.memmove(stored.ctypes.data, library.effc_output(index), stored.nbytes)
            found[border.name] = border.unpack(stored)
        return found

    def time(self, feeds: Feeds, repeats: int) -> Measurement:
        """Nothing: times of this machine say nothing of the microcontroller."""
        raise DeviceError(
            f"the {NAME} is not timed",
            hint="measure on the board, or count instructions in an emulator",
        )


def compile_library(sources: Path, out: Path, flags: Sequence[str] = ()) -> None:
    """The model and its kernels as the shared library `out`. LoweringError with the compiler's words."""
    compiler = c_compiler()
    if compiler is None:
        raise BackendUnavailable("there is no C compiler", hint="install gcc or clang, or set CC")
    files = [str(sources / name) for name in FILES if name.endswith(".c")]
    command = [*compiler, *FLAGS, *flags, "-shared", "-fPIC", *files, "-lm", "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise LoweringError(f"the C compiler refused the firmware: {done.stderr.strip()[:400]}")
