"""The assembly of the hot loops: accumulators stay in registers on every instruction set."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

pytest.importorskip("tvm")

from effc.backends.tvm import tir  # noqa: E402
from effc.backends.tvm.isa import Isa, isa_of  # noqa: E402
from effc.backends.tvm.kernels.conv import ConvSpec, conv2d  # noqa: E402
from effc.backends.tvm.kernels.gemm import GemmSpec, gemm  # noqa: E402
from effc.backends.tvm.layout import PLAIN, Layout, TensorType  # noqa: E402
from effc.backends.tvm.program import Kernel  # noqa: E402
from effc.core.profiles import load_profile  # noqa: E402

SPILLS = 0.06  # vector stores to the stack for each FMA; a wrong tile has one for every few

SHAPES = {
    "3x3": (64, 64, 28, 3, 1, 1),
    "3x3-7": (64, 128, 7, 3, 1, 1),
    "pointwise": (96, 96, 14, 1, 1, 0),
    "pointwise-narrow": (24, 144, 28, 1, 1, 0),
    "stem": (3, 64, 64, 7, 2, 3),
}


def loops(asm: str) -> Iterator[list[str]]:
    """Bodies of the innermost loops."""
    lines = [line for line in asm.splitlines() if not re.match(r"\.L(?!BB)|\s+\.", line)]
    label = {}
    for i, line in enumerate(lines):
        if found := re.match(r"(\.LBB\w+):", line):
            label[found[1]] = i
        elif found := re.match(r"\s+(?:j\w+|b\.?\w*|cbn?z\s+\w+,|tbn?z.*,)\s+(\.LBB\w+)", line):
            body = lines[label.get(found[1], i) : i + 1]
            if len(body) > 1 and not any(b.startswith(".LBB") for b in body[1:]):
                yield body


def hot(isa: Isa, kernel: Kernel) -> Iterator[tuple[int, int]]:
    """FMAs and vector stores to the stack of each loop that multiplies."""
    asm = tir.llvm_module([kernel.func], isa.target()).inspect_source("asm")
    for body in loops(asm):
        text = [line for line in body if re.search(r"v?fmadd|fmla", line)]
        stores = [
            line
            for line in body
            if re.search(r"\s+vmov\w+\s+%[xyz]mm\d+, .*\(%r[sb]p", line)
            or re.search(r"\s+st[rp]\s+q\d+,.*\[sp", line)
        ]
        if len(text) >= 8:
            yield len(text), len(stores)


def conv(isa: Isa, ic: int, oc: int, size: int, kernel: int, stride: int, pad: int) -> Kernel:
    blocked = Layout(isa.lanes)
    out = (size + 2 * pad - kernel) // stride + 1
    spec = ConvSpec(
        TensorType((1, ic, size, size), "float32", PLAIN if ic == 3 else blocked),
        TensorType((1, oc, out, out), "float32", blocked),
        (kernel, kernel),
        (stride, stride),
        (pad,) * 4,
        (1, 1),
    )
    return conv2d(spec, "f", isa)


@pytest.mark.parametrize("profile", ["x86-avx512-vnni", "x86-avx2", "raspberry-pi-4"])
@pytest.mark.parametrize("shape", [*SHAPES, "gemm", "gemv"])
def test_accumulators_stay_in_registers(profile: str, shape: str) -> None:
    isa = isa_of(load_profile(profile))
    if shape in SHAPES:
        kernel = conv(isa, *SHAPES[shape])
    else:
        rows = 1 if shape == "gemv" else 50
        types = TensorType((rows, 192), "float32"), TensorType((rows, 768), "float32")
        kernel = gemm(GemmSpec(*types), "f", isa)
    found = list(hot(isa, kernel))
    assert found, "no loop with FMAs"
    for fmas, stores in found:
        assert stores <= SPILLS * fmas, found
