"""Kernels of another processor: linked into a program of their own that QEMU runs."""

from __future__ import annotations

import itertools
import struct
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from effc.backends.tvm import tir
from effc.backends.tvm.compilers import c_compiler
from effc.backends.tvm.isa import Isa
from effc.backends.tvm.layout import TensorType
from effc.backends.tvm.program import Kernel
from effc.backends.tvm.qemu_user import QemuUser

GUARD = 64
_MAIN = """#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
%s
int main(void) {
  int32_t head[2]; /* kernel, pieces */
  int32_t cuts[64];
  uint64_t bytes[32];
  char *b[32];
  if (fread(head, 4, 2, stdin) != 2 || fread(cuts, 4, head[1] + 1, stdin) != head[1] + 1u) return 1;
  static const int counts[] = {%s};
  int n = counts[head[0]];
  if (fread(bytes, 8, n, stdin) != (size_t)n) return 1;
  for (int i = 0; i < n; i++) {
    b[i] = (char *)aligned_alloc(64, (bytes[i] + 191) / 64 * 64) + 8; /* of an element's alignment only */
    if (fread(b[i], 1, bytes[i], stdin) != bytes[i]) return 1;
  }
  for (int i = head[1] - 1; i >= 0; i--)
    switch (head[0]) {
%s    }
  for (int i = 0; i < n; i++) fwrite(b[i], 1, bytes[i], stdout);
  return 0;
}
"""


def emulated(folder: Path) -> Callable[..., Any]:
    """`build(isa, kernels)` gives `run(name, *physical arrays) -> logical output`, as `compiled` does."""

    def build(isa: Isa, kernels: Sequence[Kernel], splits: int = 3) -> Any:
        module = tir.llvm_module([k.func for k in kernels], isa.target())
        module.write_to_file(str(folder / "k.o"), "o")
        declared, counts, cases = [], [], []
        for i, k in enumerate(kernels):
            count = len(k.params) + (k.scratch_bytes > 0)
            pointers = "".join("void *, " for _ in range(count))
            declared.append(f"void {k.name}({pointers}int32_t, int32_t);")
            counts.append(str(count))
            given = "".join(f"b[{j}], " for j in range(count))
            cases.append(f"      case {i}: {k.name}({given}cuts[i], cuts[i + 1]); break;\n")
        text = _MAIN % ("\n".join(declared), ", ".join(counts), "".join(cases))
        (folder / "main.c").write_text(text)
        compiler = c_compiler(isa.triple)
        assert compiler is not None
        program = folder / "program"
        command = [*compiler, "-O1", "-static", "main.c", "k.o", "-o", program.name, "-lm"]
        subprocess.run(command, cwd=folder, check=True)
        qemu = QemuUser(isa)
        table = {k.name: (i, k) for i, k in enumerate(kernels)}

        def run(name: str, *arrays: np.ndarray) -> np.ndarray:
            index, kernel = table[name]
            out: TensorType = kernel.params[0]
            parts = [np.full(out.elements * np.dtype(out.dtype).itemsize, 0x55, "uint8").tobytes()]
            for tensor, array in zip(kernel.params[1:], arrays, strict=True):
                assert array.size == tensor.elements, (tensor, array.shape)
                parts.append(np.ascontiguousarray(array).tobytes())
            if kernel.scratch_bytes:
                parts.insert(0, bytes(kernel.scratch_bytes))
            parts = [p + b"\x55" * GUARD for p in parts]
            cuts = [kernel.tasks * i // splits for i in range(splits + 1)]
            data = struct.pack(f"<2i{splits + 1}i", index, splits, *cuts)
            data += struct.pack(f"<{len(parts)}Q", *(len(p) for p in parts)) + b"".join(parts)
            done = subprocess.run(qemu.command(program), input=data, capture_output=True)
            assert done.returncode == 0, (name, done.returncode, done.stderr[-300:])
            ends = list(itertools.accumulate(len(p) for p in parts))
            found = [done.stdout[e - len(p) : e] for e, p in zip(ends, parts, strict=True)]
            assert all(f[-GUARD:] == b"\x55" * GUARD for f in found), (
                "wrote past the end of a buffer"
            )
            first = found[1] if kernel.scratch_bytes else found[0]
            physical = np.frombuffer(first[:-GUARD], out.dtype)
            logical = out.layout.unpack(physical, out.shape)
            if out.layout.block:
                again = out.layout.pack(logical).ravel()
                np.testing.assert_array_equal(physical, again, "padding lanes hold zeros")
            return logical

        return run

    return build
