"""This machine as a hardware profile: what the kernel says about it. Nothing is timed here."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable
from pathlib import Path

from effc.core.errors import ConfigError
from effc.core.target import HardwareProfile, Memory, Number

# flag of /proc/cpuinfo -> LLVM feature; where both use the same word it stands only once
_X86_FEATURES = {
    "sse4_2": "sse4.2", "avx": "avx", "avx2": "avx2", "fma": "fma", "f16c": "f16c", "avx_vnni": "avxvnni",
    "avx512f": "avx512f", "avx512bw": "avx512bw", "avx512dq": "avx512dq", "avx512vl": "avx512vl",
    "avx512cd": "avx512cd", "avx512_vnni": "avx512vnni", "avx512vbmi": "avx512vbmi",
    "avx512_bf16": "avx512bf16",
    "avx512_fp16": "avx512fp16", "amx_tile": "amx-tile", "amx_int8": "amx-int8", "amx_bf16": "amx-bf16",
}  # fmt: skip
# the psABI levels name what code may use without believing a hypervisor's model number
_X86_LEVELS = (
    ("x86-64-v4", {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
    ("x86-64-v3", {"avx2", "fma", "f16c", "bmi1", "bmi2", "movbe"}),
    ("x86-64-v2", {"sse4_2", "ssse3", "popcnt"}),
)
_ARM_FEATURES = {
    "asimd": "neon", "asimddp": "dotprod", "fphp": "fullfp16", "i8mm": "i8mm", "bf16": "bf16",
    "sve": "sve", "atomics": "lse",
}  # fmt: skip
# MIDR part numbers of implementer 0x41 (Arm), from the cores' technical reference manuals
_ARM_PARTS = {
    0xD03: "cortex-a53", 0xD05: "cortex-a55", 0xD07: "cortex-a57", 0xD08: "cortex-a72",
    0xD09: "cortex-a73", 0xD0A: "cortex-a75", 0xD0B: "cortex-a76", 0xD0C: "neoverse-n1",
    0xD40: "neoverse-v1", 0xD41: "cortex-a78", 0xD42: "cortex-a78ae", 0xD44: "cortex-x1",
    0xD49: "neoverse-n2", 0xD4F: "neoverse-v2",
}  # fmt: skip


def detect_host(root: Path = Path("/"), machine: str = "", system: str = "") -> HardwareProfile:
    """The profile of this machine, from Linux's /proc and /sys below `root`.

    `machine` and `system` are what `platform` says unless given. ConfigError on any other system, and
    on a processor that is neither x86-64 nor AArch64.
    """
    machine = machine or platform.machine()
    system = system or platform.system()
    if system != "Linux":
        raise ConfigError(
            f"this host can't be detected: that reads Linux's /proc and /sys, and this is {system}",
            hint="name a profile, or the path of your own TOML: --target my-machine.toml",
        )
    info = _cpuinfo(root / "proc/cpuinfo")
    flags = set((info.get("flags") or info.get("Features") or "").split())
    if machine in ("x86_64", "AMD64"):
        mcpu = next((n for n, needed in _X86_LEVELS if needed <= flags), "x86-64")
        features = tuple(llvm for flag, llvm in _X86_FEATURES.items() if flag in flags)
        triple, vendor = "x86_64-linux-gnu", info.get("vendor_id", "")
    elif machine in ("aarch64", "arm64"):
        part = int(info.get("CPU part", "0"), 16)
        mcpu = (
            _ARM_PARTS.get(part, "generic") if info.get("CPU implementer") == "0x41" else "generic"
        )
        features = tuple(llvm for flag, llvm in _ARM_FEATURES.items() if flag in flags)
        triple, vendor = "aarch64-linux-gnu", "arm"
    else:
        raise ConfigError(
            f"this host can't be detected: its processor is {machine}, neither x86-64 nor AArch64",
            hint="write a profile for it (hwprofiles/README.md) and give its path",
        )
    cpus = sorted(os.sched_getaffinity(0)) if root == Path("/") else _listed(root)
    cores = _physical_cores(root, cpus)
    title = info.get("model name") or mcpu
    return HardwareProfile(
        name="host",
        title=f"this machine: {title}, {cores} core{'s' if cores > 1 else ''}",
        vendor=vendor,
        backend="tvm",
        source="/proc and /sys of this machine",
        triple=triple,
        mcpu=mcpu,
        features=features,
        cores=cores,
        frequency=_frequency(root, info),
        memories=(*_caches(root, cpus[0]), *_dram(root)),
        toolchain={"cc": "cc"},
        notes="detected; peaks are measured when they are asked for",
    )


def available_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpuinfo(path: Path) -> dict[str, str]:
    """The first processor's entries of /proc/cpuinfo."""
    entries: dict[str, str] = {}
    for line in _read(path).splitlines():
        key, colon, value = line.partition(":")
        if colon:
            entries.setdefault(key.strip(), value.strip())
        elif entries and "processor" in entries:
            break
    return entries


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # a container or a hypervisor may hide any of these files
        return ""


def _listed(root: Path) -> list[int]:
    folders = (root / "sys/devices/system/cpu").glob("cpu[0-9]*")
    return sorted(int(p.name.removeprefix("cpu")) for p in folders) or [0]


def _physical_cores(root: Path, cpus: Iterable[int]) -> int:
    """Cores, not hyper-threads: siblings count once. A container's CPU quota bounds them."""
    base = root / "sys/devices/system/cpu"
    groups = {_read(base / f"cpu{n}/topology/thread_siblings_list") or str(n) for n in cpus}
    quota, _, period = _read(root / "sys/fs/cgroup/cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit():
        return max(1, min(len(groups), -(-int(quota) // int(period))))
    return max(1, len(groups))


def _frequency(root: Path, info: dict[str, str]) -> Number | None:
    path = "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq"
    khz = _read(root / path)
    if khz.isdigit():
        return Number(int(khz) * 1e3, "measured", f"/{path}")
    mhz = info.get("cpu MHz", "")
    if re.fullmatch(r"[0-9.]+", mhz):
        return Number(float(mhz) * 1e6, "measured", "/proc/cpuinfo, cpu MHz when it was read")
    return None


def _caches(root: Path, cpu: int) -> Iterable[Memory]:
    base = f"sys/devices/system/cpu/cpu{cpu}/cache"
    for folder in sorted((root / base).glob("index*")):
        kind, level = _read(folder / "type"), _read(folder / "level")
        size = re.fullmatch(r"(\d+)([KM])", _read(folder / "size"))
        if kind == "Instruction" or size is None:
            continue
        count = int(size[1]) * (1024 if size[2] == "K" else 1 << 20)
        yield Memory(
            f"L{level}d" if kind == "Data" else f"L{level}",
            Number(count, "measured", f"/{base}/{folder.name}/size"),
            shared_by=_span(_read(folder / "shared_cpu_list")),
        )


def _span(text: str) -> int:
    """The number of CPUs in a kernel list such as `0-3,8`."""
    count = 0
    for item in filter(None, text.split(",")):
        low, _, high = item.partition("-")
        count += int(high or low) - int(low) + 1
    return max(1, count)


def _dram(root: Path) -> Iterable[Memory]:
    found = re.search(r"MemTotal:\s+(\d+) kB", _read(root / "proc/meminfo"))
    if found:
        yield Memory("DRAM", Number(int(found[1]) * 1024, "measured", "/proc/meminfo, MemTotal"))
