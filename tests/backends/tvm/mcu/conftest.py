"""Lowers graphs for cores of microcontrollers and runs their C on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from effc.backends.tvm.mcu.cores import Core
from effc.backends.tvm.mcu.host_build import HostRunner
from effc.backends.tvm.mcu.lower import lower
from effc.backends.tvm.mcu.program import Program
from effc.backends.tvm.mcu.sources import write_sources
from effc.core.integers import reference

Array = np.ndarray[Any, Any]
CORES = {"generic": Core("cortex-m0plus"), "dsp": Core("cortex-m7", dsp=True)}
STRICT = (
    "-O1",
    "-Werror",
    "-pedantic",
    "-fsanitize=undefined",
    "-fsanitize-undefined-trap-on-error",
)


@pytest.fixture(params=sorted(CORES))
def core(request: pytest.FixtureRequest) -> Core:
    return CORES[request.param]


@pytest.fixture
def exact(tmp_path: Path) -> Callable[..., Program]:
    """Lower a model, run its C, and compare with the numpy reference bit for bit; gives the program."""

    def check(model: ir.Model, feeds: Mapping[str, Array], core: Core) -> Program:
        program = lower(model, core)
        write_sources(program, tmp_path / "c")
        wanted = reference.run(model, feeds)
        with HostRunner(tmp_path / "c", program.inputs, program.outputs, STRICT) as runner:
            for _ in range(2):  # the second time on memory that the first has left
                found = runner.infer(feeds)
                assert list(found) == list(wanted)
                for name, right in wanted.items():
                    assert found[name].dtype == right.dtype and found[name].shape == right.shape
                    np.testing.assert_array_equal(found[name], right, err_msg=name)
        return program

    return check
