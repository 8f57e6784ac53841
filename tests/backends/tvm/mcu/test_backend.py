"""Boards as targets: the build, its verdict, and what does not fit."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from effc.backends.tvm.backend import TvmBackend
from effc.backends.tvm.mcu.device.toolchain import missing
from effc.build import build
from effc.choices import BuildOptions
from effc.core.artifact import load_artifact
from effc.core.errors import LoweringError
from effc.core.profiles import load_profile
from effc.core.target import Target

from ..integer_graphs import Graph
from .test_lower import conv


def wide(side: int) -> ir.Model:
    g = Graph()
    x = g.input("int8", (1, 3, side, side))
    y = conv(g, x, 16, (3, 3), pads=(1, 1, 1, 1))
    g.output(conv(g, y, 16, (3, 3), pads=(1, 1, 1, 1)))
    return g.model()


def test_routes() -> None:
    backend, target = TvmBackend(), Target(load_profile("stm32f746"))
    assert backend.quantization(target) == "integer"
    assert "rounding=fixed" in backend.legalize(target)
    assert not backend.accepts(Target(target.profile, precision="bf16")).ok
    assert not backend.accepts(Target(target.profile, options={"device": "moon"})).ok


def test_what_does_not_fit_is_refused_with_its_remedy() -> None:
    backend, target = TvmBackend(), Target(load_profile("stm32f746"))
    program = backend.lower(wide(64), target)
    assert 16 * 64 * 64 < program.plan.bytes < 2 * 16 * 64 * 64
    with pytest.raises(LoweringError, match="bytes too many") as refused:
        backend.lower(wide(160), target)
    assert "Conv_v1" in str(refused.value)
    assert "an input of about" in refused.value.hint and "stm32h743" in refused.value.hint


@pytest.mark.slow
def test_build_and_host_build(tmp_path: Path) -> None:
    lacking = missing(load_profile("stm32f746"))
    if lacking is not None:
        pytest.skip(f"needs {lacking[0]}: {lacking[1]}")
    options = BuildOptions(precision="int8", backend_options={"device": "host"}, measure=False)
    build("zoo:tiny-mlp", "stm32f746", tmp_path / "out", options)
    manifest = load_artifact(tmp_path / "out").manifest
    assert manifest.verdict.status == "passed"
    assert "host build of the firmware's C" in manifest.verdict.reason
    assert {"firmware/model.h", "firmware/model.c", "firmware.elf"} <= set(manifest.files)
    assert manifest.details["arena_bytes"] >= manifest.details["arena_bound_bytes"] > 0
