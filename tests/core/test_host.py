"""Detection of the host from recorded /proc and /sys files, and from this machine's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from effc.core.errors import ConfigError
from effc.core.host import detect_host
from effc.core.profiles import load_profile

ZEN = (
    "fpu sse4_2 ssse3 popcnt avx avx2 fma f16c bmi1 bmi2 movbe avx512f avx512bw avx512cd avx512dq"
    " avx512vl avx512_vnni avx512vbmi avx512_bf16"
)


def machine(root: Path, cpuinfo: str, siblings: dict[int, str], files: dict[str, str]) -> Path:
    """A root folder with the files that the detection reads."""
    texts = {"proc/cpuinfo": cpuinfo, "proc/meminfo": "MemTotal:  2048 kB\nMemFree: 1 kB\n"}
    for cpu, text in siblings.items():
        texts[f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"] = text
    for name, text in {**texts, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def cache(index: int, level: int, kind: str, size: str, shared: str) -> dict[str, str]:
    base = f"sys/devices/system/cpu/cpu0/cache/index{index}"
    return {
        f"{base}/level": str(level),
        f"{base}/type": kind,
        f"{base}/size": size,
        f"{base}/shared_cpu_list": shared,
    }


def test_x86_with_hyper_threads(tmp_path: Path) -> None:
    info = (
        f"processor : 0\nvendor_id : AuthenticAMD\nmodel name : Zen\ncpu MHz : 1000.5\nflags : {ZEN}\n"
        "\nprocessor : 1\nflags : fpu"
    )
    files = {
        **cache(0, 1, "Data", "32K", "0-1"),
        **cache(1, 1, "Instruction", "64K", "0-1"),
        **cache(2, 3, "Unified", "8M", "0-3"),
    }
    siblings = {0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"}
    host = detect_host(machine(tmp_path, info, siblings, files), "x86_64", "Linux")
    assert (host.mcpu, host.triple, host.cores, host.vendor) == (
        "x86-64-v4", "x86_64-linux-gnu", 2, "AuthenticAMD",
    )  # fmt: skip
    assert {"avx512vnni", "avx512vbmi", "avx512bf16", "fma"} <= set(host.features)
    assert "amx-int8" not in host.features
    assert [(m.name, m.bytes.value, m.shared_by) for m in host.memories] == [
        ("L1d", 32 * 1024, 2), ("L3", 8 << 20, 4), ("DRAM", 2 << 20, 1),
    ]  # fmt: skip
    assert host.frequency is not None and host.frequency.value == 1000.5e6


@pytest.mark.parametrize(
    ("flags", "level"),
    [
        (ZEN, "x86-64-v4"),
        (ZEN.replace("avx512vl", ""), "x86-64-v3"),
        (ZEN.replace("fma", ""), "x86-64-v2"),
        ("fpu", "x86-64"),
    ],
)
def test_the_level_needs_every_feature(tmp_path: Path, flags: str, level: str) -> None:
    info = f"processor : 0\nflags : {flags}\n"
    if level == "x86-64-v2":
        info = info.replace("avx512f", "").replace("avx512bw", "")
    assert detect_host(machine(tmp_path, info, {0: "0"}, {}), "x86_64", "Linux").mcpu == level


def test_arm_core_by_part_number(tmp_path: Path) -> None:
    info = (
        "processor : 0\nFeatures : fp asimd asimddp fphp atomics\n"
        "CPU implementer : 0x41\nCPU part : 0xd0b\n"
    )
    files = {"sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "2400000"}
    root = machine(tmp_path, info, {n: str(n) for n in range(4)}, files)
    host = detect_host(root, "aarch64", "Linux")
    assert (host.mcpu, host.cores, host.triple) == ("cortex-a76", 4, "aarch64-linux-gnu")
    assert set(host.features) == {"neon", "dotprod", "fullfp16", "lse"}
    assert host.frequency is not None and host.frequency.value == 2.4e9


def test_a_containers_quota_bounds_the_cores(tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/cpu.max": "150000 100000"}
    root = machine(tmp_path, "processor : 0\nflags : fpu\n", {n: str(n) for n in range(8)}, files)
    assert detect_host(root, "x86_64", "Linux").cores == 2


def test_bare_kernels_hide_much(tmp_path: Path) -> None:
    host = detect_host(tmp_path, "x86_64", "Linux")
    assert (host.mcpu, host.cores, host.memories, host.frequency) == ("x86-64", 1, (), None)


@pytest.mark.parametrize(("arch", "system"), [("x86_64", "Darwin"), ("riscv64", "Linux")])
def test_other_machines_are_refused(tmp_path: Path, arch: str, system: str) -> None:
    with pytest.raises(ConfigError, match=f"{system}|{arch}") as caught:
        detect_host(tmp_path, arch, system)
    assert caught.value.hint


def test_this_machine_is_timed() -> None:
    """The peaks are rates of this machine: more than one scalar operation a cycle, and finite."""
    host = load_profile("host", measure=True)
    assert set(host.peak) == {"float32", "int8"}
    assert all(1e8 < n.value < 1e16 and n.basis == "measured" for n in host.peak.values())
    dram = next(m for m in host.memories if m.name == "DRAM")
    assert dram.bandwidth is not None and 1e8 < dram.bandwidth.value < 1e14
    assert load_profile("host").peak == {}
