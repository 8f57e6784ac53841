"""ONNX's node cases as kernels for a GPU, executed on the CPU: a sample of those that CPUs are held to."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from effc.backends.tvm.cuda.gpu import gpu_of
from effc.backends.tvm.cuda.lower import lower
from effc.core.errors import EffcError
from effc.core.profiles import load_profile

from .. import test_onnx_nodes as cpu
from . import walk

EVERY = 32
FLOOR = 28  # that compute something and are right


@pytest.fixture(scope="module")
def cases() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.loader import load_model_tests

        return list(load_model_tests(kind="node"))[::EVERY]


def test_a_sample_of_the_node_cases(
    cases: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = gpu_of(load_profile("h200"))
    monkeypatch.setattr(cpu, "lower", lambda model, isa: lower(model, gpu, 4))
    items = []
    for case in cases:
        try:
            items.append(cpu.lowered(case, tmp_path))
        except EffcError as error:
            assert str(error)
    library = walk.together([item.program for item in items], tmp_path)
    passed, wrong = [], {}
    for i, item in enumerate(items):
        program = item.program
        feeds = {n: item.feeds[program.public.get(n, n)] for n in program.inputs}
        found = walk.run(library, i, program, feeds)
        answers = [found[program.public.get(n, n)] for n in program.outputs]
        what = cpu.difference(item.case, answers)
        if what:
            wrong[item.case.name] = what
        elif cpu.computes(program):
            passed.append(item.case.name)
    assert not wrong
    assert len(passed) >= FLOOR
