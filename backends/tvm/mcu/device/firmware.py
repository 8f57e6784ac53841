"""Compiles and links the firmware of a model: sources in, ELF and memory map out."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from effc.backends.tvm.mcu.device.boards import Board, machine_of
from effc.backends.tvm.mcu.device.linker import STACK_BYTES, linker_script, overrun_error
from effc.backends.tvm.mcu.device.sources import Sources, ports_c
from effc.backends.tvm.mcu.device.symbols import Symbol, memory_map, symbols
from effc.backends.tvm.mcu.device.toolchain import STRICT, Toolchain, ToolError, call, toolchain_of

FIRMWARE = Path(__file__).parent / "firmware"
LinkTo = Literal["semihosting", "serial"]  # how the firmware talks with the host
_OWN_FLAGS = ("-O2",)
HEADERS = ("effc_device.h", "semihosting.h")


class MemoryMap(msgspec.Struct, frozen=True):
    """Bytes of a linked firmware. The model's own are those of its files alone."""

    flash_bytes: int  # code and constants
    ram_bytes: int  # data, bss and arena; the stack apart
    stack_bytes: int  # reserved
    model_flash_bytes: int
    model_ram_bytes: int
    regions: Mapping[str, tuple[int, int]]  # the profile's name -> bytes used, bytes there


@dataclass(frozen=True, slots=True)
class Firmware:
    """A linked firmware and what is in it."""

    elf: Path
    map: MemoryMap
    symbols: tuple[Symbol, ...]


def support_names(board: Board, to: LinkTo, main: str = "main.c") -> list[str]:
    """The files of firmware/ around the model for a board: startup, main, link to the host."""
    riscv = board.profile.triple.startswith("riscv")
    names = ["startup_riscv.c" if riscv else "startup_arm.c", main, *HEADERS]
    if main == "main.c":
        names += ["serve.c", f"link_{to}.c", *(["effc_board.c"] if to == "serial" else [])]
    if not toolchain_of(board.profile).hosted:
        names.append("memory.c")
    return names


def support_files(board: Board, to: LinkTo) -> dict[str, str]:
    """Their texts, by name."""
    return {n: (FIRMWARE / n).read_text(encoding="utf-8") for n in support_names(board, to)}


def own_flags(board: Board, to: LinkTo) -> tuple[str, ...]:
    """Of the compiler, for the support files."""
    machine = machine_of(board.profile)
    uart = machine.uart if machine is not None and board.place == "emulator" else 0
    return (
        *_OWN_FLAGS,
        *(["-DEFFC_SEMIHOSTING"] if to == "semihosting" else []),
        *([f"-DEFFC_UART={uart:#x}"] if to == "serial" and uart else []),
    )


def link_libraries(toolchain: Toolchain) -> tuple[str, ...]:
    """What the firmware takes of the toolchain."""
    return ("-lc", "-lm", "-lgcc") if toolchain.hosted else ("-lgcc",)


def link_flags(board: Board) -> tuple[str, ...]:
    """Of the linker; nothing is searched but the toolchain's own libraries."""
    libraries = link_libraries(toolchain_of(board.profile))
    warnings = ("-Wl,--no-warn-rwx-segments",)
    return (
        *("-nostartfiles", "-nostdlib", "-Wl,--gc-sections", "-Wl,--build-id=none", *warnings),
        *("-Wl,-Map=firmware.map", "-T", "board.ld"),
        *("-Wl,--start-group", *libraries, "-Wl,--end-group"),
    )


def build_firmware(
    sources: Sources,
    board: Board,
    elf: Path,
    *,
    to: LinkTo = "semihosting",
    stack_bytes: int = STACK_BYTES,
) -> Firmware:
    """Compile `sources` and the firmware around them for `board` and link them into `elf`.

    The linker's map is written beside it. LoweringError names the memory and the bytes over where the
    firmware does not fit, or the compiler's first error.
    """
    toolchain = toolchain_of(board.profile)
    support = {**support_files(board, to), "effc_ports.c": ports_c(sources)}
    with tempfile.TemporaryDirectory(prefix="effc-") as name:
        folder = Path(name)
        for file, text in {**sources.files, **support}.items():
            (folder / file).write_text(text, encoding="utf-8")
        (folder / "board.ld").write_text(linker_script(board, stack_bytes), encoding="utf-8")
        common = [toolchain.cc, *toolchain.processor, *STRICT, "-I."]
        if not toolchain.hosted:
            shutil.copytree(FIRMWARE / "freestanding", folder / "freestanding")
            common += ["-ffreestanding", "-Ifreestanding"]
        objects = []
        for file in sorted({**sources.files, **support}):
            if not file.endswith(".c"):
                continue
            flags = sources.flags if file in sources.files else own_flags(board, to)
            if file == "memory.c":
                flags = (*flags, "-fno-builtin", "-fno-tree-loop-distribute-patterns")
            call([*common, *flags, "-c", file], folder, f"compile {file}")
            objects.append(file.removesuffix(".c") + ".o")
        try:
            call(
                [
                    toolchain.cc,
                    *toolchain.linking,
                    *objects,
                    *link_flags(board),
                    "-o",
                    "firmware.elf",
                ],
                folder,
                "link the firmware",
            )
        except ToolError as error:
            over = overrun_error(board, error.said)
            raise (over or error) from error
        found = symbols(toolchain, folder, "firmware.elf")
        own = [o for o in objects if o.removesuffix(".o") + ".c" in sources.files]
        made = memory_map(toolchain, board, folder, "firmware.elf", own, stack_bytes)
        elf.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / "firmware.elf", elf)
        shutil.copyfile(folder / "firmware.map", elf.with_suffix(".map"))
    return Firmware(elf, MemoryMap(**made), tuple(found))
