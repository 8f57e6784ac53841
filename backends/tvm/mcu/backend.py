"""The answers of the TVM backend for microcontrollers: what it takes, makes, and where that can run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from effc.backends.tvm.mcu.cores import core_of, is_microcontroller
from effc.backends.tvm.mcu.device.boards import board_of
from effc.backends.tvm.mcu.device.description import describe as describe_firmware
from effc.backends.tvm.mcu.device.description import write_description
from effc.backends.tvm.mcu.device.emulator import ELF, QemuDevice, emulator_here
from effc.backends.tvm.mcu.device.firmware import build_firmware
from effc.backends.tvm.mcu.device.linker import STACK_BYTES
from effc.backends.tvm.mcu.device.project import layout_of, write_project
from effc.backends.tvm.mcu.device.serial_port import parse_device
from effc.backends.tvm.mcu.device.toolchain import missing
from effc.backends.tvm.mcu.handover import device_sources
from effc.backends.tvm.mcu.host_build import SOURCES, HostBuild
from effc.backends.tvm.mcu.lower import lower as lower_graph
from effc.backends.tvm.mcu.patches import in_bands
from effc.backends.tvm.mcu.pipeline import PIPELINE
from effc.backends.tvm.mcu.program import Program
from effc.backends.tvm.mcu.sources import write_sources
from effc.core.backend import Availability
from effc.core.errors import ConfigError, LoweringError
from effc.core.measure import Device
from effc.core.profiles import all_profiles
from effc.core.target import HardwareProfile, Target

PRECISIONS = ("fp32", "int8")  # fp32: as the model is, which has to be quantized already
DEVICES = ("emulator", "host")


def accepts(target: Target) -> Availability:
    """Whether the board's toolchain is here, and its memories are known."""
    if target.precision not in PRECISIONS:
        return Availability(
            False, f"microcontrollers do not compute {target.precision}", "choose --precision int8"
        )
    try:
        board_of(target.profile)
        lacking = missing(target.profile)
        _stack(target)
        _device(target)
        layout_of(target)
        _patches(target)
    except ConfigError as error:
        return Availability(False, str(error), error.hint)
    if lacking is not None:
        return Availability(False, f"there is no {lacking[0]}", lacking[1])
    return Availability(True)


def legalize() -> str:
    """Pipeline text."""
    return PIPELINE


def lower(model: ir.Model, target: Target) -> Program:
    """The program, if the board has room for it. LoweringError names the layer, the bytes, and what fits."""
    name = target.about.get("source", "") or model.graph.name or "model"
    core = core_of(target.profile)
    program = lower_graph(model, core, name)
    room, flash = _room(target.profile, _stack(target))
    fits_flash = program.constant_bytes <= flash
    if program.plan.bytes > room and fits_flash and _patches(target):
        program = in_bands(model, core, name, room) or program
    _fits(program, target)
    return program


def compile_program(program: Program, target: Target, out: Path) -> Mapping[str, Path]:
    """The C files below `out`/firmware, and the linked firmware with its map; role -> path."""
    files = dict(write_sources(program, out / SOURCES))
    sources = device_sources(program)
    board = board_of(target.profile)
    linked = build_firmware(sources, board, out / ELF, stack_bytes=_stack(target))
    files["firmware"] = linked.elf
    files["map"] = linked.elf.with_suffix(".map")
    files["description"] = write_description(out, describe_firmware(sources, linked.map))
    project = write_project(
        sources, target.profile, linked.map, out / SOURCES,
        stack_bytes=_stack(target), layout=layout_of(target),
    )  # fmt: skip
    return {**files, **{p.relative_to(out).as_posix(): p for p in project}}


def devices(target: Target) -> Iterable[Device]:
    """The emulated board; else, or with the option device=host, the same C on this machine."""
    if _device(target) != "host" and emulator_here(target.profile):
        return (QemuDevice(target.profile), HostBuild())
    return (HostBuild(),)


def device_at(target: Target, address: str) -> Device:
    """`host`: the same C on this machine; else the board at a serial port."""
    return HostBuild() if address == "host" else parse_device(address)


def describe(program: Program) -> dict[str, Any]:
    """Memory, the calls, and the tensors at the border."""
    return {
        "core": program.core,
        "calls": dict(sorted(Counter(c.op for c in program.calls).items())),
        "kernels": len(program.kernels),
        "arena_bytes": program.plan.bytes,
        "arena_bound_bytes": program.plan.bound,
        "arena_peak": _layer(program, program.plan.peak),
        "constant_bytes": program.constant_bytes,
        "macs": sum(c.macs for c in program.calls),
        **({"bands": program.bands, "banded": program.banded} if program.bands > 1 else {}),
        SOURCES: {
            "inputs": [b.describe() for b in program.inputs],
            "outputs": [b.describe() for b in program.outputs],
        },
    }


def _fits(program: Program, target: Target) -> None:
    profile = target.profile
    room, flash = _room(profile, _stack(target))
    over = program.constant_bytes - flash
    if over > 0:
        raise LoweringError(
            f"{profile.name} has {flash} bytes of flash, and the weights take "
            f"{program.constant_bytes}: {over} bytes too many",
            hint="take a narrower model" + _boards(program),
        )
    over = program.plan.bytes - room
    if over > 0:
        raise LoweringError(
            f"{profile.name} has {room} bytes of RAM for tensors, and the model needs "
            f"{program.plan.bytes}: {over} bytes too many, most of them live in "
            f"{_layer(program, program.plan.peak)}",
            hint=_remedy(program, room),
        )


def _remedy(program: Program, room: int) -> str:
    shapes = [b.tensor.shape for b in program.inputs if len(b.tensor.shape) == 4]
    sides = [s[1:3] if s[-1] <= 4 else s[2:] for s in shapes]  # channels last, channels first
    smaller = "take a smaller input"
    if sides:
        scale = math.sqrt(room / program.plan.bytes)
        fitting = [max(8, int(n * scale) // 8 * 8) for n in sides[0]]
        smaller = f"an input of about {fitting[0]}x{fitting[1]} would fit"
    return smaller + _boards(program)


def _boards(program: Program) -> str:
    """The boards of the profiles that have the room."""
    names = []
    for profile in all_profiles():
        if not is_microcontroller(profile):
            continue
        try:
            room, flash = _room(profile, STACK_BYTES)
        except ConfigError:
            continue
        if room >= program.plan.bytes and flash >= program.constant_bytes:
            names.append(profile.name)
    return f"; the model as it is fits {', '.join(names)}" if names else ""


def _room(profile: HardwareProfile, stack: int) -> tuple[int, int]:
    board = board_of(profile)
    ram = board.ram.bytes - (stack if board.stack == board.ram else 0)
    return ram, board.constants.bytes


def _layer(program: Program, index: int) -> str:
    if not program.calls:
        return "no layer"
    call = program.calls[min(index, len(program.calls) - 1)]
    return f"layer {index} ({call.op}: {', '.join(call.nodes)})"


def _stack(target: Target) -> int:
    text = target.options.get("stack", "")
    if not text:
        return STACK_BYTES
    if not text.isdecimal() or not int(text):
        raise ConfigError(f"stack={text} is no number of bytes", hint="such as stack=4096")
    return int(text)


def _patches(target: Target) -> bool:
    text = target.options.get("patches", "auto")
    if text not in ("auto", "off"):
        raise ConfigError(f"patches={text} is neither auto nor off")
    return text == "auto"


def _device(target: Target) -> str:
    name = target.options.get("device", DEVICES[0])
    if name not in DEVICES:
        raise ConfigError(f"device={name} is not one of {', '.join(DEVICES)}")
    return name
