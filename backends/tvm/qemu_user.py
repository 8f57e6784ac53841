"""QEMU's user mode as a device: programs of another processor run here, one instruction after the other.

Answers are the processor's own. Times mean nothing; instructions are counted exactly, by a plugin
(`qemu_count.c`) where this QEMU takes plugins.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

from effc.backends.tvm.compilers import architecture, c_compiler, gnu_triple
from effc.backends.tvm.isa import Isa
from effc.backends.tvm.library import PROGRAM
from effc.backends.tvm.streams import CallName, StreamRunner
from effc.core.artifact import Artifact
from effc.core.errors import DeviceError
from effc.core.measure import Feeds, LayerTime, Measurement, Runner

_CLOCK = {"aarch64": 113, "arm": 403}  # numbers of the system call clock_gettime (64 bits of time)
PLUGIN = Path(__file__).parent / "qemu_count.c"


def emulator(triple: str) -> str | None:
    """The QEMU program for a processor: one with plugins, or the static one without."""
    name = f"qemu-{architecture(triple)}"
    return shutil.which(name) or shutil.which(f"{name}-static")


def install_hint(triple: str) -> str:
    """How to get the emulator of a processor and the C library that its programs need."""
    library = {"aarch64": "arm64", "arm": "armhf"}.get(architecture(triple), architecture(triple))
    return f"Debian and Ubuntu: apt install qemu-user libc6-{library}-cross"


def system_root(triple: str) -> Path | None:
    """The folder that holds the C library of a processor; None where it is not installed."""
    found = Path("/usr") / gnu_triple(triple)
    return found if (found / "lib").is_dir() else None


@cache
def _models(program: str) -> frozenset[str]:
    done = subprocess.run([program, "-cpu", "help"], capture_output=True, text=True, check=False)
    return frozenset(word for line in done.stdout.splitlines() for word in line.split()[:1])


@dataclass(frozen=True, slots=True)
class QemuUser:
    """The emulated processor of a target: its own model where QEMU has it, else one with every feature."""

    isa: Isa
    source: Literal["device", "emulator"] = field(default="emulator", init=False)

    @property
    def name(self) -> str:
        """Such as "qemu-aarch64 (cortex-a76)"."""
        return f"qemu-{architecture(self.isa.triple)} ({self.cpu})"

    @property
    def how(self) -> str:
        """What the verdict says about the way the answers were got."""
        return f"emulator: {self.name}"

    @property
    def cpu(self) -> str:
        """QEMU's model of the processor."""
        return self.isa.mcpu if self.isa.mcpu in _models(self.program) else "max"

    @property
    def program(self) -> str:
        """The path of QEMU. DeviceError where it is not installed."""
        found = emulator(self.isa.triple)
        if found is None:
            raise DeviceError(
                f"there is no qemu-{architecture(self.isa.triple)}",
                hint=install_hint(self.isa.triple),
            )
        return found

    def command(self, program: Path, plugin: Sequence[str] = ()) -> list[str]:
        """The command that runs `program`."""
        root = system_root(self.isa.triple)
        library = ["-L", str(root)] if root is not None else []
        return [self.program, *library, "-cpu", self.cpu, *plugin, str(program)]

    def runner(self, artifact: Artifact, threads: int = 1) -> Runner:
        return EmulatedRunner(artifact, self, threads)


def available(triple: str) -> bool:
    """Whether programs of the processor can run here."""
    return emulator(triple) is not None and system_root(triple) is not None


class EmulatedRunner(StreamRunner):
    """`run_model` under QEMU; instructions instead of seconds."""

    def __init__(self, artifact: Artifact, qemu: QemuUser, threads: int = 1) -> None:
        program = artifact.path.resolve() / PROGRAM
        if not os.access(program, os.X_OK) and program.is_file():
            program.chmod(program.stat().st_mode | 0o111)  # an unpacked file may have lost it
        super().__init__(artifact, qemu.command(program), qemu.name, threads)
        self.qemu, self._path = qemu, program

    def time(self, feeds: Feeds, repeats: int) -> Measurement:
        """Instructions of one inference on one thread; no seconds."""
        counts = self.counts(feeds)
        total = sum(counts) if counts is not None else None
        return Measurement("emulator", self.device, self.name, 1, instructions=total)

    def layers(self, feeds: Feeds, repeats: int) -> list[LayerTime]:
        """None: an emulator can't tell times."""
        return []

    def instructions(self, feeds: Feeds) -> list[tuple[CallName, int]] | None:
        """Instructions of every call, in order; None where this QEMU takes no plugins."""
        counts = self.counts(feeds)
        return None if counts is None else list(zip(self.calls(), counts, strict=True))

    def counts(self, feeds: Feeds) -> list[int] | None:
        """Instructions of every call of an inference that is not the first."""
        with tempfile.TemporaryDirectory(prefix="effc-count-") as name:
            folder = Path(name)
            plugin = build_plugin(folder, self.qemu.program)
            if plugin is None:
                return None
            out = folder / "counts"
            clock = _CLOCK[architecture(self.qemu.isa.triple)]
            options = ["-plugin", f"{plugin},out={out},call={clock}"]
            command = [*self.qemu.command(self._path, options), "--profile", "1"]
            done = subprocess.run(command, input=self.packed(feeds), capture_output=True)
            if done.returncode or not out.is_file():
                return None
            totals = [int(line) for line in out.read_text().split()]
        calls = len(self.calls())
        # one look at the clock before the first call and one behind each
        if len(totals) != calls + 1:
            return None
        return [b - a for a, b in zip(totals, totals[1:], strict=False)]


def build_plugin(folder: Path, program: str) -> Path | None:
    """Compile the plugin into `folder`; None without a compiler or where QEMU takes no plugins."""
    asked = subprocess.run([program, "-h"], capture_output=True, text=True, check=False)
    compiler = c_compiler()
    if "-plugin" not in asked.stdout or compiler is None:
        return None
    said = subprocess.run(
        [program, "--version"], capture_output=True, text=True, check=False
    ).stdout
    version = said.partition("version ")[2].partition(".")[0]
    number = 1 if version.isdigit() and int(version) < 9 else 2
    made = folder / "qemu_count.so"
    flags = ["-O2", "-fPIC", "-shared", f"-DPLUGIN_VERSION={number}"]
    command = [*compiler, *flags, str(PLUGIN), "-o", str(made)]
    done = subprocess.run(command, capture_output=True, check=False)
    return made if done.returncode == 0 else None
