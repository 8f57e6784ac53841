"""What of an instruction set the kernels have to know: vector lanes, registers, and LLVM's names."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import tvm
from tvm.target import codegen


@dataclass(frozen=True, slots=True)
class Isa:
    """`lanes` are float32 lanes of a vector register; `l1` and `l2` are bytes of data cache a core."""

    name: str
    lanes: int
    registers: int
    mcpu: str
    triple: str = "x86_64-linux-gnu"
    features: tuple[str, ...] = ()  # LLVM's names, added to those of `mcpu`
    fma: bool = True
    broadcast_operand: bool = False  # a scalar in memory can be an operand of a vector FMA
    l1: int = 32 * 1024
    l2: int = 1024 * 1024

    def target(self) -> Any:
        """The tvm target, its own host."""
        return _target(self.triple, self.mcpu, self.features)


@lru_cache(maxsize=64)
def _target(triple: str, mcpu: str, features: tuple[str, ...]) -> Any:
    described: dict[str, Any] = {"kind": "llvm", "mtriple": triple, "mcpu": mcpu}
    if features:
        described["mattr"] = [f if f[0] in "+-" else f"+{f}" for f in features]
    target = tvm.target.Target(described)
    return target.with_host(target)


def isa_of(
    mcpu: str,
    triple: str = "x86_64-linux-gnu",
    features: tuple[str, ...] = (),
    *,
    l1: int = 32 * 1024,
    l2: int = 1024 * 1024,
) -> Isa:
    """The ISA of an LLVM processor name; `mcpu` may be empty where `features` say it all."""
    target = _target(triple, mcpu, features)

    def has(feature: str) -> bool:
        return bool(codegen.target_has_features(feature, target))

    if triple.startswith(("x86_64", "i686")):
        if has("avx512f") and has("avx512vl"):
            facts = ("avx512", 16, 32, True, True)
        elif has("avx"):
            facts = ("avx2" if has("avx2") else "avx", 8, 16, has("fma"), False)
        else:
            facts = ("sse", 4, 16, False, False)
    else:
        facts = ("neon", 4, 32, True, True)
    name, lanes, registers, fma, broadcast = facts
    return Isa(name, lanes, registers, mcpu, triple, features, fma, broadcast, l1, l2)


def host_mcpu() -> str:
    """LLVM's name of the processor that this runs on."""
    return str(codegen.llvm_get_system_cpu())
