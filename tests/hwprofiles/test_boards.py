"""The built-in boards: complete, and every number with its basis and source."""

from __future__ import annotations

from pathlib import Path

import pytest

import effc.hwprofiles
from effc.core.profiles import all_profiles, load_profile, numbers
from effc.core.target import HardwareProfile

FOLDER = Path(effc.hwprofiles.__file__).parent
BOARDS = {p.name: p for p in all_profiles()}
PROMISED = {
    "x86-avx2", "x86-avx512-vnni", "raspberry-pi-4", "raspberry-pi-5", "jetson-orin-nano",
    "jetson-agx-orin", "rtx-3060", "rtx-4090", "t4", "l4", "h200", "iphone-15", "macbook", "stm32f746",
    "stm32h743", "nrf52840", "cortex-m55", "rp2040",
}  # fmt: skip


def test_the_promised_boards_are_there() -> None:
    assert PROMISED <= set(BOARDS)


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_a_board_is_complete(board: HardwareProfile) -> None:
    assert (FOLDER / board.vendor / f"{board.name}.toml").is_file()
    assert board.source and board.triple
    assert board.peak, "no peak: no roofline"
    for key, number in numbers(board):
        assert number.basis == "datasheet", f"{key}: nobody measured on a {board.name} yet"
        assert len(number.source) > 10, key


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_peaks_and_caches_are_plausible(board: HardwareProfile) -> None:
    """Catches a slipped digit: halving the width never lowers the peak, nor a level of cache its size."""
    order = [board.peak[d].value for d in ("float32", "float16", "int8") if d in board.peak]
    assert order == sorted(order)
    if board.frequency is not None:
        per_cycle = max(order) / board.frequency.value / board.cores
        assert 0.5 <= per_cycle <= 4096
    levels = [m.bytes.value for m in board.memories if m.name in ("L1d", "L2", "DRAM")]
    assert levels == sorted(levels)


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_an_alias_means_its_board(board: HardwareProfile) -> None:
    for name in (board.name, *board.aliases):
        assert load_profile(name) == board


def test_jetson_is_the_orin_nano() -> None:
    assert load_profile("jetson").name == "jetson-orin-nano"


@pytest.mark.parametrize(
    "board",
    [b for b in (load_profile("host"), *BOARDS.values()) if b.backend == "tvm"],
    ids=lambda b: b.name,
)
def test_llvm_knows_the_processor(board: HardwareProfile) -> None:
    """-mcpu and every feature are names of LLVM's for the triple (a wrong one is ignored with a warning)."""
    codegen = pytest.importorskip("tvm.target.codegen")
    target = pytest.importorskip("tvm.target").Target(
        {
            "kind": "llvm",
            "mtriple": board.triple,
            "mcpu": board.mcpu,
            "mattr": [f"+{f}" for f in board.features],
        }
    )
    assert codegen.llvm_is_valid_cpu(board.mcpu, board.triple)
    assert set(board.features) <= codegen.llvm_get_cpu_features(target)
