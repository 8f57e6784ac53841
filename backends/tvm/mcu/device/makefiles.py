"""The text of a Makefile and of a CMakeLists.txt that build a model's firmware by themselves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from effc.backends.tvm.mcu.device.boards import Board, Machine, machine_of
from effc.backends.tvm.mcu.device.firmware import link_libraries, own_flags, support_names
from effc.backends.tvm.mcu.device.sources import Sources
from effc.backends.tvm.mcu.device.toolchain import STRICT, Toolchain, toolchain_of

_MEMORY = ("-fno-builtin", "-fno-tree-loop-distribute-patterns")


@dataclass(frozen=True, slots=True)
class Variant:
    """One ELF: its support files, their flags, and its linker script."""

    name: str
    support: tuple[str, ...]  # C files in device/
    flags: tuple[str, ...]
    script: str
    about: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that both build systems need."""

    toolchain: Toolchain
    model: tuple[str, ...]  # C files
    model_flags: tuple[str, ...]
    libraries: tuple[str, ...]
    variants: tuple[Variant, ...]
    support: tuple[str, ...]  # every file in device/
    machine: Machine | None


def recipe(sources: Sources, emulated: Board, product: Board | None) -> Recipe:
    """What is built of `sources` for the emulated board, and for the product where it is known."""
    plans = [
        (
            "firmware",
            emulated,
            "semihosting",
            "main.c",
            "emulator.ld",
            "what effc runs in the emulator",
        ),
        (
            "example",
            emulated,
            "semihosting",
            "example.c",
            "emulator.ld",
            "an example for the emulator",
        ),
    ]
    if product is not None:
        plans += [
            ("product", product, "serial", "example.c", "product.ld", "the example for the board"),
            ("serial", product, "serial", "main.c", "product.ld", "what effc runs on the board"),
        ]  # fmt: skip
    variants, support = [], dict[str, None]()
    for name, board, to, main, script, about in plans:
        names = support_names(board, "serial" if to == "serial" else "semihosting", main)
        support |= dict.fromkeys(names)
        flags = own_flags(board, "serial" if to == "serial" else "semihosting")
        compiled = tuple(n for n in names if n.endswith(".c"))
        variants.append(Variant(name, compiled, flags, script, about))
    toolchain = toolchain_of(emulated.profile)
    if not toolchain.hosted:
        support["freestanding/string.h"] = None
    return Recipe(
        toolchain,
        tuple(sorted(n for n in sources.files if n.endswith(".c"))),
        sources.flags,
        link_libraries(toolchain),
        tuple(variants),
        tuple(support),
        machine_of(emulated.profile),
    )


def _common(made: Recipe) -> tuple[str, ...]:
    free = ("-ffreestanding",) if not made.toolchain.hosted else ()
    return (*made.toolchain.processor, *STRICT, *free)


def _includes(made: Recipe) -> tuple[str, ...]:
    """Folders with headers, besides the model's."""
    return ("device", *(() if made.toolchain.hosted else ("device/freestanding",)))


def _link(made: Recipe, script: str) -> tuple[str, ...]:
    return (
        "-nostartfiles", "-nostdlib", "-Wl,--gc-sections", "-Wl,--build-id=none",
        "-Wl,--no-warn-rwx-segments", "-T", script,
    )  # fmt: skip


def makefile_text(made: Recipe) -> str:
    """For GNU make, without anything else."""
    elves = " ".join(f"build/{v.name}.elf" for v in made.variants)
    lines = [
        "# Builds the firmware of a model; `make run` runs the example in an emulator.",
        f"CC = {made.toolchain.cc}",
        f"SIZE = {made.toolchain.tool('size')}",
        f"CFLAGS = {' '.join(_common(made))} -I. {' '.join('-I' + f for f in _includes(made))}",
        f"MODEL_FLAGS = {' '.join(made.model_flags)}",
        f"LIBRARIES = -Wl,--start-group {' '.join(made.libraries)} -Wl,--end-group",
        f"MODEL = {' '.join('build/model/' + _object(n) for n in made.model)}",
        "",
        f"all: {elves}",
        "",
        "build/model/%.o: %.c $(wildcard *.h)",
        "\t@mkdir -p $(@D)",
        "\t$(CC) $(CFLAGS) $(MODEL_FLAGS) -c $< -o $@",
    ]
    for v in made.variants:
        objects = [f"build/{v.name}/{_object(n)}" for n in ("effc_ports.c", *v.support)]
        lines += [
            "",
            f"build/{v.name}/%.o: device/%.c",
            "\t@mkdir -p $(@D)",
            f"\t$(CC) $(CFLAGS) {' '.join(v.flags)} $(EXTRA_$*) -c $< -o $@",
            f"build/{v.name}.elf: $(MODEL) {' '.join(objects)} {v.script}",
            f"\t$(CC) {' '.join(made.toolchain.linking)} $(MODEL) {' '.join(objects)}"
            f" {' '.join(_link(made, v.script))}"
            f" -Wl,-Map=build/{v.name}.map $(LIBRARIES) -o $@",
        ]
    lines += ["", f"EXTRA_memory = {' '.join(_MEMORY)}", ""]
    if made.machine is not None:
        lines += [
            "run: build/example.elf",
            f"\t{' '.join(_emulation(made.machine))} -kernel $<",
            "",
        ]
    lines += [
        "size: all",
        f"\t$(SIZE) {elves}",
        "",
        "clean:",
        "\trm -rf build",
        "",
        ".PHONY: all run size clean",
    ]
    return "\n".join(lines) + "\n"


def _emulation(machine: Machine) -> tuple[str, ...]:
    return (
        machine.emulator, "-M", machine.name, *machine.options, "-display", "none", "-serial", "none",
        "-monitor", "none", "-semihosting-config", "enable=on,target=native",
    )  # fmt: skip


def _object(name: str) -> str:
    return name.removesuffix(".c") + ".o"


def cmake_text(made: Recipe) -> str:
    """For CMake 3.20 or later; inside another project it gives the library `effc_model` alone."""
    own = _list(_common(made))
    lines = [
        "cmake_minimum_required(VERSION 3.20)",
        "if(NOT DEFINED PROJECT_NAME)",
        "  set(EFFC_ALONE ON)",
        "  set(CMAKE_SYSTEM_NAME Generic)",
        f"  set(CMAKE_C_COMPILER {made.toolchain.cc})",
        "  set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)",
        "else()",
        "  set(EFFC_ALONE OFF)",
        "endif()",
        "project(effc_model C)",
        "",
        f"add_library(effc_model STATIC {_list(made.model)})",
        "target_include_directories(effc_model PUBLIC ${CMAKE_CURRENT_SOURCE_DIR})",
        f"target_compile_options(effc_model PRIVATE -std=c99 {_list(made.model_flags)})",
        "if(NOT EFFC_ALONE)",
        "  return() # the project around it chooses the processor and has a main of its own",
        "endif()",
        "",
        f"target_compile_options(effc_model PRIVATE {own})",
        f"target_include_directories(effc_model PRIVATE {_list(_includes(made))})",
        "function(effc_firmware name script)",
        "  add_executable(${name}.elf device/effc_ports.c ${ARGN})",
        f"  target_include_directories(${{name}}.elf PRIVATE {_list(_includes(made))})",
        f"  target_compile_options(${{name}}.elf PRIVATE {own})",
        "  target_link_libraries(${name}.elf PRIVATE effc_model)",
        f"  target_link_options(${{name}}.elf PRIVATE {_list(made.toolchain.linking)} {_list(_link(made, '${CMAKE_CURRENT_SOURCE_DIR}/${script}'))})",  # noqa: E501
        f"  target_link_libraries(${{name}}.elf PRIVATE -Wl,--start-group {_list(made.libraries)} -Wl,--end-group)",  # noqa: E501
        "endfunction()",
    ]
    for v in made.variants:
        lines += [
            "",
            f"effc_firmware({v.name} {v.script} {_list('device/' + n for n in v.support)})",
            f"target_compile_options({v.name}.elf PRIVATE {_list(v.flags)})",
        ]
    if not made.toolchain.hosted:
        lines += [
            "",
            f'set_source_files_properties(device/memory.c PROPERTIES COMPILE_OPTIONS "{";".join(_MEMORY)}")',
        ]
    return "\n".join(lines) + "\n"


def _list(items: Iterable[str]) -> str:
    return " ".join(items)
