"""QEMU as a device: bit-exact outputs, exact instruction counts, the depth of the stack. No times."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from effc.backends.tvm.mcu.device.boards import Machine, machine_of
from effc.backends.tvm.mcu.device.counting import (
    INVOKE,
    Counts,
    plugin,
    ranges_text,
    read_counts,
)
from effc.backends.tvm.mcu.device.description import Description, read_description
from effc.backends.tvm.mcu.device.frames import Conversation, Ran
from effc.backends.tvm.mcu.device.session import Session
from effc.backends.tvm.mcu.device.symbols import call_sites, symbols
from effc.backends.tvm.mcu.device.toolchain import toolchain_of
from effc.core.artifact import Artifact
from effc.core.errors import DeviceError
from effc.core.measure import Array, Feeds, LayerTime, Measurement, Runner
from effc.core.target import HardwareProfile

ELF = "firmware.elf"  # in the artifact
_SILENT = 300.0  # seconds: a large model under the counting plugin
_SHIFT = 5  # of -icount: 2^5 ns of virtual time an instruction


@dataclass(frozen=True, slots=True)
class QemuDevice:
    """The emulated board of a profile."""

    profile: HardwareProfile
    source: Literal["device", "emulator"] = "emulator"
    counts_instructions: bool = True

    @property
    def name(self) -> str:
        """ "qemu mps2-an500 (cortex-m7)"."""
        machine = _machine(self.profile)
        return f"qemu {machine.name} ({machine.core})"

    @property
    def how(self) -> str:
        """For the verdict."""
        return f"by {self.name}"

    def runner(self, artifact: Artifact, threads: int = 1) -> Runner:
        """A runner of the artifact's firmware.elf."""
        return QemuRunner(artifact, self)


def emulator_here(profile: HardwareProfile) -> bool:
    """Whether QEMU for the emulated board of `profile` is installed."""
    machine = machine_of(profile)
    return machine is not None and shutil.which(machine.emulator) is not None


def _machine(profile: HardwareProfile) -> Machine:
    machine = machine_of(profile)
    if machine is None:
        raise DeviceError(f"target {profile.name!r} names no emulated board")
    return machine


class QemuRunner(Runner):
    """One firmware; the emulator is started for the first inference, a second one, slower, for counting."""

    def __init__(self, artifact: Artifact, device: QemuDevice) -> None:
        self.artifact = artifact
        self.device = device
        self.description: Description = read_description(artifact.path)
        self._plain: Emulation | None = None
        self._counting: Emulation | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for emulation in (self._plain, self._counting):
            if emulation is not None:
                emulation.close()
        self._plain = self._counting = None

    def infer(self, feeds: Feeds) -> dict[str, Array]:
        if self._plain is None:
            self._plain = self._start(counting=False)
        return self._plain.infer(feeds)[0]

    def count(self, feeds: Feeds) -> tuple[Counts | None, int, Ran]:
        """One inference: counts by function and call (None without plugins), all instructions, the stack."""
        if self._counting is None:
            self._counting = self._start(counting=True)
        _, ran = self._counting.infer(feeds)
        counts = self._counting.counts()
        return counts, counts.total if counts else self._counting.instructions(ran), ran

    def time(self, feeds: Feeds, repeats: int) -> Measurement:
        """The exact count of instructions; `repeats` would count the same again."""
        _, instructions, ran = self.count(feeds)
        return Measurement(
            "emulator",
            self.device.name,
            instructions=instructions,
            peak_bytes=self.description.map.model_ram_bytes + ran.stack_bytes,
        )

    def layers(self, feeds: Feeds, repeats: int) -> list[LayerTime]:
        """Instructions of every call, what they call included; the last row is the rest of effc_invoke."""
        counts, total, _ = self.count(feeds)
        if counts is None or self._counting is None:
            return []
        return by_layer(self.description, counts.callees(self._counting.sites), total)

    def _start(self, counting: bool) -> Emulation:
        elf = self.artifact.file(ELF)
        emulation = Emulation(elf, self.device.profile, counting=counting)
        try:
            emulation.session = Session(emulation.talk, *self.description.borders)
        except BaseException:
            emulation.close()
            raise
        return emulation


def by_layer(
    description: Description, calls: Sequence[tuple[str, int]], total: int
) -> list[LayerTime]:
    """The counts of calls by the layers that they are.

    Layers and calls of one C function belong together in order where they are as many; else their counts
    are one row.
    """
    found: dict[str, list[int]] = defaultdict(list)
    for callee, count in calls:
        # GCC names clones of a function FUNCTION.constprop.0, .isra.0, .part.0
        found[callee.split(".")[0]].append(count)
    layers: dict[str, list[int]] = defaultdict(list)
    for i, layer in enumerate(description.layers):
        layers[layer.function].append(i)
    rows: dict[int, LayerTime] = {}
    for function, members in layers.items():
        counts = found.get(function, [])
        own = [description.layers[i] for i in members]
        if len(counts) == len(own):
            for i, layer, count in zip(members, own, counts, strict=True):
                rows[i] = LayerTime(layer.name, layer.template, layer.nodes, 0.0, count)
        elif counts:
            name = ", ".join(x.name for x in own)
            nodes = tuple(n for x in own for n in x.nodes)
            rows[members[0]] = LayerTime(name, own[0].template, nodes, 0.0, sum(counts))
    ordered = [rows[i] for i in sorted(rows)]
    rest = total - sum(r.instructions or 0 for r in ordered)
    return [*ordered, LayerTime("(effc_invoke itself)", "calls", (), 0.0, rest)]


class Emulation:
    """One QEMU process with a firmware that waits for commands."""

    session: Session

    def __init__(self, elf: Path, profile: HardwareProfile, *, counting: bool) -> None:
        machine = _machine(profile)
        self.machine = machine
        self.folder = Path(tempfile.mkdtemp(prefix="effc-qemu-"))
        self.read_runs = 0
        self.plugin = plugin(machine.emulator) if counting else None
        self.functions = self.sites = []
        extra: list[str] = []
        if counting:
            toolchain = toolchain_of(profile)
            self.functions = symbols(toolchain, elf.parent, elf.name)
            invoke = next((s for s in self.functions if s.name == INVOKE), None)
            if invoke is None:
                raise DeviceError(f"{str(elf)!r} has no function {INVOKE}", hint="build it again")
            self.sites = call_sites(toolchain, elf, invoke)
        if self.plugin is not None:
            (self.folder / "ranges").write_text(ranges_text(self.functions))
            extra = ["-plugin", f"{self.plugin},ranges=ranges,out=counts"]
        elif counting:
            extra = ["-icount", f"shift={_SHIFT}"]
        for name in ("effc.in", "effc.out"):
            os.mkfifo(self.folder / name)
        # both ends are held, so that opening waits for nobody
        self.stream = Pipes(
            os.open(self.folder / "effc.in", os.O_RDWR | os.O_NONBLOCK),
            os.open(self.folder / "effc.out", os.O_RDWR | os.O_NONBLOCK),
            self,
        )
        command = [
            machine.emulator, "-M", machine.name, *machine.options, "-display", "none", "-serial", "none",
            "-monitor", "none", "-semihosting-config", "enable=on,target=native", *extra,
            "-kernel", str(elf.resolve()),
        ]  # fmt: skip
        with (self.folder / "said").open("wb") as said:
            try:
                self.process = subprocess.Popen(
                    command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=said, stderr=said
                )
            except OSError as error:
                self.stream.close()
                shutil.rmtree(self.folder, ignore_errors=True)
                raise DeviceError(
                    f"there is no {machine.emulator}",
                    hint="apt install qemu-system-arm qemu-system-misc",
                ) from error
        self.talk = Conversation(self.stream, _SILENT, f"qemu {machine.name}")

    def infer(self, feeds: Feeds) -> tuple[dict[str, Array], Ran]:
        return self.session.infer(feeds)

    def counts(self) -> Counts | None:
        """Of the last inference; None without the plugin."""
        if self.plugin is None:
            return None
        found = read_counts((self.folder / "counts").read_text(), self.functions)
        if not found:
            raise DeviceError(
                "the counting plugin saw no inference", hint="report it with the model"
            )
        return found[-1]

    def instructions(self, ran: Ran) -> int:
        """From the ticks of -icount: within 2 instructions, and 30 for every 2^24 ticks."""
        if self.machine.ticks_hertz is None:  # ticks are instructions there
            return ran.ticks
        return round(ran.ticks / self.machine.ticks_hertz * 1e9 / (1 << _SHIFT))

    def why_ended(self) -> DeviceError:
        """The error for a process that has ended."""
        said = (self.folder / "said").read_text(errors="replace")
        lines = [x for x in said.splitlines() if x.strip()]
        line = next((x for x in lines if x.startswith("fault")), lines[0] if lines else "")
        plain = "".join(c for c in line if c.isprintable())[:200]
        # a core whose stack has left the memory can't even enter its handler
        stack = line.endswith(" stack") or "Lockup" in said
        return DeviceError(
            f"qemu {self.machine.name} ended with status {self.process.poll()}"
            + (f": {plain}" if plain else ""),
            hint="the stack was too small: --backend-option stack=BYTES" if stack else "",
        )

    def close(self) -> None:
        """End the firmware, or else the process."""
        self.stream.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(2)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class Pipes:
    """The two named pipes as a stream."""

    def __init__(self, to: int, back: int, owner: Emulation) -> None:
        self.to, self.back, self.owner = to, back, owner

    def read(self, count: int, seconds: float) -> bytes:
        begin = time.monotonic()
        while True:
            # short turns: nothing else tells that the emulator has ended
            if select.select([self.back], [], [], 0.2)[0]:
                return os.read(self.back, count)
            if self.owner.process.poll() is not None:
                raise self.owner.why_ended()
            if time.monotonic() - begin > seconds:
                return b""

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            if select.select([], [self.to], [], 0.2)[1]:
                view = view[os.write(self.to, view) :]
            elif self.owner.process.poll() is not None:
                raise self.owner.why_ended()

    def close(self) -> None:
        for fd in (self.to, self.back):
            with contextlib.suppress(OSError):
                os.close(fd)
