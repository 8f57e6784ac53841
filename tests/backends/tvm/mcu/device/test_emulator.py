"""Firmware in QEMU: bits, exact counts, the stack, and what is said when it goes wrong."""

from __future__ import annotations

import dataclasses
import re
import subprocess

import numpy as np
import pytest

from effc.backends.tvm.mcu.device import emulator
from effc.backends.tvm.mcu.device.boards import board_of
from effc.backends.tvm.mcu.device.description import describe, write_description
from effc.backends.tvm.mcu.device.emulator import QemuDevice, QemuRunner
from effc.backends.tvm.mcu.device.firmware import build_firmware
from effc.core.artifact import Artifact
from effc.core.measure import interleaved

BOARDS = ("nrf52840", "stm32f746", "stm32h743", "cortex-m55", "rp2040", "esp32-c3")
NAME = 'pixels "x"'


@pytest.mark.parametrize("name", BOARDS)
def test_every_core_gives_the_same_bits(name, built, network, samples):
    made = built(name)
    with QemuDevice(made.profile).runner(made.artifact) as runner:
        for x in samples:
            found = runner.infer({NAME: x})
            assert list(found) == ["scores"]
            assert found["scores"].dtype == np.int8
            np.testing.assert_array_equal(found["scores"], network.reference(x))


@pytest.mark.parametrize("name", ["stm32f746", "rp2040", "esp32-c3"])
def test_counts_are_exact_and_by_layer(name, built, samples):
    made = built(name)
    device = QemuDevice(made.profile)
    with device.runner(made.artifact) as runner:
        assert isinstance(runner, QemuRunner)
        first = runner.time({NAME: samples[0]}, 3)
        assert runner.time({NAME: samples[0]}, 1) == first
        layers = runner.layers({NAME: samples[0]}, 1)
        counts, total, _ = runner.count({NAME: samples[0]})
        # counting must not change what is computed
        assert counts is not None
    assert (first.source, first.seconds, first.device) == ("emulator", (), device.name)
    assert first.instructions == total == sum(counts.functions.values())
    names = [(x.name, x.nodes) for x in layers]
    assert names == [
        ("hidden", ("fc_0", "relu_0")),
        ("scores", ("fc_1",)),
        ("(effc_invoke itself)", ()),
    ]
    assert sum(x.instructions for x in layers) == total
    assert all(x.seconds == 0 for x in layers)
    # 24 rows of 37 products, 10 rows of 24: at least a load of each factor and a multiply-accumulate
    assert 3 * 24 * 37 < layers[0].instructions < 15 * 24 * 37
    assert 3 * 10 * 24 < layers[1].instructions < 15 * 10 * 24
    assert 3 * (24 * 37 + 10 * 24) < total
    # of its 71 bytes, and the functions that it calls
    assert made.firmware.map.model_ram_bytes <= first.peak_bytes - 64


def test_counts_agree_with_the_disassembly(built, samples):
    """`effc_invoke` has no loop: every one of its instructions is executed once."""
    made = built("stm32f746")
    with QemuDevice(made.profile).runner(made.artifact) as runner:
        counts, _, _ = runner.count({NAME: samples[0]})
    said = subprocess.run(
        ["arm-none-eabi-objdump", "-d", "--disassemble=effc_invoke", made.firmware.elf],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    code = [
        x for x in re.findall(r"^\s+[0-9a-f]+:\t[0-9a-f ]+\t(\S+)", said, re.M)
        if x not in (".word", ".short", "nop")
    ]  # fmt: skip
    assert counts.functions["effc_invoke"] == len(code)


def test_without_plugins_icount_comes_close(built, samples, monkeypatch):
    made = built("stm32f746")
    device = QemuDevice(made.profile)
    with device.runner(made.artifact) as runner:
        exact = runner.time({NAME: samples[0]}, 1).instructions
    monkeypatch.setattr(emulator, "plugin", lambda name: None)
    with device.runner(made.artifact) as runner:
        close = runner.time({NAME: samples[0]}, 1).instructions
        assert runner.layers({NAME: samples[0]}, 1) == []
    assert exact <= close <= exact + 60


def test_interleaving_counts_once(built, samples, monkeypatch):
    made = built("nrf52840")
    with QemuDevice(made.profile).runner(made.artifact) as runner:
        times: list[int] = []
        own = runner.time
        monkeypatch.setattr(runner, "time", lambda f, n: times.append(n) or own(f, n))
        (measured,) = interleaved([runner], {NAME: samples[0]})
    assert len(times) == 1 and measured.instructions and measured.median is None


def test_the_stack_is_measured(network, built, samples, tmp_path):
    """A function that writes 1500 bytes of stack moves the high-water mark by that."""
    profile = built("stm32f746").profile
    sources = network.sources()
    deep = (
        "#include <stdint.h>\n__attribute__((noinline)) static int deep(int n) {\n"
        "  volatile uint8_t room[1500]; for (int i = 0; i < 1500; i++) room[i] = (uint8_t)(i + n);\n"
        "  return room[n & 1023] == 255;\n}\n"
    )
    text = sources.files["model.c"].replace(
        "int effc_invoke(void) {", deep + "int effc_invoke(void) {\n  if (deep(3)) return 5;"
    )
    depths = []
    for i, files in enumerate((sources.files, {**sources.files, "model.c": text})):
        out = tmp_path / str(i)
        changed = dataclasses.replace(sources, files=files)
        made = build_firmware(changed, board_of(profile), out / "firmware.elf")
        write_description(out, describe(changed, made.map))
        with QemuDevice(profile).runner(Artifact(out, None)) as runner:
            depths.append(runner.count({NAME: samples[0]})[2].stack_bytes)
    assert 1500 - 128 <= depths[1] - depths[0] <= 1500 + 64
