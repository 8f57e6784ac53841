"""Integer kernels of AArch64 under QEMU, bit for bit: `sdot` and `smlal`, cases as of other processors."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("tvm")

from effc.backends.tvm.compilers import c_compiler  # noqa: E402
from effc.backends.tvm.isa import Isa, isa_of  # noqa: E402
from effc.backends.tvm.kernels.int8_dot import scheme  # noqa: E402
from effc.backends.tvm.qemu_user import emulator  # noqa: E402
from effc.core.profiles import load_profile  # noqa: E402

from . import test_int8_conv, test_int8_gemm  # noqa: E402
from .emulated import emulated  # noqa: E402

TRIPLE = "aarch64-linux-gnu"
pytestmark = pytest.mark.skipif(
    c_compiler(TRIPLE) is None or emulator(TRIPLE) is None,
    reason="no aarch64-linux-gnu-gcc or no qemu-aarch64 here",
)
WAYS = {"sdot": "raspberry-pi-5", "smlal": "raspberry-pi-4"}


def isa_for(way: str) -> Isa:
    isa = isa_of(load_profile(WAYS[way]))
    assert scheme(isa) == way
    return isa


@pytest.mark.parametrize("way", WAYS)
def test_convolutions(way: str, tmp_path: Path) -> None:
    cases = test_int8_conv.CASES if way == "sdot" else test_int8_conv.EVERYWHERE
    test_int8_conv.check(emulated(tmp_path), isa_for(way), cases)


@pytest.mark.parametrize("way", WAYS)
def test_products(way: str, tmp_path: Path) -> None:
    test_int8_gemm.check(emulated(tmp_path), isa_for(way))


@pytest.mark.parametrize("way", WAYS)
def test_products_of_activations(way: str, tmp_path: Path) -> None:
    test_int8_gemm.check_matmuls(emulated(tmp_path), isa_for(way))
