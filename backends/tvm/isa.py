"""Vector instruction sets as kernels see them, read off a hardware profile or off this machine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from effc.core.errors import ConfigError
from effc.core.host import detect_host
from effc.core.target import HardwareProfile


@dataclass(frozen=True, slots=True)
class Isa:
    """`lanes` float32 elements to a vector register, `registers` of them; also the channel block."""

    name: str  # "avx512", "avx2", "sse", "neon"
    lanes: int
    registers: int
    triple: str
    mcpu: str
    features: tuple[str, ...] = ()  # LLVM's names
    fma: bool = True
    l1: int = 32 * 1024  # bytes of first-level data cache
    l2: int = 1024 * 1024  # bytes of second-level cache a core

    def has(self, feature: str) -> bool:
        """Whether LLVM's `feature` (such as "avx512vnni", "dotprod") may be used."""
        return feature in self.features

    def target(self) -> Any:
        """The tvm.target.Target to compile for, bound to itself as host."""
        return _target(self)


@cache
def _target(isa: Isa) -> Any:
    import tvm

    # 512-bit registers are asked for by every kernel that says 16 lanes; LLVM's caution about their
    # clock (`prefer-256-bit`) is for code that it vectorizes itself
    tuning = ["-prefer-256-bit"] if isa.name == "avx512" else []
    spec = {
        "kind": "llvm",
        "mtriple": isa.triple,
        "mcpu": isa.mcpu,
        "mattr": [*(f"+{f}" for f in isa.features), *tuning],
    }
    return tvm.target.Target(spec, host=spec)


_X86_LEVELS = (  # name, lanes, registers, what it needs, fma
    ("avx512", 16, 32, {"avx512f", "avx512bw", "avx512dq", "avx512vl"}, True),
    ("avx2", 8, 16, {"avx2", "fma"}, True),
    ("sse", 4, 16, set[str](), False),
)


def isa_of(profile: HardwareProfile) -> Isa:
    """The instruction set that code for `profile` may use. ConfigError where there is none here."""
    isa = _registers(profile)
    sizes = {m.name: int(m.bytes.value) // m.shared_by for m in profile.memories}
    return replace(isa, l1=sizes.get("L1d", isa.l1), l2=sizes.get("L2", isa.l2))


def _registers(profile: HardwareProfile) -> Isa:
    arch = profile.triple.partition("-")[0]
    features = set(profile.features)
    if arch in ("x86_64", "amd64"):
        for name, lanes, registers, needs, fma in _X86_LEVELS:
            if needs <= features:
                mcpu = profile.mcpu or "x86-64"
                return Isa(name, lanes, registers, profile.triple, mcpu, profile.features, fma)
    if arch in ("aarch64", "arm64"):
        mcpu = profile.mcpu or "generic"
        return Isa("neon", 4, 32, profile.triple, mcpu, profile.features)
    raise ConfigError(
        f"target {profile.name!r}: the triple {profile.triple!r} is neither x86-64 nor AArch64",
        hint="this backend's kernels are written for those two",
    )


def host_isa() -> Isa:
    """The instruction set of this machine."""
    return isa_of(detect_host())


def runs_on(wanted: Isa, here: Isa) -> bool:
    """Whether code for `wanted` runs on a machine of `here`: same architecture, no feature missing."""
    same = wanted.triple.partition("-")[0] == here.triple.partition("-")[0]
    return same and set(wanted.features) <= set(here.features)
