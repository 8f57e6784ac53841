"""The board's own compiler: its commands, its errors in one line, and what it made."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from effc.core.errors import BackendUnavailable, ConfigError, LoweringError
from effc.core.target import HardwareProfile

_PACKAGES = {
    "arm-none-eabi-gcc": "apt install gcc-arm-none-eabi libnewlib-arm-none-eabi",
    "riscv64-unknown-elf-gcc": "apt install gcc-riscv64-unknown-elf",
}
_SECONDS = 300
STRICT = ("-std=c99", "-Wall", "-Wextra", "-ffunction-sections", "-fdata-sections", "-fno-common")


@dataclass(frozen=True, slots=True)
class Toolchain:
    """GCC for one processor: `cc`, the flags that choose the processor, and whether it has a C library.

    `linking` are the flags that choose its libraries: GCC knows those of RISC-V without suffixes like Zicsr,
    and takes 64-bit ones where it finds none.
    """

    cc: str
    processor: tuple[str, ...]
    linking: tuple[str, ...]
    hosted: bool

    def tool(self, name: str) -> str:
        """A program of the same toolchain: nm, objdump, objcopy, ..."""
        return f"{self.cc.removesuffix('gcc')}{name}"


def toolchain_of(profile: HardwareProfile) -> Toolchain:
    """The compiler of `profile` and its flags; ConfigError where the profile does not name one."""
    facts = profile.toolchain
    cc = facts.get("cc", "")
    if not cc:
        raise ConfigError(
            f"target {profile.name!r} names no C compiler",
            hint="set `cc` in [toolchain] of its profile",
        )
    if profile.triple.startswith("riscv32"):
        march, mabi = facts.get("march", "rv32im_zicsr"), "-mabi=" + facts.get("mabi", "ilp32")
        compiling = (f"-march={march}", mabi, "-msmall-data-limit=0")
        return Toolchain(cc, compiling, (f"-march={march.split('_')[0]}", mabi), hosted=False)
    hard = profile.triple.endswith("hf")
    floats = (
        ("-mfloat-abi=hard", f"-mfpu={facts.get('fpu', 'auto')}") if hard else ("-mfloat-abi=soft",)
    )
    flags = (f"-mcpu={profile.mcpu}", "-mthumb", *floats)
    return Toolchain(cc, flags, flags, hosted=True)


def missing(profile: HardwareProfile) -> tuple[str, str] | None:
    """The compiler that is not here, and the remedy; None where it is."""
    cc = toolchain_of(profile).cc
    if shutil.which(cc):
        return None
    return cc, _PACKAGES.get(cc, f"install {cc}, or set `cc` in [toolchain] of the profile")


def call(command: Sequence[str], folder: Path, what: str) -> str:
    """Run one program of the toolchain; gives its output. Errors are one line.

    LoweringError carries the first error line; `overruns` of linker.py reads the whole from its `said`.
    """
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=False, timeout=_SECONDS
        )
    except FileNotFoundError as error:
        raise BackendUnavailable(
            f"there is no {command[0]}", hint=_PACKAGES.get(command[0], f"install {command[0]}")
        ) from error
    except subprocess.TimeoutExpired as error:
        raise LoweringError(f"{command[0]} took over {_SECONDS} s to {what}") from error
    if done.returncode:
        raise ToolError(command[0], what, done.stderr or done.stdout, done.returncode)
    return done.stdout


class ToolError(LoweringError):
    """A program of the toolchain failed; `said` is all that it said."""

    def __init__(self, program: str, what: str, said: str, code: int) -> None:
        lines = said.splitlines()
        first = [x for x in lines if "error" in x or "undefined" in x or "overflowed" in x] or lines
        super().__init__(
            f"{program} can't {what}: {(first or [f'exit status {code}'])[0][:300]}",
            hint="if the profile's compiler is the right one, report it with the model",
        )
        self.said = said


def version_of(cc: str) -> str:
    """The first line of the compiler's version, or "unknown"."""
    try:
        done = subprocess.run(
            [cc, "--version"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return (done.stdout.splitlines() or ["unknown"])[0]
