"""Compiles kernels into one library and calls them on logical numpy arrays."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm")
import tvm  # noqa: E402

from effc.backends.tvm import tir  # noqa: E402
from effc.backends.tvm.layout import TensorType  # noqa: E402
from effc.backends.tvm.program import Kernel  # noqa: E402


def host_cpu() -> str:
    return str(tvm.get_global_func("target.llvm_get_system_cpu")())


class Library:
    """Kernels by name; `lib(name, *inputs)` gives the logical outputs."""

    def __init__(self, kernels: list[Kernel], folder: Path) -> None:
        self.kernels = {k.name: k for k in kernels}
        target = tvm.target.Target({"kind": "llvm", "mcpu": host_cpu()})
        self.module = tir.llvm_module([k.func for k in kernels], target)
        self.module.write_to_file(str(folder / "k.o"))
        subprocess.run(
            ["gcc", "-shared", "-o", str(folder / "k.so"), str(folder / "k.o"), "-lm"], check=True
        )
        self.lib = ctypes.CDLL(str(folder / "k.so"))

    def asm(self) -> str:
        return str(self.module.inspect_source("asm"))

    def __call__(self, name: str, *inputs: np.ndarray, split: int = 3) -> list[np.ndarray]:
        kernel = self.kernels[name]
        outs = [self._empty(t) for t in kernel.params[: kernel.outputs]]
        ins = [
            np.ascontiguousarray(t.layout.pack(np.asarray(a, _np(t.dtype))))
            for t, a in zip(kernel.params[kernel.outputs :], inputs, strict=True)
        ]
        buffers = [*outs, *ins]
        if kernel.scratch_bytes:
            buffers = [np.zeros(kernel.scratch_bytes, "uint8"), *buffers]
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in buffers]
        step = max(1, -(-kernel.tasks // split))  # any partition, any order, gives the same bits
        for begin in reversed(range(0, kernel.tasks, step)):
            self.lib[name](
                *pointers, ctypes.c_int(begin), ctypes.c_int(min(begin + step, kernel.tasks))
            )
        result = []
        for t, a in zip(kernel.params[: kernel.outputs], outs, strict=True):
            logical = t.layout.unpack(a, t.shape)
            if t.layout.block and t.shape[1] % t.layout.block:
                lanes = np.moveaxis(a.reshape(t.layout.physical_shape(t.shape)), -1, 2)
                flat = lanes.reshape(t.shape[0], -1, *t.shape[2:])
                assert not np.any(flat[:, t.shape[1] :]), "padding lanes hold zeros"
            result.append(logical)
        return result

    @staticmethod
    def _empty(t: TensorType) -> np.ndarray:
        a = np.empty(t.elements, _np(t.dtype))
        a.view("uint8").fill(0x55)
        return a


def _np(dtype: str) -> str:
    return "bool" if dtype == "bool" else dtype


@pytest.fixture
def compile_kernels(tmp_path: Path):
    """`compile_kernels(kernels) -> Library`."""
    return lambda kernels: Library(list(kernels), tmp_path)
