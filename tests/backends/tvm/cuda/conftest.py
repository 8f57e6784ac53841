"""Executes programs for GPUs without one: the kernels' CUDA C compiled for the CPU, on a fake driver."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("tvm")
if shutil.which("g++") is None:
    pytest.skip("g++ is needed to execute kernels on the CPU", allow_module_level=True)

from effc.backends.tvm.cuda import library  # noqa: E402
from effc.backends.tvm.cuda.gpu import gpu_of  # noqa: E402
from effc.backends.tvm.cuda.lower import lower  # noqa: E402
from effc.backends.tvm.cuda.source import launched  # noqa: E402
from effc.backends.tvm.library import link  # noqa: E402
from effc.backends.tvm.program import Program  # noqa: E402
from effc.backends.tvm.storing import store_constants  # noqa: E402
from effc.core.profiles import load_profile  # noqa: E402

from . import walk  # noqa: E402

Array = np.ndarray[Any, Any]
HERE = Path(__file__).parent / "emulator"


def emulated_library(program: Program, folder: Path, image: bytes = b"\x7fELF, of nothing") -> Path:
    """model.so of `program` with the launcher, and an image that only the fake driver takes."""
    constants = store_constants(program)
    library.write_sources(program, constants, image, folder)
    coded = ["decode.c"] if constants.coded else []
    link(folder, ["model.c", "launcher.c", *coded, "-ldl"], "model.so")
    return folder / "model.so"


class Worker:
    """A process whose libcuda.so.1 is the fake one, or that has none."""

    def __init__(self, folder: Path | None) -> None:
        environment = dict(os.environ)
        arguments: list[str] = []
        if folder is not None:
            environment["LD_LIBRARY_PATH"] = str(folder)
            arguments = [str(folder / "libcuda.so.1")]
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "worker.py"), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )

    def ask(
        self,
        library: Path,
        feeds: Sequence[Mapping[str, Array]],
        kernels: Path | None = None,
        *,
        reverse: bool = False,
        sm: tuple[int, int] = (9, 0),
        profile: bool = False,
    ) -> dict[str, Any]:
        """What the model answers: outputs, journal, wrong, or error."""
        task = {
            "library": str(library), "feeds": list(feeds), "kernels": str(kernels or ""),
            "reversed": reverse, "sm": sm, "profile": profile,
        }  # fmt: skip
        assert self.process.stdin is not None and self.process.stdout is not None
        pickle.dump(task, self.process.stdin)
        self.process.stdin.flush()
        found: dict[str, Any] = pickle.load(self.process.stdout)
        return found

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


@pytest.fixture(scope="session")
def fake_driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """A process with the fake driver."""
    folder = tmp_path_factory.mktemp("fake-cuda")
    command = ["g++", "-std=c++17", "-O1", "-fPIC", "-shared", "-Wl,-soname,libcuda.so.1"]
    command += [str(HERE / "fake_cuda.cpp"), "-o", str(folder / "libcuda.so.1"), "-ldl"]
    subprocess.run(command, check=True, timeout=300)
    worker = Worker(folder)
    yield worker
    worker.close()


@dataclass
class Executed:
    """A program, its libraries, and the process that executes them."""

    program: Program
    kernels: Path
    library: Path
    worker: Worker

    def run(self, feeds: Mapping[str, Array], reverse: bool = False) -> dict[str, Array]:
        """The outputs; nothing may be wrong about the launcher's calls."""
        answer = self.worker.ask(self.library, [feeds], self.kernels, reverse=reverse)
        assert answer.get("error") is None and answer["wrong"] == "", answer
        outputs: dict[str, Array] = answer["outputs"][0]
        return outputs


@pytest.fixture(scope="session")
def execute(fake_driver: Worker, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Lower a model for an H200 and compile its kernels for this CPU."""

    def make(model: ir.Model, cores: int = 4) -> Executed:
        program = lower(model, gpu_of(load_profile("h200")), cores)
        folder = tmp_path_factory.mktemp("program")
        kernels = walk.compiled({k.name: k for k in launched(program) if k.tasks}, folder)
        return Executed(program, kernels, emulated_library(program, folder), fake_driver)

    return make
