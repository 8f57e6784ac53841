"""The emitter for CPUs with an operating system: a shared library with a C interface, and its header."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from effc.backends.tvm import tir
from effc.backends.tvm.compilers import c_compiler, install_hint, is_native
from effc.backends.tvm.emit_c import CONSTANTS_FILE, model_c
from effc.backends.tvm.program import Program
from effc.backends.tvm.storing import store_constants
from effc.core.errors import BackendUnavailable, LoweringError

LIBRARY, HEADER = "model.so", "effc_model.h"
PROGRAM, PROGRAM_SOURCE = "run_model", "run_model.c"
RUNTIME = Path(__file__).parent / "runtime"
# position-dependent addressing of the embedded constants reaches 2 GiB
_MOST_CONSTANTS = (1 << 31) - (1 << 26)
_EXPORTS = "{ global: effc_model_*; local: *; };\n"
_FLAGS = (
    "-O2", "-g0", "-std=c11", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden", "-w",
    "-Wl,--build-id=none", "-Wl,-s", "-Wl,-Bsymbolic", "-Wl,-z,defs", "-Wl,--version-script=exports.map",
)  # fmt: skip


def write_library(program: Program, out: Path) -> Mapping[str, Path]:
    """Write `model.so` and `effc_model.h` into the folder `out`; role -> path.

    For another processor than this machine's there is also `run_model`, which runs the library from the
    command line, and its source.

    The same program gives the same bytes: no paths, times or build ids go in. BackendUnavailable where
    there is no C compiler; LoweringError where it fails, with its first words.
    """
    triple = program.isa.triple if program.isa is not None else ""
    _compiler(triple)
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
        link(folder, [*sources, *write_objects(program, folder)], LIBRARY, triple)
        made = [LIBRARY]
        if not is_native(triple):
            link_program(folder, triple)
            made.append(PROGRAM)
        out.mkdir(parents=True, exist_ok=True)
        for name in made:
            shutil.copy(folder / name, out / name)
    files = {"library": out / LIBRARY, "header": out / HEADER}
    if not is_native(triple):
        files |= {"program": out / PROGRAM, "program source": out / PROGRAM_SOURCE}
        shutil.copyfile(RUNTIME / PROGRAM_SOURCE, out / PROGRAM_SOURCE)
    shutil.copyfile(RUNTIME / HEADER, out / HEADER)
    program.storage = constants.describe()
    return files


def write_objects(program: Program, folder: Path) -> list[str]:
    """Compile the kernels that are called; names of object files in `folder`."""
    used = dict.fromkeys(c.kernel for c in program.calls)
    if not used:
        return []
    module = tir.llvm_module([program.kernels[n].func for n in used], program.isa.target())
    module.write_to_file(str(folder / "kernels.o"), "o")
    return ["kernels.o"]


def _compiler(triple: str) -> list[str]:
    compiler = c_compiler(triple)
    if compiler is not None:
        return compiler
    if is_native(triple):
        named = os.environ.get("CC")
        missing = f"$CC is {named!r}" if named else "cc, gcc and clang"
        raise BackendUnavailable(f"no C compiler: {missing}", hint=install_hint())
    raise BackendUnavailable(f"no C compiler for {triple}", hint=install_hint(triple))


def link(folder: Path, files: Sequence[str], library: str, triple: str = "") -> None:
    """Make a shared library of C sources and objects in `folder`, where exports.map says what it exports."""
    _run(folder, [*_compiler(triple), *_FLAGS, *files, "-o", library, "-lm"], "the library")


def link_program(folder: Path, triple: str) -> None:
    """Make `run_model`, which finds the library of `folder` beside itself."""
    flags = ("-O2", "-g0", "-std=c11", "-w", "-Wl,--build-id=none", "-Wl,-s", "-Wl,-rpath,$ORIGIN")
    command = [
        *_compiler(triple),
        *flags,
        PROGRAM_SOURCE,
        "-L.",
        f"-l:{LIBRARY}",
        "-pthread",
        "-lm",
    ]
    _run(folder, [*command, "-o", PROGRAM], "the program")


def _run(folder: Path, command: list[str], what: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "error" in line or "undefined" in line]
        first = (said or done.stderr.splitlines() or [f"exit status {done.returncode}"])[0]
        raise LoweringError(
            f"{command[0]} can't build {what}: {first[:300]}",
            hint="set CC to another C compiler; if that fails too, report it with the model",
        )
