"""The project beside the sources: make and CMake build what runs in QEMU; other layouts compile."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from effc.backends.tvm.mcu.device.description import describe, write_description
from effc.backends.tvm.mcu.device.emulator import QemuDevice
from effc.backends.tvm.mcu.device.linker import STACK_BYTES
from effc.backends.tvm.mcu.device.project import LAYOUTS, layout_of, write_project
from effc.core.artifact import Artifact
from effc.core.errors import ConfigError
from effc.core.profiles import load_profile
from effc.core.target import Target

NAME = 'pixels "x"'
STRICT = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-O2", "-c", "-mcpu=cortex-m7", "-mthumb"]


@pytest.fixture
def project(built, network, tmp_path):
    """The folder of a project for a board, and what was built of it before."""

    def make(name: str, layout: str = "plain") -> Path:
        made = built(name)
        sources = network.sources()
        for file, text in sources.files.items():
            (tmp_path / file).write_text(text)
        written = write_project(
            sources,
            made.profile,
            made.firmware.map,
            tmp_path,
            stack_bytes=STACK_BYTES,
            layout=layout,
        )
        assert all(p.is_file() and p.is_relative_to(tmp_path) for p in written)
        write_description(tmp_path, describe(sources, made.firmware.map))
        return tmp_path

    return make


def same_answers(built, network, samples, name: str, elf: Path) -> None:
    shutil.copyfile(elf, elf.parents[1] / "firmware.elf")
    with QemuDevice(built(name).profile).runner(Artifact(elf.parents[1], None)) as runner:
        for x in samples:
            found = runner.infer({NAME: x})["scores"]
            np.testing.assert_array_equal(found, network.reference(x))
        if name == "stm32f746":
            # the same compiler with the same flags: the same instructions
            again = runner.time({NAME: samples[0]}, 1).instructions
            with QemuDevice(built(name).profile).runner(built(name).artifact) as first:
                assert first.time({NAME: samples[0]}, 1).instructions == again


@pytest.mark.parametrize("name", ["stm32f746", "esp32-c3"])
def test_make_builds_what_runs(name, project, built, network, samples):
    folder = project(name)
    done = subprocess.run(["make", "-s", "-C", folder], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    elves = {p.stem for p in (folder / "build").glob("*.elf")}
    # the ESP32-C3's image is linked by Espressif's tools
    product = {"product", "serial"} if name == "stm32f746" else set()
    assert elves == {"firmware", "example", *product}
    same_answers(built, network, samples, name, folder / "build" / "firmware.elf")
    assert (
        subprocess.run(["make", "-s", "-C", folder, "run"], check=False, timeout=60).returncode == 0
    )
    # nothing is built twice
    again = subprocess.run(
        ["make", "-C", folder], capture_output=True, text=True, check=True
    ).stdout
    assert "Nothing to be done" in again
    if product:
        headers = subprocess.run(
            ["arm-none-eabi-objdump", "-h", folder / "build" / "product.elf"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert "08000000" in headers and "2000" in headers


@pytest.mark.parametrize("name", ["stm32f746", "esp32-c3"])
def test_cmake_builds_what_runs(name, project, built, network, samples):
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    folder = project(name)
    for command in (
        ["cmake", "-S", ".", "-B", "build", "-G", "Unix Makefiles"],
        ["cmake", "--build", "build"],
    ):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "warning" not in done.stderr.lower()
    same_answers(built, network, samples, name, folder / "build" / "firmware.elf")


def test_cmake_inside_another_project_is_a_library(project, tmp_path):
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    folder = project("stm32f746")
    outer = folder / "outer"
    outer.mkdir()
    (outer / "main.c").write_text('#include "model.h"\nint main(void) { return effc_invoke(); }\n')
    (outer / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.20)\nproject(outer C)\nadd_subdirectory(.. model)\n"
        "add_executable(outer main.c)\ntarget_link_libraries(outer effc_model)\n"
    )
    for command in (["cmake", "-S", "outer", "-B", "b"], ["cmake", "--build", "b"]):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    # this machine's compiler
    assert subprocess.run([folder / "b" / "outer"], check=False).returncode == 0


def test_the_memory_map_adds_up(project, built):
    text = (project("stm32f746") / "MEMORY.txt").read_text()
    linked = built("stm32f746").firmware.map
    for name, (used, there) in linked.regions.items():
        (row,) = [r for x in text.splitlines() if (r := x.split())[:1] == [name] and r[1].isdigit()]
        assert [int(v) for v in row[1:]] == [used, there, there - used]
    # 24 + 37 + 10 bytes of tensors; 24 * 37 + 10 * 24 weights and 34 multipliers
    assert 71 <= linked.model_ram_bytes <= 80
    assert linked.model_flash_bytes >= 24 * 37 + 10 * 24 + 4 * 34
    assert linked.regions["flash"][0] == linked.flash_bytes


def test_zephyr(project, network, tmp_path):
    folder = project("stm32f746", "zephyr") / "zephyr"
    module = dict(
        line.strip().split(": ")
        for line in (folder / "zephyr/module.yml").read_text().splitlines()
        if ": " in line
    )
    assert module["name"] == "effc_model"
    assert (folder / module["kconfig"]).is_file()
    cmake = folder / module["cmake"] / "CMakeLists.txt"
    # Zephyr's functions, as far as the file goes: what it names has to be there
    listed = "\n".join(
        f'function({f})\n foreach(a ${{ARGN}})\n  message(STATUS "{f} ${{a}}")\n endforeach()\nendfunction()'
        for f in (
            "zephyr_library",
            "zephyr_library_sources",
            "zephyr_include_directories",
            "zephyr_library_compile_options",
        )
    )
    (cmake.parent / "try.cmake").write_text(
        f"{listed}\nset(CONFIG_EFFC_MODEL y)\ninclude(${{CMAKE_CURRENT_LIST_DIR}}/CMakeLists.txt)\n"
    )
    done = subprocess.run(
        ["cmake", "-P", cmake.parent / "try.cmake"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said = [x.removeprefix("-- ").split(" ", 1) for x in done.stdout.splitlines()]
    sources = [cmake.parent / a for f, a in said if f == "zephyr_library_sources"]
    assert {p.name for p in sources} == {"model.c", "kernels.c"}
    (include,) = [cmake.parent / a for f, a in said if f == "zephyr_include_directories"]
    for source in sources:
        compiled(source, include, tmp_path)


def compiled(source: Path, include: Path, out: Path) -> None:
    subprocess.run(
        ["arm-none-eabi-gcc", *STRICT, f"-I{include}", source, "-o", out / "x.o"],
        check=True,
        timeout=60,
    )


def test_arduino(project, tmp_path):
    folder = project("stm32f746", "arduino") / "arduino"
    properties = dict(
        line.split("=", 1) for line in (folder / "library.properties").read_text().splitlines()
    )
    assert {
        "name",
        "version",
        "author",
        "maintainer",
        "sentence",
        "category",
        "architectures",
    } <= set(properties)
    assert (folder / "src" / properties["includes"]).is_file()
    for source in (folder / "src").glob("*.c"):
        compiled(source, folder / "src", tmp_path)
    # the sketch compiles against what Arduino's core declares
    (tmp_path / "Arduino.h").write_text(
        "#include <stdint.h>\n#include <string.h>\nstruct S { void begin(long); void print(const char *);"
        " void print(long); void print(int); void println(unsigned long); }; extern S Serial;\n"
        "unsigned long micros(); void delay(unsigned long);\n"
    )
    sketch = folder / "examples/inference/inference.ino"
    done = subprocess.run(
        ["arm-none-eabi-g++", "-fsyntax-only", "-Wall", "-Werror", "-x", "c++",
         "-include", tmp_path / "Arduino.h", f"-I{folder / 'src'}", sketch],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_platformio(project, tmp_path):
    folder = project("stm32f746", "platformio") / "platformio"
    described = json.loads((folder / "library.json").read_text())
    assert described["name"] == "effc_model" and described["version"]
    include = folder / described["build"]["includeDir"]
    assert (include / described["headers"]).is_file()
    for source in (folder / described["build"]["srcDir"]).glob("*.c"):
        compiled(source, include, tmp_path)


def test_a_layout_that_is_not_there_is_refused():
    profile = load_profile("stm32f746")
    assert layout_of(Target(profile)) == "plain"
    for name in LAYOUTS:
        assert layout_of(Target(profile, options={"layout": name})) == name
    with pytest.raises(ConfigError, match="layout=keil"):
        layout_of(Target(profile, options={"layout": "keil"}))


def test_the_same_project_has_the_same_bytes(project, tmp_path):
    def everything() -> dict[str, bytes]:
        found = sorted(p for p in tmp_path.rglob("*") if p.is_file())
        return {p.relative_to(tmp_path).as_posix(): p.read_bytes() for p in found}

    project("nrf52840", "zephyr")
    first = everything()
    project("nrf52840", "zephyr")
    assert everything() == first
