"""Machine code for GPUs made without one, and what the backend says about it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from effc.backends.tvm.backend import TvmBackend
from effc.backends.tvm.cuda import nvrtc
from effc.backends.tvm.cuda.gpu import gpu_of
from effc.backends.tvm.cuda.library import write_library
from effc.backends.tvm.cuda.lower import lower
from effc.backends.tvm.cuda.product import INSTRUCTIONS
from effc.backends.tvm.cuda.source import cuda_source, headers, launched
from effc.build import build
from effc.choices import BuildOptions, choose_backend, choose_target
from effc.core.errors import BackendUnavailable, ConfigError, LoweringError, UnsupportedOpError
from effc.core.profiles import load_profile
from effc.core.shapes import infer_shapes
from effc.core.target import Target

from .test_models import legal

needs_compiler = pytest.mark.skipif(
    nvrtc.find_compiler() is None, reason="neither NVRTC nor nvcc is here"
)


@needs_compiler
@pytest.mark.parametrize(
    ("precision", "architectures"), [("fp16", (75, 80, 87, 90, 120)), ("int8", (75, 80, 90))]
)
def test_machine_code_without_a_gpu(precision: str, architectures: tuple[int, ...]) -> None:
    """Registers, shared memory and tensor-core instructions of a model's kernels."""
    model, _ = legal("tiny-conv", precision)
    program = lower(model, gpu_of(load_profile("h200")), 1)
    kernels = {k.name: k for k in launched(program) if k.tasks}
    wanted = {k.func.multiply for k in kernels.values()} - {""}
    assert wanted <= set(INSTRUCTIONS.values()) and wanted
    for sm in architectures:
        made = nvrtc.compiler().compile(cuda_source(program), headers(), sm)
        assert made.image.startswith(b"\x7fELF")
        assert set(made.usage) == set(kernels)
        for name, usage in made.usage.items():
            assert usage.spills == 0, name
            assert 0 < usage.registers <= 255
            assert usage.shared == kernels[name].func.shared <= 48 << 10
            entry = made.ptx.partition(f".entry {name}(")[2].partition(".entry ")[0]
            if sm >= 80:
                assert (kernels[name].func.multiply in entry) or not kernels[name].func.multiply
            elif kernels[name].func.multiply:
                assert re.search(r"mma\.sync\.aligned\.(m16n8k8|m8n8k16)", entry)


@needs_compiler
def test_a_kernel_that_can_t_be_compiled_is_located() -> None:
    with pytest.raises(LoweringError, match=r"can't compile for SM90: .*undefined_name"):
        nvrtc.compiler().compile("__global__ void k(int *p) { *p = undefined_name; }", {}, 90)


def test_what_ptxas_says() -> None:
    log = """ptxas info    : Compiling entry function 'k1' for 'sm_90'
ptxas info    : Function properties for k1
    8 bytes stack frame, 12 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 10240 bytes smem
ptxas info    : Compiling entry function 'k2' for 'sm_90'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers"""
    assert nvrtc.read_usage(log) == {
        "k1": nvrtc.Usage(40, 16, 10240),
        "k2": nvrtc.Usage(10, 0, 0),
    }


@needs_compiler
def test_the_same_program_gives_the_same_files(tmp_path: Path) -> None:
    model, _ = legal("tiny-conv", "fp16")
    files = []
    for name in ("a", "b"):
        program = lower(model, gpu_of(load_profile("l4")), 58)
        made = write_library(program, tmp_path / name)
        files.append({role: p.read_bytes() for role, p in made.items()})
    assert files[0] == files[1]
    assert set(files[0]) == {"library", "header", "cuda header", "kernels"}
    assert program.tuning["compiled"]["spilled"] == []


@needs_compiler
def test_a_build_says_that_nothing_was_executed(tmp_path: Path) -> None:
    from effc.backends.tvm.cuda.device import gpu

    if not isinstance(gpu(), str):
        pytest.skip("this machine has a GPU")
    options = BuildOptions(backend="tvm", precision="fp16")
    made = build("zoo:tiny-conv", "h200", tmp_path / "g", options).artifact.manifest
    assert made.verdict.status == "not run"
    assert made.verdict.reason == f"built, not executed: {gpu()}"
    assert made.details["cuda"]["compiled"]["tensor_cores"] > 0
    assert made.measurements == ()


def test_what_has_no_kernel_is_refused_with_its_node() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[2, 3] x, float[4, 3, 3, 3] w, float[1, 3, 8, 8] i)'
        " => (float[1, 4, 6, 6] y, double[2, 2] z) {"
        " y = Conv(i, w) d = Cast<to = 11>(x) z = MatMul(d, e) }"
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((3, 2)), "e"))
    model = ir.from_proto(proto)
    infer_shapes(model)
    target = Target(load_profile("h200"))
    with pytest.raises(UnsupportedOpError) as error:
        TvmBackend().lower(model, target)
    reasons = {p.op: p.reason for p in error.value.problems}
    assert "computed at run time" in reasons["Conv"]
    assert reasons["MatMul"] == "products of float64 have no kernel for GPUs here"
    assert all(p.remedy for p in error.value.problems)
    assert [p.op for p in TvmBackend().check(model, target)] == ["Conv", "MatMul"]


def test_an_old_gpu_and_other_precisions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = load_profile("h200")
    import msgspec

    old = msgspec.structs.replace(profile, toolchain={"sm": "61"})
    with pytest.raises(ConfigError, match="SM 61 is older than 75"):
        gpu_of(old)
    backend = TvmBackend()
    assert "older than 75" in backend.accepts(Target(old)).reason
    monkeypatch.setattr(nvrtc, "find_compiler", lambda: None)
    refused = backend.accepts(Target(profile))
    assert refused.reason == "neither NVRTC nor nvcc is here" and "effc[cuda]" in refused.hint
    assert "does not build bf16" in backend.accepts(Target(profile, precision="bf16")).reason
    with pytest.raises(ConfigError, match="nothing to tune"):
        backend.tune(None, Target(profile), None, None)  # type: ignore[arg-type]


@needs_compiler
def test_the_road_taken_where_tensorrt_s_toolchain_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from effc.backends.tensorrt.backend import TensorRTBackend
    from effc.core.backend import Availability

    missing = Availability(False, "its compiler is not installed", "pip install it")
    monkeypatch.setattr(TensorRTBackend, "accepts", lambda self, target: missing)
    options = BuildOptions(precision="fp16")
    target = choose_target("rtx-4090", options)
    assert choose_backend(target, options).id == "tvm"
    said = capsys.readouterr().err
    assert "'tensorrt' can't build for rtx-4090: its compiler is not installed; 'tvm' does" in said
    named = replace(options, backend="tensorrt")
    with pytest.raises(BackendUnavailable, match="its compiler is not installed"):
        choose_backend(target, named)


def test_jetson_s_launcher_is_linked_for_its_processor() -> None:
    isa: Any = gpu_of(load_profile("jetson-agx-orin"))
    assert isa.name == "sm_87" and isa.triple.startswith("aarch64")
