"""Facts about this machine that a measurement depends on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import msgspec

_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
_TURBO = Path("/sys/devices/system/cpu/intel_pstate/no_turbo")


class Machine(msgspec.Struct, frozen=True):
    """What ran a benchmark. `governor` and `turbo` are empty where the kernel does not tell."""

    cpu: str
    cores: int  # that this process may use
    governor: str
    turbo: str
    load: float  # runnable threads over the last minute, before the benchmark


def this_machine() -> Machine:
    """Read /proc and /sys; nothing is timed."""
    name = platform.processor() or platform.machine()
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        if line.startswith(("model name", "Model")):
            name = line.partition(":")[2].strip()
            break
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    turbo = {"0": "on", "1": "off"}.get(_read(_TURBO).strip(), "")
    return Machine(name, cores, _read(_GOVERNOR).strip(), turbo, round(os.getloadavg()[0], 2))


def cautions(machine: Machine) -> list[str]:
    """Why timings on `machine` may not repeat."""
    found = []
    if machine.load > 0.3 * machine.cores:
        found.append(f"other work is running: load {machine.load} on {machine.cores} cores")
    if machine.governor and machine.governor != "performance":
        found.append(f"the frequency governor is {machine.governor!r}, so clocks change with load")
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
