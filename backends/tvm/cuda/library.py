"""The emitter for GPUs: cubin, constants and launcher in one shared library with a C interface."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from effc.backends.tvm.arena import ALIGNMENT
from effc.backends.tvm.cuda.nvrtc import Cubin, compiler
from effc.backends.tvm.cuda.source import RUNTIME, cuda_source, headers, launched, source_of
from effc.backends.tvm.emit_c import CONSTANTS_FILE, _argument, _tensors, _text
from effc.backends.tvm.library import HEADER, LIBRARY, link
from effc.backends.tvm.library import RUNTIME as CPU_RUNTIME
from effc.backends.tvm.program import Program
from effc.backends.tvm.storing import Constants, store_constants
from effc.core.errors import LoweringError

IMAGE, SOURCE, CUDA_HEADER = "kernels.cubin", "kernels.cu", "effc_cuda.h"
_EXPORTS = "{ global: effc_model_*; local: *; };\n"
_FILES = ("launcher.c", "launches.h", "driver.h", CUDA_HEADER)
_CPU_FILES = (HEADER, "decode.c", "decode.h")
_SHARED = 48 << 10  # bytes of shared memory that every launch may have without asking for more


def compile_kernels(program: Program) -> Cubin:
    """The kernels of `program` as machine code, with what they take in `program.tuning["kernels"]`."""
    if not any(k.tasks for k in launched(program)):
        return Cubin(b"", "")
    made = compiler().compile(cuda_source(program), headers(), sm_of(program))
    for name, usage in made.usage.items():
        if usage.shared > _SHARED:
            raise LoweringError(f"kernel {name} takes {usage.shared} bytes of shared memory")
    return made


def sm_of(program: Program) -> int:
    """The compute capability that `program` is for: 75, 80, ..."""
    return int(program.isa.name.removeprefix("sm_"))


def write_library(program: Program, out: Path) -> Mapping[str, Path]:
    """Write `model.so`, its headers and the source of its kernels into the folder `out`; role -> path."""
    made = compile_kernels(program)
    constants = store_constants(program)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="effc-") as name:
        folder = Path(name)
        write_sources(program, constants, made.image, folder)
        coded = ["decode.c"] if constants.coded else []
        link(folder, ["model.c", "launcher.c", *coded, "-ldl"], LIBRARY, program.isa.triple)
        shutil.copyfile(folder / LIBRARY, out / LIBRARY)
    shutil.copyfile(CPU_RUNTIME / HEADER, out / HEADER)
    shutil.copyfile(RUNTIME / CUDA_HEADER, out / CUDA_HEADER)
    (out / SOURCE).write_text(cuda_source(program))
    program.storage = constants.describe()
    program.tuning = {**program.tuning, "compiled": describe(program, made)}
    return {
        "library": out / LIBRARY,
        "header": out / HEADER,
        "cuda header": out / CUDA_HEADER,
        "kernels": out / SOURCE,
    }


def describe(program: Program, made: Cubin) -> dict[str, object]:
    """What the compiler said of the kernels."""
    usage = made.usage.values()
    found = compiler()
    return {
        "compiler": f"{found.name} {found.version}",
        "cubin_bytes": len(made.image),
        "registers": max((u.registers for u in usage), default=0),
        "spilled": sorted(n for n, u in made.usage.items() if u.spills),
        "shared_bytes": max((u.shared for u in usage), default=0),
        "tensor_cores": sum(
            bool(source_of(program.kernels[c.kernel]).multiply) for c in program.calls
        ),
    }


def write_sources(program: Program, constants: Constants, image: bytes, folder: Path) -> None:
    """Everything that model.so is linked from, into `folder`."""
    (folder / CONSTANTS_FILE).write_bytes(constants.stored)
    (folder / IMAGE).write_bytes(image or b"\0")
    (folder / "model.c").write_text(model_c(program, constants))
    (folder / "exports.map").write_text(_EXPORTS)
    for file in _FILES:
        shutil.copy(RUNTIME / file, folder / file)
    for file in _CPU_FILES:
        shutil.copy(CPU_RUNTIME / file, folder / file)


def model_c(program: Program, constants: Constants) -> str:
    """The C source that goes with runtime/launcher.c."""
    arguments: list[str] = []
    launches, calls = [], []
    for call in program.calls:
        kernel = program.kernels[call.kernel]
        source = source_of(kernel)
        grid = source.grid if kernel.tasks else (0, 1, 1)
        launches.append(
            f"  {{{_text(kernel.name)}, {{{', '.join(map(str, grid))}}}, {source.block}, "
            f"{len(arguments)}, {len(call.args)}}},"
        )
        calls.append(f"  {{{_text(chr(10).join(call.nodes))}, {_text(call.template)}}},")
        arguments += [_argument(program, constants, name) for name in call.args]
    inputs = [(program.public.get(n, n), program.tensors[n]) for n in program.inputs]
    outputs = [(program.public.get(n, n), program.tensors[n]) for n in program.outputs]
    coded = constants.coded is not None
    return "\n".join(
        [
            '#include "launches.h"',
            *(['#include "decode.h"'] if coded else []),
            "",
            _embedded("effc_constants", CONSTANTS_FILE),
            _embedded("effc_image", IMAGE),
            "static const effc_launch launches[] = {",
            *(launches or ["  {0},"]),
            "};",
            "static const effc_call calls[] = {",
            *(calls or ["  {0},"]),
            "};",
            "static const effc_argument arguments[] = {",
            *(arguments or ["  {0},"]),
            "};",
            *_tensors("inputs", inputs),
            *_tensors("outputs", outputs),
            "const effc_launches effc_the_launches = {",
            f"  {len(inputs)}, {len(outputs)}, {len(program.calls)}, {len(arguments)},",
            "  inputs, outputs, calls, launches, arguments, effc_constants, effc_image,",
            f"  {program.arena_bytes}u, {len(constants.data)}u, {sm_of(program)},",
            *([f"  effc_decode, {len(constants.stored)}u,"] if coded else []),
            "};",
            "",
        ]
    )


def _embedded(symbol: str, file: str) -> str:
    """A file in a section of its own, as in emit_c."""
    quoted = json.dumps(file)[1:-1].join((chr(92) + chr(34),) * 2)
    section = f".effc.{symbol.removeprefix('effc_')}"
    return "\n".join(
        [
            f'__asm__(".section {section},\\"a\\"\\n"',
            f'        ".balign {ALIGNMENT}\\n"',
            f'        ".hidden {symbol}\\n"',
            f'        ".globl {symbol}\\n"',
            f'        "{symbol}:\\n"',
            f'        ".incbin {quoted}\\n"',
            '        ".previous\\n");',
            f'extern const unsigned char {symbol}[] __attribute__((visibility("hidden")));',
            "",
        ]
    )
