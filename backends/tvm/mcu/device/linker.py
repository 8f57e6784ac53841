"""The linker script of a board, and what the linker says when something does not fit."""

from __future__ import annotations

import re

from effc.backends.tvm.mcu.device.boards import Board, Region
from effc.core.errors import LoweringError

STACK_BYTES = 4096


def linker_script(board: Board, stack_bytes: int = STACK_BYTES) -> str:
    """GNU ld's script: exactly the board's memories, so that what does not fit fails the link.

    Sections: code, constants (weights), data and bss, `.effc_arena*` in the RAM, `.effc_fast*` in the tightly
    coupled memory where there is one (else RAM), `.effc_NAME*` in each further memory. The stack stands
    first, so that what overflows it runs out of the memory instead of into data.
    """
    memory = "\n".join(
        f"  {r.label} (rwx) : ORIGIN = {r.origin:#010x}, LENGTH = {r.bytes}" for r in board.regions
    )
    code, constants, ram, stack = (
        r.label for r in (board.code, board.constants, board.ram, board.stack)
    )
    # an emulator loads initialized data where it belongs; a board copies it out of its flash
    load = f" AT> {code}" if board.code.names[0] == "flash" else ""
    # the stack's memory may be another than the data's; then fast data shares it
    fast = f"  .effc_fast (NOLOAD) : {{ . = ALIGN(8); *(.effc_fast*) . = ALIGN(8); }} > {stack}\n"
    reserved = (
        "  .effc_stack (NOLOAD) : {"
        f" . = ALIGN(8); _stack_limit = .; . += {stack_bytes}; _estack = .; }} > {stack}\n"
    )
    others = "".join(
        f"  .effc_{r.names[0]} (NOLOAD) : {{ *(.effc_{r.names[0].replace('-', '_')}*) }} > {r.label}\n"
        for r in board.others
    )
    return f"""/* {board.profile.title}: the memories of {
        "the product"
        if board.place == "product"
        else "the product at the emulated board's addresses"
    } */
MEMORY {{
{memory}
}}
ENTRY({"_start" if board.profile.triple.startswith("riscv") else "effc_reset"})
SECTIONS {{
  .isr_vector : {{ KEEP(*(.isr_vector)) }} > {code}
  .text : {{ *(.text .text.* .init .fini) . = ALIGN(4); }} > {code}
  .rodata : {{ *(.rodata .rodata.* .srodata .srodata.* .effc_constants*) . = ALIGN(4); }} > {
        constants
    }
  .ARM.extab : {{ *(.ARM.extab*) }} > {code}
  .ARM.exidx : {{ *(.ARM.exidx*) }} > {code}
{reserved}  .data : {{
    . = ALIGN(8); _sdata = .; *(.data .data.*)
    __global_pointer$ = . + 0x800; *(.sdata .sdata.*) . = ALIGN(8); _edata = .;
  }} > {ram}{load}
  _sidata = LOADADDR(.data);
  .bss (NOLOAD) : {{
    . = ALIGN(8); _sbss = .; *(.sbss .sbss.* .bss .bss.* COMMON) . = ALIGN(8); _ebss = .;
  }} > {ram}
  .effc_arena (NOLOAD) : {{ . = ALIGN(16); *(.effc_arena*) . = ALIGN(8); }} > {ram}
{fast}{others}  /DISCARD/ : {{ *(.comment .note* .eh_frame*) }}
}}
"""


_OVER = re.compile(r"region [`']?(\w+)'? overflowed by (\d+) bytes")


def overruns(said: str) -> dict[str, int]:
    """The linker's name of a memory -> bytes over."""
    return {m[1]: int(m[2]) for m in _OVER.finditer(said)}


def overrun_error(board: Board, said: str) -> LoweringError | None:
    """One line for the memory that is over by the most, if that is why the link failed."""
    over = overruns(said)
    if not over:
        return None
    label = max(over, key=lambda name: over[name])
    region = next(r for r in board.regions if r.label == label)
    also = "".join(
        f"; also {over[r.label]} bytes more of {_named(r)}"
        for r in board.regions
        if r.label in over and r.label != label
    )
    what = "the weights and the code" if region is board.constants else "activations and the stack"
    if region is board.code and region is not board.constants:
        what = "the code"
    return LoweringError(
        f"the firmware needs {over[label]} bytes more of {_named(region)} than {board.profile.name} has"
        f" ({region.bytes} bytes){also}",
        hint=f"{what} fill it: a smaller input or model, or a board with more memory",
    )


def _named(region: Region) -> str:
    return " and ".join(region.names)
