"""A Program as C: the table of calls, the descriptions of inputs and outputs, the constants' blob."""

from __future__ import annotations

import json
from collections.abc import Sequence

from effc.backends.tvm.arena import ALIGNMENT
from effc.backends.tvm.layout import TensorType
from effc.backends.tvm.program import Kernel, Program
from effc.backends.tvm.storing import Constants

CONSTANTS_FILE = "constants.bin"
# what the compiler's __builtin_cpu_supports can ask of the processor: the vector units that kernels use
_CHECKED = (
    "avx", "avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd", "avx512vnni",
    "avx512vbmi",
)  # fmt: skip

# and what the kernel tells programs on AArch64: word of the auxiliary vector, bit
_CHECKED_ARM = {
    "lse": ("AT_HWCAP", 8), "fullfp16": ("AT_HWCAP", 10), "dotprod": ("AT_HWCAP", 20),
    "sve": ("AT_HWCAP", 22), "i8mm": ("AT_HWCAP2", 13), "bf16": ("AT_HWCAP2", 14),
}  # fmt: skip


def model_c(program: Program, constants: Constants) -> str:
    """The C source that goes with runtime/runtime.c and the kernels' object file."""
    kernels = [program.kernels[n] for n in dict.fromkeys(c.kernel for c in program.calls)]
    arguments: list[str] = []
    steps, calls = [], []
    for call in program.calls:
        kernel = program.kernels[call.kernel]
        steps.append(f"  {{run_{kernel.name}, {kernel.tasks}, {len(arguments)}}},")
        calls.append(f"  {{{_text(chr(10).join(call.nodes))}, {_text(call.template)}}},")
        arguments += [_argument(program, constants, name) for name in call.args]
    inputs = [(program.public.get(n, n), program.tensors[n]) for n in program.inputs]
    outputs = [(program.public.get(n, n), program.tensors[n]) for n in program.outputs]
    return "\n".join(
        [
            '#include "decode.h"',
            '#include "program.h"',
            "",
            _constants(),
            *(wrapper(k) for k in kernels),
            "static const effc_step steps[] = {",
            *(steps or ["  {0},"]),
            "};",
            "static const effc_call calls[] = {",
            *(calls or ["  {0},"]),
            "};",
            "static const effc_argument arguments[] = {",
            *(arguments or ["  {0},"]),
            "};",
            *_tensors("inputs", inputs),
            *_tensors("outputs", outputs),
            "const effc_program effc_the_program = {",
            f"  {len(inputs)}, {len(outputs)}, {len(program.calls)}, {len(arguments)},",
            "  inputs, outputs, calls, steps, arguments, effc_constants,",
            f"  {program.arena_bytes}u, {program.scratch_bytes}u,",
            *_decoding(constants),
            "};",
            _features(program),
            "",
        ]
    )


def _text(text: str) -> str:
    """A C string literal."""
    escaped = []
    for byte in text.encode():
        plain = 32 <= byte < 127 and chr(byte) not in '"\\?'
        escaped.append(chr(byte) if plain else f"\\{byte:03o}")
    return '"' + "".join(escaped) + '"'


def _constants() -> str:
    return "\n".join(
        [
            '__asm__(".section .effc.constants,\\"a\\"\\n"',
            f'        ".balign {ALIGNMENT}\\n"',
            '        ".hidden effc_constants\\n"',
            '        ".globl effc_constants\\n"',
            '        "effc_constants:\\n"',
            f'        ".incbin {json.dumps(CONSTANTS_FILE)[1:-1].join((chr(92) + chr(34),) * 2)}\\n"',
            '        ".previous\\n");',
            'extern const unsigned char effc_constants[] __attribute__((visibility("hidden")));',
            "",
        ]
    )


def _decoding(constants: Constants) -> list[str]:
    if constants.coded is None:
        return []
    return [f"  effc_decode, {len(constants.stored)}u, {len(constants.data)}u,"]


def wrapper(kernel: Kernel) -> str:
    """All kernels behind one signature."""
    scratch = kernel.scratch_bytes > 0
    count = len(kernel.params)
    types = ", ".join(["void *"] * (count + scratch) + ["int32_t"] * 2)
    values = ["scratch"] * scratch + [f"a[{i}]" for i in range(count)]
    unused = "" if scratch else "(void)scratch; "
    return (
        f"void {kernel.name}({types});\n"
        f"static void run_{kernel.name}(void *const *a, void *scratch, int32_t begin, int32_t end) {{\n"
        f"  {unused}{kernel.name}({', '.join([*values, 'begin', 'end'])});\n"
        "}"
    )


def _argument(program: Program, constants: Constants, name: str) -> str:
    root, offset = program.place(name)
    if root in program.constants:
        return f"  {{EFFC_CONSTANT, 0, {constants.offsets[root] + offset}u}},"
    if root in program.inputs:
        return f"  {{EFFC_INPUT, {program.inputs.index(root)}, {offset}u}},"
    for i, output in enumerate(program.outputs):
        if program.root(output) == root:
            return f"  {{EFFC_OUTPUT, {i}, {offset}u}},"
    return f"  {{EFFC_ARENA, 0, {program.offsets[root] + offset}u}},"


def _tensors(what: str, tensors: Sequence[tuple[str, TensorType]]) -> list[str]:
    lines = []
    for i, (_, tensor) in enumerate(tensors):
        extents = ", ".join(map(str, tensor.shape)) or "0"
        lines.append(f"static const int64_t {what}_shape_{i}[] = {{{extents}}};")
    lines.append(f"static const effc_tensor {what}[] = {{")
    for i, (name, tensor) in enumerate(tensors):
        dtype, rank = tensor.dtype, len(tensor.shape)
        lines.append(
            f"  {{{_text(name)}, {_text(dtype)}, {rank}, {what}_shape_{i}, {tensor.bytes}u}},"
        )
    return [*lines, *([] if tensors else ["  {0},"]), "};"]


def _features(program: Program) -> str:
    checks: list[str] = []
    declared: list[str] = []
    arch = program.isa.triple.partition("-")[0] if program.isa is not None else ""
    if arch == "x86_64":
        used = [f for f in _CHECKED if program.isa.has(f)]
        checks = [f'  if (!__builtin_cpu_supports("{f}")) return "{f}";' for f in used]
        checks.insert(0, "  __builtin_cpu_init();")
    elif arch in ("aarch64", "arm64"):
        declared = ["#include <sys/auxv.h>"]
        for name, (word, bit) in _CHECKED_ARM.items():
            if program.isa.has(name):
                asked = f"getauxval({word}) & (1ul << {bit})"
                checks.append(f'  if (!({asked})) return "{name}";')
    lines = [*declared, "const char *effc_missing_feature(void) {", *checks, "  return NULL;", "}"]
    return "\n".join(lines)
