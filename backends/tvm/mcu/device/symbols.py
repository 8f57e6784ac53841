"""What is in an ELF, read with the toolchain's nm, size and objdump."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from effc.backends.tvm.mcu.device.boards import Board
from effc.backends.tvm.mcu.device.toolchain import Toolchain, call


@dataclass(frozen=True, slots=True)
class Symbol:
    """A function: where it is, without the bit that marks Thumb."""

    name: str
    address: int
    bytes: int


@dataclass(frozen=True, slots=True)
class CallSite:
    """An instruction that calls `callee`."""

    address: int
    callee: str


_FUNCTION = re.compile(r"^([0-9a-f]+) ([0-9a-f]+) [tTwW] (\S+)$")
# "  9c:	f000 f802 	bl	a4 <effc_fc_0>"; a veneer of the linker stands for the function behind it
_CALL = re.compile(
    r"^\s*([0-9a-f]+):.*\t(?:bl|blx|jal|b|b\.w|b\.n|j|tail)\b[^<]*<(?:__)?([\w.]+?)(?:_veneer)?>"
)


def symbols(toolchain: Toolchain, folder: Path, elf: str) -> list[Symbol]:
    """The functions of an ELF, by address."""
    said = call([toolchain.tool("nm"), "-S", "-n", "--defined-only", elf], folder, f"list {elf}")
    found = [m for line in said.splitlines() if (m := _FUNCTION.match(line))]
    return [Symbol(m[3], int(m[1], 16) & ~1, int(m[2], 16)) for m in found]


def call_sites(toolchain: Toolchain, elf: Path, function: Symbol) -> list[CallSite]:
    """The calls in `function`, in the order of the code; jumps inside it are none."""
    said = call(
        [
            toolchain.tool("objdump"), "-d", "-w",
            f"--start-address={function.address:#x}",
            f"--stop-address={function.address + function.bytes:#x}", str(elf),
        ],
        elf.parent, f"disassemble {elf.name}",
    )  # fmt: skip
    sites = [
        CallSite(int(m[1], 16), m[2]) for line in said.splitlines() if (m := _CALL.match(line))
    ]
    return [s for s in sites if s.callee != function.name]


def sections(toolchain: Toolchain, folder: Path, file: str) -> dict[str, tuple[int, int]]:
    """Section -> address, bytes."""
    said = call([toolchain.tool("size"), "-A", "-d", file], folder, f"measure {file}")
    rows = (line.split() for line in said.splitlines())
    return {r[0]: (int(r[2]), int(r[1])) for r in rows if len(r) == 3 and r[1].isdigit()}


def memory_map(
    toolchain: Toolchain, board: Board, folder: Path, elf: str, own: Sequence[str], stack_bytes: int
) -> dict[str, Any]:
    """The fields of a MemoryMap: the ELF's sections by memory, and those of the model's objects `own`."""
    linked = sections(toolchain, folder, elf)
    loaded = {name: row for name, row in linked.items() if row[1] and _allocated(name)}
    usage = {}
    for region in board.regions:
        used = sum(size for at, size in loaded.values() if region.origin <= at < region.end)
        if region is board.code and region.names[0] == "flash":
            used += linked.get(".data", (0, 0))[1]  # its initial values
        usage["+".join(region.names)] = (used, region.bytes)
    written = (".data", ".bss", ".effc_arena", ".effc_fast")
    ram = sum(size for name, (_, size) in loaded.items() if name in written)
    flash = sum(
        size for name, (_, size) in loaded.items() if name not in (*written[1:], ".effc_stack")
    )
    model = [_model_bytes(sections(toolchain, folder, o)) for o in own]
    return {
        "flash_bytes": flash,
        "ram_bytes": ram,
        "stack_bytes": stack_bytes,
        "model_flash_bytes": sum(f for f, _ in model),
        "model_ram_bytes": sum(r for _, r in model),
        "regions": usage,
    }


def _model_bytes(found: dict[str, tuple[int, int]]) -> tuple[int, int]:
    """Flash and RAM bytes of one object file."""
    flash = ram = 0
    for name, (_, size) in found.items():
        if name.startswith((".text", ".rodata", ".data", ".srodata", ".effc_constants")):
            flash += size
        if name.startswith((".data", ".bss", ".sbss", ".effc_arena", ".effc_fast")):
            ram += size
    return flash, ram


def _allocated(name: str) -> bool:
    return not name.startswith(
        (".debug", ".comment", ".ARM.attributes", ".riscv.attributes", ".note", ".symtab")
    )
