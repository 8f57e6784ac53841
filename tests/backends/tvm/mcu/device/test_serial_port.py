"""The firmware for boards behind an emulated UART, reached through a pseudo-terminal as a serial port."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from effc.backends.tvm.mcu.device.boards import board_of, machine_of
from effc.backends.tvm.mcu.device.description import describe, write_description
from effc.backends.tvm.mcu.device.firmware import build_firmware
from effc.backends.tvm.mcu.device.flashing import flash, flash_commands
from effc.backends.tvm.mcu.device.serial_port import SerialDevice, parse_device
from effc.core.artifact import Artifact
from effc.core.errors import ConfigError, DeviceError
from effc.core.profiles import load_profile

NAME = 'pixels "x"'


@contextlib.contextmanager
def powered(profile, elf: Path, folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """An emulated board with its UART at a pseudo-terminal; gives the terminal's path, and the board."""
    machine = machine_of(profile)
    said = folder / "said"
    with said.open("wb") as out:
        process = subprocess.Popen(
            [machine.emulator, "-M", machine.name, *machine.options, "-display", "none", "-monitor", "none",
             "-serial", "pty", "-kernel", str(elf)],
            stdout=out, stderr=out, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        for _ in range(200):
            found = re.search(r"/dev/pts/\d+", said.read_text())
            if found:
                break
            time.sleep(0.05)
        assert found, said.read_text()
        yield found[0], process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("name", ["stm32f746", "cortex-m55"])
def test_a_board_on_a_serial_port(name, built, network, samples, tmp_path):
    made = built(name, "serial")
    with powered(made.profile, made.firmware.elf, tmp_path) as (path, _):
        device = parse_device(f"serial://{path}")
        assert device == SerialDevice(path)
        with device.runner(made.artifact) as runner:
            for x in samples:
                found = runner.infer({NAME: x})
                np.testing.assert_array_equal(found["scores"], network.reference(x))
            with pytest.raises(DeviceError, match="does not know its clock"):
                runner.time({NAME: samples[0]}, 2)
        # the port can be opened again, and the firmware goes on
        with device.runner(made.artifact) as runner:
            np.testing.assert_array_equal(
                runner.infer({NAME: samples[1]})["scores"], network.reference(samples[1])
            )


def test_a_board_that_knows_its_clock_gives_times(built, network, samples, tmp_path):
    profile = built("stm32f746", "serial").profile
    sources = network.sources()
    clock = "#include <stdint.h>\nuint32_t effc_hertz(void);\n"
    clock += "uint32_t effc_hertz(void) { return 25000000; }\n"
    sources = dataclasses.replace(sources, files={**sources.files, "clock.c": clock})
    elf = tmp_path / "firmware.elf"
    made = build_firmware(sources, board_of(profile), elf, to="serial")
    write_description(tmp_path, describe(sources, made.map))
    with (
        powered(profile, elf, tmp_path) as (path, _),
        SerialDevice(path).runner(Artifact(tmp_path, None)) as runner,
    ):
        measured = runner.time({NAME: samples[0]}, 3)
    assert (measured.source, len(measured.seconds)) == ("device", 3)
    assert all(0 < s < 1 for s in measured.seconds)
    assert made.map.model_ram_bytes < measured.peak_bytes < made.map.model_ram_bytes + 4096


def test_a_board_that_is_unplugged_is_an_error(built, samples, tmp_path):
    made = built("stm32f746", "serial")
    with powered(made.profile, made.firmware.elf, tmp_path) as (path, board):
        with SerialDevice(path).runner(made.artifact) as runner:
            runner.infer({NAME: samples[0]})
            board.kill()
            board.wait()
            with pytest.raises(DeviceError, match="serial port"):
                runner.infer({NAME: samples[0]})


@pytest.mark.parametrize(
    "text",
    [
        "serial:",
        "tcp:///dev/ttyACM0",
        "serial:///dev/ttyACM0?baud=17",
        "serial:///dev/x?speed=9600",
    ],
)
def test_other_names_of_devices_are_refused(text):
    with pytest.raises(ConfigError, match="is no serial port"):
        parse_device(text)


def test_a_speed_may_be_named():
    assert parse_device("serial:///dev/ttyUSB0?baud=921600") == SerialDevice("/dev/ttyUSB0", 921600)


def test_a_port_that_is_not_there(built):
    made = built("stm32f746", "serial")
    for path in ("/dev/ttyNOT0", "/dev/null"):
        with (
            pytest.raises(DeviceError, match="serial port"),
            SerialDevice(path).runner(made.artifact),
        ):
            pass


def test_flashing_is_said_and_done_where_the_program_is(tmp_path, monkeypatch):
    profile = load_profile("stm32f746")
    openocd, pyocd = flash_commands(profile, "fw.elf")
    assert openocd.text == (
        "openocd -f board/stm32f746g-disco.cfg -c 'program fw.elf verify reset exit'"
    )
    assert pyocd.text == "pyocd flash --target stm32f746zgtx fw.elf"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match="no openocd and no pyocd") as caught:
        flash(profile, Path("fw.elf"))
    assert "openocd -f" in caught.value.hint
    # a program that takes the arguments, and one that fails
    program = tmp_path / "pyocd"
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called\n')
    program.chmod(0o755)
    assert flash(profile, Path("fw.elf")).program == "pyocd"
    assert (tmp_path / "called").read_text() == "flash --target stm32f746zgtx fw.elf\n"
    program.write_text("#!/bin/sh\necho no probe >&2\nexit 3\n")
    with pytest.raises(DeviceError, match="pyocd can't flash: no probe"):
        flash(profile, Path("fw.elf"))
    with pytest.raises(ConfigError, match="how it is flashed"):
        flash(load_profile("cortex-m55"), Path("fw.elf"))
