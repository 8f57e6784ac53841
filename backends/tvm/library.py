"""The emitter for CPUs with an operating system: a shared library with a C interface, and its header."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from effc.backends.tvm import tir
from effc.backends.tvm.emit_c import CONSTANTS_FILE, model_c
from effc.backends.tvm.program import Program
from effc.backends.tvm.storing import store_constants
from effc.core.errors import BackendUnavailable, LoweringError

LIBRARY, HEADER = "model.so", "effc_model.h"
RUNTIME = Path(__file__).parent / "runtime"
# position-dependent addressing of the embedded constants reaches 2 GiB
_MOST_CONSTANTS = (1 << 31) - (1 << 26)
_EXPORTS = "{ global: effc_model_*; local: *; };\n"
_FLAGS = (
    "-O2", "-g0", "-std=c11", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden", "-w",
    "-Wl,--build-id=none", "-Wl,-s", "-Wl,-Bsymbolic", "-Wl,-z,defs", "-Wl,--version-script=exports.map",
)  # fmt: skip


def c_compiler() -> list[str] | None:
    """The command of a C compiler: $CC, cc, gcc, clang, or the clang of the package `ziglang`."""
    named = os.environ.get("CC")
    if named:
        command = shlex.split(named)
        return command if command and shutil.which(command[0]) else None
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc"]
    return None


def write_library(program: Program, out: Path) -> Mapping[str, Path]:
    """Write `model.so` and `effc_model.h` into the folder `out`; role -> path.

    The same program gives the same bytes: no paths, times or build ids go in. BackendUnavailable where
    there is no C compiler; LoweringError where it fails, with its first words.
    """
    _compiler()
    constants = store_constants(program)
    if len(constants.stored) > _MOST_CONSTANTS:
        raise LoweringError(
            f"the constants take {len(constants.stored)} bytes, and a library holds {_MOST_CONSTANTS}",
            hint="quantize the weights, or cut the model in two",
        )
    with tempfile.TemporaryDirectory(prefix="effc-") as name:
        folder = Path(name)
        (folder / CONSTANTS_FILE).write_bytes(constants.stored)
        (folder / "model.c").write_text(model_c(program, constants))
        (folder / "exports.map").write_text(_EXPORTS)
        for file in RUNTIME.iterdir():
            shutil.copy(file, folder / file.name)
        sources = ["model.c", "runtime.c", *(["decode.c"] if constants.coded else [])]
        link(folder, [*sources, *write_objects(program, folder)], LIBRARY)
        out.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / LIBRARY, out / LIBRARY)
    shutil.copyfile(RUNTIME / HEADER, out / HEADER)
    program.storage = constants.describe()
    return {"library": out / LIBRARY, "header": out / HEADER}


def write_objects(program: Program, folder: Path) -> list[str]:
    """Compile the kernels that are called; names of object files in `folder`."""
    used = dict.fromkeys(c.kernel for c in program.calls)
    if not used:
        return []
    module = tir.llvm_module([program.kernels[n].func for n in used], program.isa.target())
    module.write_to_file(str(folder / "kernels.o"), "o")
    return ["kernels.o"]


def _compiler() -> list[str]:
    compiler = c_compiler()
    if compiler is None:
        raise BackendUnavailable(
            "no C compiler: "
            + (f"$CC is {os.environ['CC']!r}" if os.environ.get("CC") else "cc, gcc and clang"),
            hint="install gcc or clang, set CC, or: pip install ziglang",
        )
    return compiler


def link(folder: Path, files: Sequence[str], library: str) -> None:
    """Make a shared library of C sources and objects in `folder`, where exports.map says what it exports."""
    compiler = _compiler()
    command = [*compiler, *_FLAGS, *files, "-o", library, "-lm"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "error" in line or "undefined" in line]
        first = (said or done.stderr.splitlines() or [f"exit status {done.returncode}"])[0]
        raise LoweringError(
            f"{compiler[0]} can't build the library: {first[:300]}",
            hint="set CC to another C compiler; if that fails too, report it with the model",
        )
