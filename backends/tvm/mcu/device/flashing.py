"""Command lines that put a firmware on a board: OpenOCD's and pyOCD's, from the profile."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from effc.core.errors import ConfigError, DeviceError
from effc.core.target import HardwareProfile

_SECONDS = 120


@dataclass(frozen=True, slots=True)
class FlashCommand:
    """One way to flash; `here` says whether its program is installed."""

    program: str
    arguments: tuple[str, ...]

    @property
    def here(self) -> bool:
        return shutil.which(self.program) is not None

    @property
    def text(self) -> str:
        """For a shell."""
        return shlex.join((self.program, *self.arguments))


def flash_commands(profile: HardwareProfile, elf: Path | str) -> tuple[FlashCommand, ...]:
    """The ways that the profile knows: `openocd` (its files) and `pyocd` (its target) in [toolchain]."""
    found = []
    configuration = profile.toolchain.get("openocd", "")
    if configuration:
        files = (part for name in configuration.split() for part in ("-f", name))
        found.append(FlashCommand("openocd", (*files, "-c", f"program {elf} verify reset exit")))
    target = profile.toolchain.get("pyocd", "")
    if target:
        found.append(FlashCommand("pyocd", ("flash", "--target", target, str(elf))))
    return tuple(found)


def flash(profile: HardwareProfile, elf: Path) -> FlashCommand:
    """Flash with the first program that is installed. DeviceError with its last line where it fails."""
    commands = flash_commands(profile, elf)
    if not commands:
        raise ConfigError(
            f"target {profile.name!r} does not say how it is flashed",
            hint="set `openocd` or `pyocd` in [toolchain] of its profile",
        )
    command = next((c for c in commands if c.here), None)
    if command is None:
        raise DeviceError(
            f"there is no {' and no '.join(c.program for c in commands)}",
            hint=f"install one of them: then it is {commands[0].text}",
        )
    try:
        done = subprocess.run(
            [command.program, *command.arguments],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DeviceError(f"{command.program} took over {_SECONDS} s") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise DeviceError(
            f"{command.program} can't flash: {lines[-1] if lines else done.returncode}",
            hint=f"the command was: {command.text}",
        )
    return command
