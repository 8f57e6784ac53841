"""Walks over a program's calls in this process: kernels compiled for the CPU, tensors in numpy."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from effc.backends.tvm.cuda.source import HEADERS, RUNTIME, launched, source_of
from effc.backends.tvm.program import Kernel, Program

Array = np.ndarray[Any, Any]
HERE = Path(__file__).parent / "emulator"
# products and sums are rounded apart, as the CUDA sources ask for where it matters
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-shared", "-w", "-ffp-contract=off", "-fno-strict-aliasing")


def compiled(kernels: Mapping[str, Kernel], folder: Path) -> Path:
    """Kernels under the given names as a library: `launch_<name>(arguments, grid, block, reversed)`."""
    lines = ['#include "emulate.h"', '#include "product.cuh"']
    for unique, kernel in kernels.items():
        source = source_of(kernel)
        lines.append(source.source.replace(kernel.name, unique))
        lines.append(f"EMULATED({unique}, {len(kernel.params)}, {int(source.product)})")
    (folder / "kernels.cpp").write_text("\n".join(lines))
    for header in HEADERS:
        shutil.copy(RUNTIME / header, folder / header)
    command = ["g++", *FLAGS, f"-I{HERE}", f"-I{folder}", "kernels.cpp", "-o", "kernels.so"]
    subprocess.run(command, cwd=folder, check=True, timeout=600)
    return folder / "kernels.so"


def together(programs: Sequence[Program], folder: Path) -> ctypes.CDLL:
    """The kernels of several programs, for `run`."""
    named = {f"p{i}_{k.name}": k for i, p in enumerate(programs) for k in launched(p) if k.tasks}
    return ctypes.CDLL(str(compiled(named, folder)))


def run(
    library: ctypes.CDLL,
    i: int,
    program: Program,
    feeds: Mapping[str, Array],
    *,
    reverse: bool = False,
) -> dict[str, Array]:
    """The outputs of program `i`. Memory that nobody has written holds no number."""
    storage: dict[str, Array] = {}

    def place(name: str) -> int:
        root, offset = program.place(name)
        if root not in storage:
            tensor = program.tensors[root]
            if root in program.constants:
                data = np.ascontiguousarray(program.constants[root]).view(np.uint8).reshape(-1)
            elif root in program.inputs:
                data = np.ascontiguousarray(feeds[root]).view(np.uint8).reshape(-1)
            else:
                data = np.full(tensor.bytes, 255, np.uint8)
            storage[root] = _aligned(data)
        return storage[root].ctypes.data + offset

    for call in program.calls:
        kernel = program.kernels[call.kernel]
        if not kernel.tasks:
            continue
        source = source_of(kernel)
        pointers = [ctypes.c_void_p(place(a)) for a in call.args]
        arguments = (ctypes.c_void_p * len(pointers))(*(ctypes.addressof(p) for p in pointers))
        grid = (ctypes.c_uint * 3)(*source.grid)
        launch = getattr(library, f"launch_p{i}_{kernel.name}")
        launch(arguments, grid, ctypes.c_uint(source.block), int(reverse))
    found = {}
    for name in program.outputs:
        tensor = program.tensors[name]
        place(name)
        root, offset = program.place(name)
        data = storage[root][offset : offset + tensor.bytes]
        found[program.public.get(name, name)] = data.view(tensor.dtype).reshape(tensor.shape)
    return found


def _aligned(data: Array) -> Array:
    """A copy that begins at a multiple of 256 bytes, as what a GPU's memory holds does."""
    whole = np.full(data.size + 512, 255, np.uint8)
    begin = -whole.ctypes.data % 256
    whole[begin : begin + data.size] = data
    return whole[begin : begin + data.size]
