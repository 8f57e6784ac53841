"""The C files of a program: model.h, model.c, kernels.h, kernels.c."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from effc.backends.tvm.mcu.ops.elementwise import c_float
from effc.backends.tvm.mcu.program import C_TYPES, Argument, Border, Call, Program, Scratch
from effc.backends.tvm.mcu.templates import template

FILES = ("model.h", "model.c", "kernels.h", "kernels.c")


def write_sources(program: Program, folder: Path) -> Mapping[str, Path]:
    """Write the four files into `folder`; name -> path. The same program gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    made = texts(program)
    for name, text in made.items():
        (folder / name).write_text(text, encoding="utf-8")
    return {name: folder / name for name in made}


def texts(program: Program) -> dict[str, str]:
    """The four files: name -> text."""
    return {
        "model.h": model_h(program),
        "model.c": model_c(program),
        "kernels.h": kernels_h(program),
        "kernels.c": kernels_c(program),
    }


def kernels_h(program: Program) -> str:
    """The helpers, and the declarations of this program's kernels."""
    declared = "\n".join(k.declaration for k in program.kernels.values())
    return template("kernels.h").replace("/*DECLARATIONS*/", declared + "\n")


def kernels_c(program: Program) -> str:
    """Every kernel once."""
    bodies = "\n\n".join(k.text for k in program.kernels.values())
    math = "#include <math.h>\n\n" if any(f"{f}f(" in bodies for f in _MATH) else ""
    return f'{math}#include "kernels.h"\n\n{bodies}\n'


_MATH = ("exp", "tanh", "sqrt", "fabs")


def model_h(program: Program) -> str:
    """The interface: sizes, meanings and places of inputs and outputs, and `effc_invoke`."""
    lines = [
        f"/* {_comment(program.name)}: made for {program.core} */",
        "#ifndef EFFC_MODEL_H",
        "#define EFFC_MODEL_H",
        "",
        "#include <stddef.h>",
        "#include <stdint.h>",
        "",
        "#ifdef __cplusplus",
        'extern "C" {',
        "#endif",
        "",
        f"#define EFFC_ARENA_BYTES {program.plan.bytes} /* RAM for tensors and scratch, in .bss */",
        f"#define EFFC_CONSTANT_BYTES {program.constant_bytes} /* weights and tables, in flash */",
        f"#define EFFC_LAYERS {len(program.calls)}",
        f"#define EFFC_INPUTS {len(program.inputs)}",
        f"#define EFFC_OUTPUTS {len(program.outputs)}",
        "",
        "/* Run the model once on what the inputs hold; 0. Inputs and outputs share memory with the rest:",
        "   fill the inputs before every call, read the outputs before the next one. Not reentrant. */",
        "int effc_invoke(void);",
        "",
        "void *effc_input(int index);",
        "const void *effc_output(int index);",
        "size_t effc_input_bytes(int index);",
        "size_t effc_output_bytes(int index);",
    ]
    for kind, borders in (("input", program.inputs), ("output", program.outputs)):
        for index, border in enumerate(borders):
            lines += ["", *_border(kind, index, border)]
    lines += ["", "#ifdef __cplusplus", "}", "#endif", "", "#endif"]
    return "\n".join(lines) + "\n"


def _border(kind: str, index: int, border: Border) -> list[str]:
    tensor = border.tensor
    prefix = f"EFFC_{kind.upper()}_{index}"
    axes = _axes(border)
    found = [
        f"/* {kind} {index}: {_comment(border.name)!r}, {tensor.dtype} {list(tensor.stored)}{axes} */",
        f"#define {prefix}_BYTES {tensor.bytes}",
        f"#define {prefix}_SIZE {tensor.count}",
    ]
    if border.scale is not None:
        found += [
            f"/* real = (q - zero point) * {border.scale:.8g} */",
            f"#define {prefix}_SCALE {c_float(border.scale)}",
            f"#define {prefix}_ZERO_POINT ({border.zero_point})",
        ]
    return found


def _axes(border: Border) -> str:
    rank = len(border.tensor.shape)
    if border.tensor.order == tuple(range(rank)):
        return ""
    names = "NCHW" if rank == 4 else "NCL" if rank == 3 else ""
    if not names:
        return f", axes stored in the order {list(border.tensor.order)}"
    stored = "".join(names[k] for k in border.tensor.order)
    return f" ({stored}; the model's {list(border.tensor.shape)} is {names})"


def model_c(program: Program) -> str:
    """Constants, the arena, and the calls."""
    words = program.plan.bytes // 4
    lines = [
        '#include "model.h"',
        "",
        '#include "kernels.h"',
        "",
        "/* called before layer `index` and, with EFFC_LAYERS, behind the last one */",
        "#ifndef EFFC_ON_LAYER",
        "#define EFFC_ON_LAYER(index) ((void)0)",
        "#endif",
        "",
    ]
    for constant in program.constants.values():
        lines += [_constant(constant.name, constant.array)]
    lines += [
        "",
        f"/* {program.plan} */",
        f"static uint32_t arena[{max(words, 1)}];",
        "#define AT(offset) ((void *)((char *)arena + (offset)))",
        "",
        "int effc_invoke(void) {",
    ]
    for index, call in enumerate(program.calls):
        nodes = _comment(", ".join(call.nodes))
        about = textwrap.shorten(f"{call.op}: {nodes}", 100, placeholder=" ...")
        lines += [f"  EFFC_ON_LAYER({index});", f"  /* {about} */", _called(program, index, call)]
    lines += [f"  EFFC_ON_LAYER({len(program.calls)});", "  return 0;", "}", ""]
    for kind, borders in (("input", program.inputs), ("output", program.outputs)):
        const = "const " if kind == "output" else ""
        places = [_place(program, b.tensor.name) for b in borders]
        sizes = [str(b.tensor.bytes) for b in borders]
        lines += [
            f"{const}void *effc_{kind}(int index) {{",
            *_switch(places, "NULL"),
            "}",
            f"size_t effc_{kind}_bytes(int index) {{",
            *_switch(sizes, "0"),
            "}",
        ]
    return "\n".join(lines) + "\n"


def _switch(values: list[str], otherwise: str) -> list[str]:
    cases = [f"  if (index == {k}) return {v};" for k, v in enumerate(values)]
    return [*cases, *([] if values else ["  (void)index;"]), f"  return {otherwise};"]


def _called(program: Program, index: int, call: Call) -> str:
    given = [_argument(program, index, k, a) for k, a in enumerate(call.arguments)]
    return f"  {call.kernel.name}({', '.join(given)});"


def _argument(program: Program, index: int, position: int, argument: Argument) -> str:
    if argument is None:
        return "NULL"
    if isinstance(argument, str):
        return _place(program, argument)
    if isinstance(argument, Scratch):
        return f"AT({program.plan.offsets[f'scratch {index} {position}']})"
    return argument.name


def _place(program: Program, name: str) -> str:
    root, offset = program.place(name)
    return f"AT({program.plan.offsets[root] + offset})"


def _constant(name: str, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> str:
    ctype = C_TYPES[array.dtype.name]
    flat = array.reshape(-1)
    if ctype == "float":
        items = [c_float(float(v)) for v in flat]
    elif ctype == "uint32_t":
        items = [f"0x{int(v):x}u" for v in flat]  # type: ignore[call-overload]
    else:
        items = [
            "INT32_MIN" if int(v) == -(2**31) else str(int(v))  # type: ignore[call-overload]
            for v in flat
        ]
    body = textwrap.fill(", ".join(items), 108, initial_indent="  ", subsequent_indent="  ")
    return f"static const {ctype} {name}[{max(len(items), 1)}] = {{\n{body or '  0'}\n}};"


def _comment(text: str) -> str:
    """`text` for a comment of C: printable, and without its end."""
    plain = "".join(c if c.isprintable() and c.isascii() else "?" for c in text)
    return plain.replace("*/", "* /").replace("/*", "/ *")
