"""Memories by the linker: what fits, what is over and by how much; wrong code in one line; faults."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from effc.backends.tvm.mcu.device.boards import MACHINES, board_of, machine_of
from effc.backends.tvm.mcu.device.description import describe, write_description
from effc.backends.tvm.mcu.device.emulator import QemuDevice
from effc.backends.tvm.mcu.device.firmware import build_firmware
from effc.backends.tvm.mcu.device.linker import linker_script, overrun_error
from effc.core.artifact import Artifact
from effc.core.errors import BackendUnavailable, ConfigError, DeviceError, LoweringError
from effc.core.profiles import all_profiles, load_profile
from effc.core.target import HardwareProfile

NAME = 'pixels "x"'
BOARDS = ("nrf52840", "stm32f746", "stm32h743", "cortex-m55", "rp2040", "esp32-c3")


def changed(network, find: str, by: str):
    sources = network.sources()
    text = sources.files["model.c"]
    assert find in text
    return dataclasses.replace(sources, files={**sources.files, "model.c": text.replace(find, by)})


@pytest.mark.parametrize("name", BOARDS)
def test_the_emulated_memories_are_the_products(name):
    profile = load_profile(name)
    board = board_of(profile)
    sizes = {
        m.name: int(m.bytes.value)
        for m in profile.memories
        if m.name[:4] in ("flas", "SRAM", "DTCM", "ITCM")
    }
    found: dict[str, int] = {}
    for region in board.regions:
        found["+".join(sorted(region.names))] = region.bytes
        windows = machine_of(profile).windows.values()
        assert any(o <= region.origin and region.end <= o + n for o, n in windows)
    regions = sorted(board.regions, key=lambda r: r.origin)
    assert all(a.end <= b.origin for a, b in zip(regions, regions[1:], strict=False))
    assert sum(found.values()) == sum(sizes.values())


def test_memories_that_adjoin_are_one():
    board = board_of(load_profile("stm32f746"), "product")
    assert (board.ram.names, board.ram.bytes) == (("DTCM", "SRAM"), 320 * 1024)
    assert (board.code.origin, board.ram.origin) == (0x08000000, 0x20000000)
    # 480 MHz: not adjoining, so the stack goes to the tightly coupled memory
    board = board_of(load_profile("stm32h743"), "product")
    assert (board.ram.names, board.stack.names) == (("SRAM",), ("DTCM",))
    assert [r.names for r in board.others] == [("SRAM-D2",), ("SRAM-D3",)]


@pytest.mark.parametrize("over", [32, 20_000])
def test_an_overrun_says_how_many_bytes(over, built, network, tmp_path):
    made = built("nrf52840")
    used, there = made.firmware.map.regions["SRAM"]
    size = there - used + over
    sources = changed(network, "static int8_t hidden", f"int8_t much[{size}]; static int8_t hidden")
    sources = dataclasses.replace(
        sources,
        files={
            **sources.files,
            "model.c": sources.files["model.c"].replace("return 0;", "return much[0];"),
        },
    )
    with pytest.raises(LoweringError) as caught:
        build_firmware(sources, board_of(made.profile), tmp_path / "x.elf")
    bytes_over = int(re.search(r"needs (\d+) bytes more of SRAM", str(caught.value))[1])
    assert over - 16 <= bytes_over <= over + 16
    assert "nrf52840" in str(caught.value) and "(262144 bytes)" in str(caught.value)
    assert caught.value.hint and "\n" not in str(caught.value)
    # and what just fits is linked
    fits = dataclasses.replace(
        sources,
        files={
            **sources.files,
            "model.c": sources.files["model.c"].replace(
                f"much[{size}]", f"much[{size - over - 32}]"
            ),
        },
    )
    linked = build_firmware(fits, board_of(made.profile), tmp_path / "fits.elf").map.regions["SRAM"]
    assert there - 64 <= linked[0] <= there


def test_flash_overruns_are_told_apart(built, network, tmp_path):
    made = built("nrf52840")
    sources = changed(
        network, "static int8_t hidden", "const int8_t weights[1100000] = {1}; static int8_t hidden"
    )
    text = sources.files["model.c"].replace("return 0;", "return weights[input[0] & 1];")
    sources = dataclasses.replace(sources, files={**sources.files, "model.c": text})
    with pytest.raises(LoweringError, match=r"needs \d+ bytes more of flash .*1048576"):
        build_firmware(sources, board_of(made.profile), tmp_path / "x.elf")


def test_other_failures_of_the_linker_are_no_overruns():
    board = board_of(load_profile("nrf52840"))
    assert overrun_error(board, "undefined reference to `expf'") is None


@pytest.mark.parametrize(
    ("find", "by", "says"),
    [
        ("int effc_invoke(void) {", "int effc_invoke(void) { undeclared = 1;", "undeclared"),
        (
            "int effc_invoke(void) {",
            "int absent(void); int effc_invoke(void) { absent();",
            "absent",
        ),
    ],
)
def test_wrong_code_is_one_line(find, by, says, built, network, tmp_path):
    made = built("nrf52840")
    with pytest.raises(LoweringError, match=says) as caught:
        build_firmware(changed(network, find, by), board_of(made.profile), tmp_path / "x.elf")
    assert "\n" not in str(caught.value) and "arm-none-eabi-gcc" in str(caught.value)


def test_a_missing_compiler_has_a_remedy(network, tmp_path):
    profile = load_profile("nrf52840")
    profile = replaced(profile, toolchain={**profile.toolchain, "cc": "no-such-gcc"})
    with pytest.raises(BackendUnavailable, match="no-such-gcc"):
        build_firmware(network.sources(), board_of(profile), tmp_path / "x.elf")


def replaced(profile: HardwareProfile, **fields) -> HardwareProfile:
    import msgspec

    return msgspec.structs.replace(profile, **fields)


@pytest.mark.parametrize(
    ("toolchain", "memories", "says"),
    [
        ({"machine": "raspi3b"}, None, "emulated board"),
        (None, (), "no memory for code"),
        ({"machine": "mps3-an547"}, None, "no memory for|no room"),
    ],
)
def test_profiles_that_say_too_little_are_refused(toolchain, memories, says):
    profile = load_profile("nrf52840")
    if toolchain:
        profile = replaced(profile, toolchain={**profile.toolchain, **toolchain})
    if memories is not None:
        profile = replaced(profile, memories=memories)
    with pytest.raises(ConfigError, match=says):
        board_of(profile)


def run(sources, profile, folder: Path, samples):
    made = build_firmware(sources, board_of(profile), folder / "firmware.elf", stack_bytes=1024)
    write_description(folder, describe(sources, made.map))
    with QemuDevice(profile).runner(Artifact(folder, None)) as runner:
        return runner.infer({NAME: samples[0]})


BEGIN = "int effc_invoke(void) {"


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        # a misaligned load of 32 bits, which an M0+ does not have; the emulated M3 would do it
        (
            "rp2040",
            "volatile uintptr_t at = ((uintptr_t)input | 3u) - 2; if (*(int32_t *)at == 3) return 1;",
            "fault",
        ),
        ("nrf52840", "*(volatile int *)0x60000000u = 1;", "fault"),
        ("esp32-c3", "*(volatile int *)0xf0000000u = 1;", "fault"),
        ("nrf52840", "return 7;", "effc_invoke gave 7"),
    ],
)
def test_failures_at_run_time_are_one_line(name, code, says, built, network, samples, tmp_path):
    profile = built(name).profile
    with pytest.raises(DeviceError, match=says) as caught:
        run(changed(network, BEGIN, BEGIN + code), profile, tmp_path, samples)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["rp2040", "esp32-c3"])
def test_floating_point_without_a_unit(name, built, network, samples, tmp_path):
    """It is the toolchain's library for this very processor that computes."""
    profile = built(name).profile
    code = "volatile float f = (float)input[0]; volatile double d = f * 1.5;"
    code += "if (d * 2.0 != input[0] * 3) return 9;"
    found = run(changed(network, BEGIN, BEGIN + code), profile, tmp_path, samples)
    np.testing.assert_array_equal(found["scores"], network.reference(samples[0]))


@pytest.mark.parametrize("name", ["nrf52840", "stm32h743", "esp32-c3"])
@pytest.mark.parametrize("room", [880, 3000])
def test_a_stack_that_is_too_small_is_told(name, room, built, network, samples, tmp_path):
    """One that is just touched down to its end, and one that is left."""
    profile = built(name).profile
    code = f"volatile char room[{room}]; for (int i = {room - 1}; i >= 0; i--) room[i] = 1;"
    with pytest.raises(DeviceError) as caught:
        run(changed(network, BEGIN, BEGIN + code), profile, tmp_path, samples)
    assert "stack=BYTES" in caught.value.hint


def test_the_firmware_of_another_model_is_refused(built, network, tmp_path):
    made = built("nrf52840")
    sources = network.sources()
    described = describe(sources, made.firmware.map)
    other = dict(described.inputs[0], shape=[1, 38])
    import msgspec

    write_description(tmp_path, msgspec.structs.replace(described, inputs=(other,)))
    (tmp_path / "firmware.elf").write_bytes(made.firmware.elf.read_bytes())
    with (
        pytest.raises(DeviceError, match="another model"),
        QemuDevice(made.profile).runner(Artifact(tmp_path, None)) as runner,
    ):
        runner.infer({NAME: np.zeros((1, 38), np.int8)})


def test_every_profile_of_a_microcontroller_can_be_emulated():
    for profile in all_profiles():
        machine = profile.toolchain.get("machine")
        if machine:
            assert machine in MACHINES
            assert "MEMORY" in linker_script(board_of(profile))
