"""Tuning records: appended, found again, robust against what else stands in the file."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import pytest

pytest.importorskip("tvm")

from effc.backends.tvm.isa import host_isa  # noqa: E402
from effc.backends.tvm.kernels.choice import Blocking  # noqa: E402
from effc.backends.tvm.records import (  # noqa: E402
    FORMAT,
    Record,
    Records,
    default_path,
    here,
)
from effc.core.errors import TuningError  # noqa: E402

PLACE = here(host_isa(), 2)


def _record(key: str, tile: int, gain: float, *, kept: bool = True) -> Record:
    return Record(
        FORMAT, PLACE, key, f"tile={tile}", "", gain, gain, gain, gain, 1e-3, kept
    )  # fmt: skip


def test_the_best_that_was_kept_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "deep/records.jsonl"
    Records(path, PLACE).add(_record("a", 4, 0.9), _record("a", 5, 0.7, kept=False))
    Records(path, PLACE).add(_record("a", 6, 0.8), _record("b", 2, 1.2, kept=False))
    found = Records(path, PLACE)
    assert found.of("a").best == Blocking(tile=6)
    assert found.of("a").gain == 0.8
    assert found.of("a").tried == {Blocking(tile=t) for t in (4, 5, 6)}
    assert found.of("b").best == Blocking()
    assert found.of("c").tried == set()


def test_records_of_other_places_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    Records(path, PLACE).add(_record("a", 4, 0.9))
    for other in (
        here(host_isa(), 1),
        msgspec.structs.replace(PLACE, cpu="another"),
        msgspec.structs.replace(PLACE, kernels="other code"),
    ):
        assert Records(path, other).of("a").tried == set()


def test_corrupt_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    Records(path, PLACE).add(_record("a", 4, 0.9))
    line = path.read_bytes()
    bad = line.replace(b"tile=4", b"tile=x") + b'{"format":1}\n\xff\xfe\n[]\n\n'
    path.write_bytes(line + bad + line[:40])  # the last one was cut off
    found = Records(path, PLACE)
    assert found.skipped == 5
    found.add(_record("a", 6, 0.5))
    again = Records(path, PLACE)
    assert again.of("a").best == Blocking(tile=6)
    assert again.skipped == 5


def test_writers_side_by_side(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"

    def write(n: int) -> None:
        records = Records(path, PLACE)
        for i in range(20):
            records.add(*(_record(f"k{n}", 1 + i, 0.9) for _ in range(3)))

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    found = Records(path, PLACE)
    assert found.skipped == 0
    assert len(path.read_bytes().splitlines()) == 4 * 20 * 3
    assert all(len(found.of(f"k{n}").tried) == 20 for n in range(4))


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(TuningError, match="read"):
        Records(tmp_path, PLACE)


def test_the_default_is_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_path() == tmp_path / "effc/tuning/records.jsonl"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert default_path() == Path("/home/somebody/.cache/effc/tuning/records.jsonl")
