"""Processor cores of microcontrollers, read off hardware profiles."""

from __future__ import annotations

from dataclasses import dataclass

from effc.core.target import HardwareProfile

_ARCHITECTURES = ("thumb", "riscv32", "xtensa")


@dataclass(frozen=True, slots=True)
class Core:
    """What kernels are chosen by, and the memories of the board in bytes (0: not known)."""

    name: str  # "cortex-m7"
    dsp: bool = False  # ARM's SIMD on halves of a word
    ram: int = 0  # the largest memory that can hold the arena
    flash: int = 0


def is_microcontroller(profile: HardwareProfile) -> bool:
    """Whether code for `profile` runs on bare metal: firmware instead of a library."""
    arch, _, rest = profile.triple.partition("-")
    return arch.startswith(_ARCHITECTURES) and "linux" not in rest


def core_of(profile: HardwareProfile) -> Core:
    """The core of a microcontroller's profile."""
    sizes = {m.name: int(m.bytes.value) for m in profile.memories}
    arch = profile.triple.partition("-")[0]
    dsp = arch.startswith("thumbv7em") or (arch.startswith("thumbv8") and "dsp" in profile.features)
    ram = max((n for m, n in sizes.items() if m != "flash" and not m.startswith("L1")), default=0)
    return Core(profile.mcpu or arch, dsp, ram, sizes.get("flash", 0))
