"""The launcher against a libcuda.so.1 of the tests' own, which checks how it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from effc.backends.tvm.cuda.gpu import gpu_of
from effc.backends.tvm.cuda.lower import lower
from effc.core.profiles import load_profile
from effc.core.shapes import infer_shapes
from effc.zoo import build

from .conftest import Worker, emulated_library


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A program and its library; its kernels are not executed."""
    model = build("tiny-conv")
    infer_shapes(model)
    program = lower(model, gpu_of(load_profile("h200")), 132)
    return program, emulated_library(program, tmp_path_factory.mktemp("tiny"))


def feeds(program: Any) -> dict[str, Any]:
    tensors = ((program.public.get(n, n), program.tensors[n]) for n in program.inputs)
    return {n: np.ones(t.shape, t.dtype) for n, t in tensors}


def test_one_graph_an_inference(tiny: tuple[Any, Path], fake_driver: Worker) -> None:
    program, library = tiny
    answer = fake_driver.ask(library, [feeds(program)] * 2)
    assert answer.get("error") is None and answer["wrong"] == ""
    kernels = [f"launch {c.kernel}" for c in program.calls if program.kernels[c.kernel].tasks]
    sizes = [program.tensors[n].bytes for n in program.inputs]
    one = [
        *(f"to device {b}" for b in sizes), "graph", *kernels,
        *(f"to host {program.tensors[n].bytes}" for n in program.outputs), "synchronize",
    ]  # fmt: skip
    constants, *journal = answer["journal"]
    assert constants.startswith("to device ")
    assert journal == ["synchronize", *one, *one, "synchronize"]


def test_times_of_calls_and_of_the_whole(tiny: tuple[Any, Path], fake_driver: Worker) -> None:
    program, library = tiny
    answer = fake_driver.ask(library, [feeds(program)], profile=True)
    assert answer["wrong"] == ""
    assert answer["profile"] == [pytest.approx(1e-3)] * len(program.calls)  # the fake clock's tick
    assert answer["times"] == [1.0] * 3


def test_another_gpu_is_refused(tiny: tuple[Any, Path], fake_driver: Worker) -> None:
    program, library = tiny
    for sm in ((8, 6), (10, 0)):
        answer = fake_driver.ask(library, [feeds(program)], sm=sm)
        assert f"this GPU is SM{sm[0]}{sm[1]}, and the model was built for SM90" in answer["error"]
        assert answer["wrong"] == ""


def test_an_image_that_the_driver_refuses(
    tiny: tuple[Any, Path], fake_driver: Worker, tmp_path: Path
) -> None:
    program, _ = tiny
    library = emulated_library(program, tmp_path, image=b"no machine code")
    answer = fake_driver.ask(library, [feeds(program)])
    assert "module_load" in answer["error"] and "(200)" in answer["error"]
    assert answer["wrong"] == "the image is no ELF file\n"  # and nothing was left behind


def test_more_memory_than_there_is(
    tiny: tuple[Any, Path], fake_driver: Worker, tmp_path: Path
) -> None:
    program, _ = tiny
    before, program.arena_bytes = program.arena_bytes, 1 << 31
    try:
        answer = fake_driver.ask(emulated_library(program, tmp_path), [feeds(program)])
    finally:
        program.arena_bytes = before
    assert "memory_alloc: out of memory (2)" in answer["error"] and answer["wrong"] == ""


def test_no_driver(tiny: tuple[Any, Path]) -> None:
    from effc.backends.tvm.cuda.device import gpu

    if gpu() != "no NVIDIA driver here":
        pytest.skip("this machine has an NVIDIA driver")
    program, library = tiny
    worker = Worker(None)
    answer = worker.ask(library, [feeds(program)])
    worker.close()
    assert "no NVIDIA driver here: libcuda.so.1 can't be loaded" in answer["error"]
