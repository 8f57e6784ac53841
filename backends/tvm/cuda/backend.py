"""What the TVM backend does for NVIDIA GPUs: the same questions as for CPUs, answered here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from effc.core.backend import Availability
from effc.core.errors import ConfigError
from effc.core.measure import Device
from effc.core.target import Target

if TYPE_CHECKING:
    from effc.backends.tvm.program import Program

_PRECISIONS = ("fp32", "fp16", "int8")


def accepts(target: Target) -> Availability:
    """Whether a library for the GPU can be built here, in the target's precision."""
    from effc.backends.tvm.compilers import c_compiler, install_hint
    from effc.backends.tvm.cuda.gpu import gpu_of
    from effc.backends.tvm.cuda.nvrtc import HINT, find_compiler

    try:
        gpu_of(target.profile)
    except ConfigError as error:
        return Availability(False, str(error), error.hint)
    triple = target.profile.triple
    if c_compiler(triple) is None:
        return Availability(False, f"there is no C compiler for {triple}", install_hint(triple))
    if target.precision not in _PRECISIONS:
        return Availability(
            False,
            f"it does not build {target.precision} for GPUs",
            f"choose --precision {' or '.join(_PRECISIONS)}",
        )
    if find_compiler() is None:
        return Availability(False, "neither NVRTC nor nvcc is here", HINT)
    return Availability(True)


def lower(model: ir.Model, target: Target) -> Program:
    """Lower for the GPU; UnsupportedOpError lists every problem."""
    from effc.backends.tvm.cuda.gpu import gpu_of
    from effc.backends.tvm.cuda.lower import lower as lowered

    return lowered(model, gpu_of(target.profile), target.profile.cores, target.profile.name)


def compile_program(lowered: Program, out: Path) -> Mapping[str, Path]:
    """Write the library and what belongs to it."""
    from effc.backends.tvm.cuda.library import write_library

    return write_library(lowered, out)


def devices(target: Target) -> Iterable[Device]:
    """The GPU of this machine, if it runs code for the target."""
    from effc.backends.tvm.cuda.device import Gpu, runs

    found = runs(int(target.profile.toolchain["sm"]))
    return (found,) if isinstance(found, Gpu) else ()


def why_no_device(target: Target) -> str:
    """The reason of the verdict."""
    from effc.backends.tvm.cuda.device import runs

    return f"built, not executed: {runs(int(target.profile.toolchain['sm']))}"


def describe(lowered: Program) -> dict[str, Any]:
    """Facts for the report."""
    templates = Counter(c.template for c in lowered.calls)
    return {
        "isa": lowered.isa.name,
        "calls": dict(sorted(templates.items())),
        "kernels": len(lowered.kernels),
        "arena_bytes": lowered.arena_bytes,
        "arena_bound_bytes": lowered.arena_bound,
        "constant_bytes": lowered.constant_bytes,
        "constants": dict(lowered.storage),
        **({"cuda": dict(lowered.tuning)} if lowered.tuning else {}),
    }
