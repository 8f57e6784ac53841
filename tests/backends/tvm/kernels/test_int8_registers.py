"""The assembly of integer kernels' hot loops: accumulators stay in registers."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("tvm")

from effc.backends.tvm import tir  # noqa: E402
from effc.backends.tvm.isa import isa_of  # noqa: E402
from effc.backends.tvm.kernels.int8_conv import int_conv  # noqa: E402
from effc.core.profiles import load_profile  # noqa: E402

from .int8 import Case  # noqa: E402
from .test_registers import SPILLS, loops  # noqa: E402

P1 = (1, 1, 1, 1)
SHAPES = {
    "3x3": Case(64, 64, (28, 28), (3, 3), pads=P1),
    "3x3-7": Case(64, 128, (7, 7), (3, 3), pads=P1),
    "pointwise-narrow": Case(24, 144, (28, 28), (1, 1)),
    "stem": Case(3, 64, (64, 64), (7, 7), (2, 2), (3,) * 4, plain_in=True),
    "depthwise": Case(64, 64, (28, 28), (3, 3), pads=P1, groups=64),
    "depthwise-7": Case(64, 64, (7, 7), (3, 3), pads=P1, groups=64),
    "depthwise-strided": Case(64, 64, (28, 28), (5, 5), (2, 2), (1, 1, 2, 2), groups=64),
}


@pytest.mark.parametrize("profile", ["x86-avx512-vnni", "x86-avx2"])
@pytest.mark.parametrize("shape", SHAPES)
def test_accumulators_stay_in_registers(profile: str, shape: str) -> None:
    isa = isa_of(load_profile(profile))
    kernel = int_conv(SHAPES[shape].spec(isa), "f", isa)
    asm = tir.llvm_module([kernel.func], isa.target()).inspect_source("asm")
    found = []
    for body in loops(asm):
        steps = [line for line in body if re.search(r"vpdpbusd|vpmaddwd|vfmadd", line)]
        stores = [
            line for line in body if re.search(r"\s+vmov\w+\s+%[xyz]mm\d+, .*\(%r[sb]p", line)
        ]
        if len(steps) >= 6:
            found.append((len(steps), len(stores)))
    assert found, "no loop with products"
    for steps, stores in found:
        # without VNNI LLVM gathers steps by their weights, and lays products aside
        assert stores <= (SPILLS if isa.lanes == 16 else 0.25) * steps, found
