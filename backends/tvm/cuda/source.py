"""A Program's kernels as one CUDA C source."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from effc.backends.tvm.cuda.kernel import CudaSource
from effc.backends.tvm.program import Kernel, Program

RUNTIME = Path(__file__).parent / "runtime"
HEADERS = ("effc_cuda.cuh", "product.cuh")


def launched(program: Program) -> list[Kernel]:
    """The kernels that are called, each once, in the order of their first calls."""
    return [program.kernels[n] for n in dict.fromkeys(c.kernel for c in program.calls)]


def source_of(kernel: Kernel) -> CudaSource:
    """How a kernel for GPUs is printed and launched."""
    assert isinstance(kernel.func, CudaSource)
    return kernel.func


def headers() -> Mapping[str, str]:
    """What the source includes, by name."""
    return {name: (RUNTIME / name).read_text() for name in HEADERS}


def cuda_source(program: Program) -> str:
    """All kernels of `program`."""
    kernels = [source_of(k) for k in launched(program) if k.tasks]
    include = "product.cuh" if any(k.product for k in kernels) else "effc_cuda.cuh"
    return "\n\n".join([f'#include "{include}"', *(k.source for k in kernels), ""])
