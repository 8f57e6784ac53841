"""Profiles by name, alias and path; every mistake in a TOML is located."""

from __future__ import annotations

from pathlib import Path

import pytest

from effc.core.errors import ConfigError
from effc.core.profiles import load_profile, numbers

GOOD = """
name = "my-board"
title = "A board"
vendor = "me"
backend = "tvm"
triple = "aarch64-linux-gnu"
source = "its manual"
cores = 4
frequency = { value = 1e9, basis = "datasheet", source = "its manual" }

[[memories]]
name = "DRAM"
bytes = { value = 1_000_000, basis = "measured", source = "/proc/meminfo" }

[peak]
float32 = { value = 1.6e10, basis = "datasheet", source = "4 cores x 4 lanes x 1 GHz" }
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "my board.toml"
    path.write_text(text)
    return path


def test_a_profile_by_path(tmp_path: Path) -> None:
    profile = load_profile(write(tmp_path, GOOD))
    assert (profile.name, profile.cores, profile.peak["float32"].value) == ("my-board", 4, 1.6e10)
    assert [key for key, _ in numbers(profile)] == [
        "frequency",
        "memories.DRAM.bytes",
        "peak.float32",
    ]


@pytest.mark.parametrize(
    ("old", "new", "key", "reason"),
    [
        ('basis = "measured"', 'basis = "guessed"', "memories[0].bytes.basis", "guessed"),
        ("value = 1e9", 'value = "fast"', "frequency.value", "Expected `float`"),
        ('backend = "tvm"\n', "", "(top level)", "`backend`"),
        ("cores = 4", "cors = 4", "(top level)", "`cors`"),
        ("cores = 4", "cores = 0", "cores", "less than 1"),
        ("value = 1.6e10", "value = -1", "peak.float32.value", "not a positive"),
        ("value = 1.6e10", "value = nan", "peak.float32.value", "not a positive"),
        ("float32 =", "fp32 =", "peak.fp32", "is no dtype"),
        ('source = "/proc/meminfo"', 'source = " "', "memories.DRAM.bytes.source", "is empty"),
        ('source = "its manual"\ncores', 'source = ""\ncores', "source", "is empty"),
        ('name = "my-board"', 'name = "My Board"', "name", "lower-case"),
        ('name = "my-board"', 'name = "host"', "name", "runs on"),
        (', basis = "datasheet"', "", "frequency", "`basis`"),
        ("cores = 4", "cores = [", "", "no valid TOML"),
    ],
)
def test_a_mistake_is_located(tmp_path: Path, old: str, new: str, key: str, reason: str) -> None:
    path = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        load_profile(path)
    message = str(caught.value)
    assert str(path) in message and f"key {key}:" in message if key else str(path) in message
    assert reason in message
    assert caught.value.hint


@pytest.mark.parametrize("path", ["nowhere/board.toml", "."])
def test_a_path_that_is_no_file(path: str) -> None:
    with pytest.raises(ConfigError, match=r"can't be read|unknown target"):
        load_profile(path)


def test_binary_data_is_no_profile(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="no valid TOML"):
        load_profile(path)


def test_a_near_name_is_proposed() -> None:
    with pytest.raises(ConfigError, match="unknown target 'jetsen'") as caught:
        load_profile("jetsen")
    assert "'jetson'" in caught.value.hint
