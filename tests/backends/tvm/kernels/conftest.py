"""Compiles kernels with LLVM, links them with the C compiler and calls them through ctypes."""

from __future__ import annotations

import ctypes
import itertools
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")

from effc.backends.tvm import tir  # noqa: E402
from effc.backends.tvm.isa import Isa, host_isa, isa_of  # noqa: E402
from effc.backends.tvm.layout import TensorType  # noqa: E402
from effc.backends.tvm.program import Kernel  # noqa: E402
from effc.core.profiles import load_profile  # noqa: E402

GUARD = 64  # bytes after each buffer that no kernel may touch
Call = Callable[..., list[np.ndarray]]


def isas() -> list[Isa]:
    """The host's ISA and the narrower ones that it can run."""
    host = host_isa()
    found = [host]
    if host.lanes == 16:
        found.append(isa_of(load_profile("x86-avx2")))
    if host.lanes >= 8:
        # four lanes and as many registers as NEON has, encoded for this processor
        found.append(replace(host, name="neon-like", lanes=4))
    return found


ISAS = isas()


def _guarded(array: np.ndarray) -> np.ndarray:
    """The array's bytes, misaligned to its element size, then a guard of 0x55."""
    raw = np.full(array.nbytes + GUARD + 64 + array.itemsize, 0x55, "uint8")
    start = -raw.ctypes.data % 64 + array.itemsize
    raw[start : start + array.nbytes] = np.ascontiguousarray(array).ravel().view("uint8")
    return raw[start : start + array.nbytes + GUARD]


def call(kernel: Kernel, function: Any, arrays: Sequence[np.ndarray], splits: int) -> np.ndarray:
    """Run `tasks` in `splits` parts, last first; returns the physical output."""
    out = kernel.params[0]
    unset = np.nan if np.dtype(out.dtype).kind == "f" else 0x55
    buffers = [_guarded(np.full(out.elements, unset, out.dtype))]
    for tensor, array in zip(kernel.params[1:], arrays, strict=True):
        assert array.size == tensor.elements, (tensor, array.shape)
        buffers.append(_guarded(array))
    pointers = [ctypes.c_void_p(b.ctypes.data) for b in buffers]
    if kernel.scratch_bytes:
        scratch = _guarded(np.zeros(kernel.scratch_bytes, "uint8"))
        buffers.append(scratch)
        pointers.insert(0, ctypes.c_void_p(scratch.ctypes.data))
    cuts = [kernel.tasks * i // splits for i in range(splits + 1)]
    for begin, end in reversed(list(itertools.pairwise(cuts))):
        function(*pointers, begin, end)
    for b in buffers:
        assert (b[-GUARD:] == 0x55).all(), "wrote past the end of a buffer"
    return buffers[0][:-GUARD].view(out.dtype).copy()


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Call]:
    """`compiled(isa, kernels)` gives `run(name, *physical arrays) -> logical output`.

    It checks that padding lanes of the output are zeros, and that nothing past the ends is written.
    """

    def build(isa: Isa, kernels: Sequence[Kernel], splits: int = 3) -> Any:
        folder: Path = tmp_path_factory.mktemp("kernels")
        module = tir.llvm_module([k.func for k in kernels], isa.target())
        module.write_to_file(str(folder / "k.o"), "o")
        subprocess.run(
            ["cc", "-shared", "-o", str(folder / "k.so"), str(folder / "k.o"), "-lm"], check=True
        )
        library = ctypes.CDLL(str(folder / "k.so"))
        table = {k.name: k for k in kernels}

        def run(name: str, *arrays: np.ndarray) -> np.ndarray:
            kernel = table[name]
            physical = call(kernel, getattr(library, name), arrays, splits)
            out: TensorType = kernel.params[0]
            logical = out.layout.unpack(physical, out.shape)
            if out.layout.block:
                again = out.layout.pack(logical).ravel()
                np.testing.assert_array_equal(physical, again, "padding lanes hold zeros")
            return logical

        return run

    return build
