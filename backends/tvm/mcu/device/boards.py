"""Boards as the linker and the emulator see them, read off a hardware profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from effc.core.errors import ConfigError
from effc.core.target import HardwareProfile

KIB = 1024
ON_CHIP = ("flash", "ITCM", "DTCM", "SRAM")  # and SRAM-D2, ...: what a linker script may use

Place = Literal["emulator", "product"]


@dataclass(frozen=True, slots=True)
class Region:
    """One stretch of memory: `names` are the profile's, more than one where they adjoin."""

    names: tuple[str, ...]
    origin: int
    bytes: int

    @property
    def label(self) -> str:
        """The linker's name."""
        return "_".join(self.names).replace("-", "_").upper()

    @property
    def end(self) -> int:
        """The address behind it."""
        return self.origin + self.bytes


@dataclass(frozen=True, slots=True)
class Machine:
    """An emulated board: where it has memory, and how it is told apart from the product."""

    name: str  # QEMU's
    emulator: str
    core: str  # the processor that QEMU models
    windows: Mapping[str, tuple[int, int]]  # "code", "data", or a memory's name -> origin, bytes
    options: tuple[str, ...] = ()
    uart: int = 0x40004000  # of Arm's CMSDK; 0: none
    ticks_hertz: float | None = None  # of the tick counter, for counting with -icount


_MPS2 = {"code": (0x0000_0000, 4096 * KIB), "data": (0x2000_0000, 4096 * KIB)}

# QEMU's documentation, "Arm MPS2 and MPS3 boards"; Arm Application Notes AN385, AN386, AN500, AN547
MACHINES = {
    m.name: m
    for m in (
        Machine("mps2-an385", "qemu-system-arm", "cortex-m3", _MPS2, ticks_hertz=25e6),
        Machine("mps2-an386", "qemu-system-arm", "cortex-m4", _MPS2, ticks_hertz=25e6),
        Machine("mps2-an500", "qemu-system-arm", "cortex-m7", _MPS2, ticks_hertz=25e6),
        Machine(
            "mps3-an547",
            "qemu-system-arm",
            "cortex-m55",
            {
                "ITCM": (0x0000_0000, 512 * KIB),
                "SRAM": (0x0100_0000, 2048 * KIB),
                "DTCM": (0x2000_0000, 512 * KIB),
            },
            uart=0x4930_3000,
            ticks_hertz=32e6,
        ),
        Machine(
            "virt",
            "qemu-system-riscv32",
            "rv32",
            {"code": (0x8000_0000, 8192 * KIB), "data": (0x8080_0000, 8192 * KIB)},
            ("-bios", "none", "-m", "32M"),
            uart=0,
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Board:
    """Where things go. `code` holds instructions, `constants` the weights, `ram` what is written."""

    profile: HardwareProfile
    code: Region
    constants: Region  # `code`, where the board has flash
    ram: Region  # data, arena
    stack: Region  # `ram`, or the tightly coupled memory beside it
    others: tuple[Region, ...]
    place: Place

    @property
    def regions(self) -> tuple[Region, ...]:
        """Each once."""
        return tuple(dict.fromkeys((self.code, self.constants, self.stack, self.ram, *self.others)))


def machine_of(profile: HardwareProfile) -> Machine | None:
    """The emulated board of a profile, if there is one."""
    name = profile.toolchain.get("machine", "")
    return MACHINES.get(name)


def is_microcontroller(profile: HardwareProfile) -> bool:
    """Whether a profile is of a processor that runs without an operating system."""
    return profile.triple.startswith(("thumb", "riscv32")) and "linux" not in profile.triple


def board_of(profile: HardwareProfile, place: Place = "emulator") -> Board:
    """Lay the memories of `profile` out, at the emulated board's addresses or at the product's own.

    The sizes are always the product's. ConfigError where the profile does not say enough.
    """
    regions = _merged(_product(profile)) if place == "product" else _emulated(profile)
    code = [r for r in regions if r.names[0] == "flash"] or [
        r for r in regions if r.names[0] == "ITCM"
    ]
    data = [r for r in regions if r.names[0] not in ("flash", "ITCM")]
    if not code or not data:
        raise ConfigError(
            f"target {profile.name!r} has no memory for {'code' if not code else 'data'}",
            hint="its profile needs [[memories]] flash (or ITCM) and SRAM",
        )
    largest = max(data, key=lambda r: r.bytes)
    tight = next((r for r in data if r.names == ("DTCM",)), None)
    constants, ram = code[0], largest
    if code[0].names[0] == "ITCM" and tight is not None and tight is not largest:
        # no flash: weights do not fit beside the instructions, and what is written goes to the fast memory
        constants, ram = largest, tight
    stack = tight if tight is not None and ram is largest else ram
    others = tuple(r for r in data if r not in (constants, ram, stack))
    return Board(profile, code[0], constants, ram, stack, others, place)


def _memories(profile: HardwareProfile) -> list[tuple[str, int]]:
    return [
        (m.name, int(m.bytes.value))
        for m in profile.memories
        if m.name in ON_CHIP or m.name.startswith("SRAM")
    ]


def _product(profile: HardwareProfile) -> list[Region]:
    regions = []
    for name, size in _memories(profile):
        origin = profile.toolchain.get(f"origin_{name}")
        if origin is None:
            raise ConfigError(
                f"target {profile.name!r} does not say where its {name} begins",
                hint=f"add origin_{name} to [toolchain] of its profile",
            )
        regions.append(Region((name,), int(origin, 0), size))
    return regions


def _merged(regions: Sequence[Region]) -> list[Region]:
    """Memories for data that adjoin are one."""
    found: list[Region] = []
    for r in sorted(regions, key=lambda r: r.origin):
        last = found[-1] if found else None
        data = r.names[0] not in ("flash", "ITCM")
        if last is not None and data and last.end == r.origin and last.names[0] != "flash":
            found[-1] = Region((*last.names, *r.names), last.origin, last.bytes + r.bytes)
        else:
            found.append(r)
    return found


def _emulated(profile: HardwareProfile) -> list[Region]:
    machine = machine_of(profile)
    if machine is None:
        known = ", ".join(MACHINES)
        raise ConfigError(
            f"target {profile.name!r} names no emulated board",
            hint=f"set `machine` in [toolchain] of its profile to one of {known}",
        )
    try:
        regions = _merged(_product(profile))
    except ConfigError:
        regions = [Region((name,), 0, size) for name, size in _memories(profile)]
    taken: dict[str, int] = {}
    placed = []
    for r in regions:
        kind = "code" if r.names[0] in ("flash", "ITCM") else "data"
        window = r.names[0] if r.names[0] in machine.windows else kind
        if window not in machine.windows:
            continue
        origin, size = machine.windows[window]
        begin = taken.get(window, origin)
        if begin + r.bytes > origin + size:
            raise ConfigError(
                f"target {profile.name!r}: {machine.name} has no room for {' and '.join(r.names)}"
                f" of {r.bytes} bytes",
                hint="name another `machine` in [toolchain] of the profile",
            )
        placed.append(Region(r.names, begin, r.bytes))
        taken[window] = -(-(begin + r.bytes) // 4096) * 4096
    return placed
