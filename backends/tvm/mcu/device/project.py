"""Projects around a model's C files: Makefile, CMake, and the layouts of embedded build systems."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from effc.backends.tvm.mcu.device.boards import Board, board_of
from effc.backends.tvm.mcu.device.firmware import FIRMWARE, MemoryMap
from effc.backends.tvm.mcu.device.flashing import flash_commands
from effc.backends.tvm.mcu.device.layouts import ARDUINO, PLATFORMIO, ZEPHYR, Layout
from effc.backends.tvm.mcu.device.linker import linker_script
from effc.backends.tvm.mcu.device.makefiles import Recipe, cmake_text, makefile_text, recipe
from effc.backends.tvm.mcu.device.sources import Sources, ports_c
from effc.core.errors import ConfigError
from effc.core.target import HardwareProfile, Target

LAYOUTS: Mapping[str, Layout | None] = {
    "plain": None, "zephyr": ZEPHYR, "arduino": ARDUINO, "platformio": PLATFORMIO,
}  # fmt: skip


def layout_of(target: Target) -> str:
    """The option `layout` of a target; ConfigError where there is none of that name."""
    name = target.options.get("layout", "plain")
    if name not in LAYOUTS:
        raise ConfigError(
            f"--backend-option layout={name}: there is no such layout",
            hint=f"one of {', '.join(LAYOUTS)}",
        )
    return name


def write_project(
    sources: Sources,
    profile: HardwareProfile,
    linked: MemoryMap,
    folder: Path,
    *,
    stack_bytes: int,
    layout: str = "plain",
) -> list[Path]:
    """Write everything but the model's own files into `folder`, where those are; gives what was written.

    `make` and CMake build `firmware.elf` (which effc runs) and `example.elf` for the emulated board, and
    where the profile has the addresses of the product's memories, `product.elf` and `serial.elf`.
    """
    emulated = board_of(profile)
    product = _product(profile)
    made = recipe(sources, emulated, product)
    files = {
        "device/effc_ports.c": ports_c(sources),
        "emulator.ld": linker_script(emulated, stack_bytes),
        "Makefile": makefile_text(made),
        "CMakeLists.txt": cmake_text(made),
        "MEMORY.txt": memory_text(profile, linked),
        "README.md": readme_text(profile, made),
    }
    if product is not None:
        files["product.ld"] = linker_script(product, stack_bytes)
    written = _write(folder, files.items())
    for name in made.support:
        written += _copy(FIRMWARE / name, folder / "device" / name)
    chosen = LAYOUTS[layout]
    if chosen is not None:
        written += _write(folder / layout, chosen(sources, profile).items())
    return written


def memory_text(profile: HardwareProfile, linked: MemoryMap) -> str:
    """The memory map for people."""
    lines = [f"{profile.title}", "", f"{'memory':<16}{'used':>10}{'there':>10}{'free':>10}"]
    for name, (used, there) in linked.regions.items():
        lines.append(f"{name:<16}{used:>10}{there:>10}{there - used:>10}")
    lines += [
        "",
        f"flash of the model   {linked.model_flash_bytes:>10}  code and weights",
        f"RAM of the model     {linked.model_ram_bytes:>10}  tensors and scratch",
        f"flash in all         {linked.flash_bytes:>10}",
        f"RAM in all           {linked.ram_bytes:>10}  without the stack",
        f"stack                {linked.stack_bytes:>10}  reserved",
    ]
    return "\n".join(lines) + "\n"


def readme_text(profile: HardwareProfile, made: Recipe) -> str:
    """What is in the folder, and how it is used."""
    lines = [
        f"# A model for {profile.title}",
        "",
        "`model.h` is the interface, `model.c` and `kernels.c` are the model: C99, no heap, no system.",
        "They need nothing else of this folder. The rest builds firmware around them with `make` or CMake:",
        "",
        *(f"- `{v.name}.elf`: {v.about}" for v in made.variants),
        "",
        "`MEMORY.txt` says what is used of each memory. `make run` runs `example.elf` in the emulator.",
    ]
    flashing = flash_commands(profile, "build/serial.elf")
    if flashing and any(v.name == "serial" for v in made.variants):
        lines += [
            "",
            "`device/effc_board.c` is for the serial port of Arm's MPS2: write it for yours. Then flash:",
            "",
            *(f"    {c.text}" for c in flashing),
            "",
            "and effc runs and times the model on the board: `--device serial:///dev/ttyACM0`.",
        ]
    return "\n".join(lines) + "\n"


def _product(profile: HardwareProfile) -> Board | None:
    """None where the profile does not know the product's addresses: then its vendor's tools link."""
    try:
        return board_of(profile, "product")
    except ConfigError:
        return None


def _write(folder: Path, files: Iterable[tuple[str, str]]) -> list[Path]:
    written = []
    for name, text in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written


def _copy(source: Path, to: Path) -> list[Path]:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, to)
    return [to]
