"""What the code generator hands over: C files, the tensors of the model, its layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from effc.backends.tvm.mcu.program import Border


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output. `address` is a C expression of its first byte, valid where model.h is included."""

    border: Border
    address: str


@dataclass(frozen=True, slots=True)
class Layer:
    """One call in `effc_invoke`, in order: the C function that it calls, and the nodes that it computes."""

    name: str
    function: str
    template: str
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sources:
    """A model as C: `header` declares `int effc_invoke(void)`, which gives 0, and what the addresses need."""

    files: Mapping[str, str]  # name -> text of .c and .h
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    layers: tuple[Layer, ...] = ()
    header: str = "model.h"
    flags: tuple[str, ...] = field(default=("-O2",))  # of the compiler, for the model's files


def ports_c(sources: Sources) -> str:
    """effc_ports.c: the tensors of the model as the firmware's main sees them."""
    lines = [
        "/* The tensors of the model, for the firmware's main. */",
        '#include "effc_device.h"',
        f'#include "{sources.header}"',
        "",
        "int effc_model_run(void) { return effc_invoke(); }",
    ]
    for role, ports in (("input", sources.inputs), ("output", sources.outputs)):
        rows = ", ".join(_row(p.border) for p in ports)
        lines += [
            "",
            f"const uint32_t effc_{role}_count = {len(ports)};",
            f"const effc_port effc_{role}_ports[] = {{{rows or '{0, 0, 0}'}}};",
            f"void *effc_{role}_data(uint32_t index) {{",
            "  switch (index) {",
            *(f"    case {i}: return (void *)({p.address});" for i, p in enumerate(ports)),
            "    default: return NULL;",
            "  }",
            "}",
        ]
    return "\n".join(lines) + "\n"


def device_name(name: str) -> str:
    """A tensor's name as the device says it: printable ASCII on one line."""
    return "".join(c if " " <= c <= "~" else "_" for c in name)


def _row(border: Border) -> str:
    quoted = device_name(border.name).replace("\\", "\\\\").replace('"', '\\"').replace("?", "\\?")
    return f'{{"{quoted}", "{border.tensor.dtype}", {border.tensor.bytes}}}'
