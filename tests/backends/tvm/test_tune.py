"""Tuning real programs on this machine. What is faster is not tested: that is the machine's business."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("tvm")

from effc.backends.tvm.insitu import InSitu  # noqa: E402
from effc.backends.tvm.isa import host_isa  # noqa: E402
from effc.backends.tvm.kernels.choice import Blocking  # noqa: E402
from effc.backends.tvm.library import write_library  # noqa: E402
from effc.backends.tvm.lower import lower  # noqa: E402
from effc.backends.tvm.program import Program  # noqa: E402
from effc.backends.tvm.records import FORMAT, Record, Records, here  # noqa: E402
from effc.backends.tvm.tune import tune  # noqa: E402
from effc.core.backend import TuneBudget  # noqa: E402
from effc.core.native import Model  # noqa: E402
from effc.core.reference import OnnxRuntimeRunner, random_feeds  # noqa: E402

Make = Callable[..., Any]
TEXT = (
    "g (float[1,16,12,12] x) => (float[1,10] y) {"
    "  a = Conv <pads=[1,1,1,1]> (x, w, b) c = Relu(a)"
    "  d = Conv <pads=[1,1,1,1], group=32> (c, v)"
    "  e = Conv(d, u) f = Add(e, c) p = GlobalAveragePool(f) q = Flatten(p) y = Gemm(q, m, n) }"
)


@pytest.fixture
def model(model_of: Make, weights: Make) -> ir.Model:
    shapes = {"w": (32, 16, 3, 3), "b": (32,), "v": (32, 1, 3, 3), "u": (32, 32, 1, 1)}
    made: ir.Model = model_of(TEXT, weights(**shapes, m=(32, 10), n=(10,)))
    return made


def _same_answers(program: Program, model: ir.Model, folder: Path) -> bytes:
    """Builds the library, compares it with onnxruntime; its bytes."""
    write_library(program, folder)
    feeds = random_feeds(model, 1)[0]
    with OnnxRuntimeRunner(model, optimize=False) as reference, Model(folder, 2) as ours:
        np.testing.assert_allclose(ours.run(feeds)["y"], reference.infer(feeds)["y"], atol=2e-5)
    return (folder / "model.so").read_bytes()


def _plant(program: Program, path: Path, threads: int) -> dict[str, str]:
    """Records that call another blocking of every kernel the best; kernel -> blocking."""
    records = Records(path, here(program.isa, threads))
    planted = {}
    for name, site in program.sites.items():
        space = site.space()
        if space is None:
            continue
        rule = space.effective(Blocking())
        other = next(
            b
            for b in space.candidates(Blocking())
            if space.effective(b) not in (None, rule) and (b.chunks or 2) > 1
        )
        key = f"{space.key} + {site.epilogue}" if site.epilogue else space.key
        record = Record(
            FORMAT, records.place, key, str(other), "", 0.5, 0.5, 0.5, 0.5, 1e-6, True
        )  # fmt: skip
        records.add(record)
        planted[name] = str(other)
    return planted


def test_a_tuned_program_is_correct_and_says_what_was_done(model: ir.Model, tmp_path: Path) -> None:
    program = lower(model, host_isa())
    told: list[tuple[str, float]] = []
    budget = TuneBudget(
        4.0, records=tmp_path / "r", progress=lambda what, share: told.append((what, share))
    )
    tuned = tune(program, budget, None, 2)
    _same_answers(tuned, model, tmp_path / "out")
    facts = json.loads(json.dumps(tuned.tuning))
    assert facts["threads"] == 2
    assert facts["trials"] == sum(k["trials"] for k in facts["kernels"]) > 0
    assert len((tmp_path / "r").read_bytes().splitlines()) == facts["trials"]
    assert {k["node"] for k in facts["kernels"]} <= {c.nodes[0] for c in program.calls}
    assert facts["kept"] or not any(k["blocking"] for k in facts["kernels"])
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert any("left" in what for what, _ in told)
    assert program.tuning == {}


def test_records_alone_are_used_as_they_are(model: ir.Model, tmp_path: Path) -> None:
    program = lower(model, host_isa())
    planted = _plant(program, tmp_path / "r", 2)
    assert len(planted) >= 3
    before = (tmp_path / "r").read_bytes()
    libraries = []
    for n in range(2):
        fresh = lower(model, host_isa())
        tuned = tune(fresh, TuneBudget(0.0, records=tmp_path / "r"), None, 2)
        chosen = {k["kernel"]: k["blocking"] for k in tuned.tuning["kernels"] if k["blocking"]}
        assert chosen == planted
        assert tuned.tuning["trials"] == 0
        assert tuned.tuning["records_reused"] == len(planted)
        libraries.append(_same_answers(tuned, model, tmp_path / f"out{n}"))
    assert libraries[0] == libraries[1] != _same_answers(program, model, tmp_path / "untuned")
    assert (tmp_path / "r").read_bytes() == before
    other = tune(lower(model, host_isa()), TuneBudget(0.0, records=tmp_path / "r"), None, 1)
    assert other.tuning["records_reused"] == 0  # they were measured on two threads


def test_what_is_not_faster_as_a_whole_is_not_built(
    model: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = lower(model, host_isa())
    planted = _plant(program, tmp_path / "r", 1)
    run = InSitu.run

    def slower(self: InSitu, choice: Any) -> dict[str, float]:
        return {k: s * (1 + 9 * bool(choice)) for k, s in run(self, choice).items()}

    monkeypatch.setattr(InSitu, "run", slower)
    tuned = tune(program, TuneBudget(1.0, records=tmp_path / "r"), None, 1)
    assert tuned.tuning["records_reused"] == len(planted)
    assert tuned.tuning["ratio"] > 1
    assert not tuned.tuning["kept"]
    assert not any(k["blocking"] for k in tuned.tuning["kernels"])
    wanted = _same_answers(program, model, tmp_path / "untuned")
    assert _same_answers(tuned, model, tmp_path / "out") == wanted


def test_an_interrupt_ends_the_search_and_what_was_found_counts(
    model: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = lower(model, host_isa())
    planted = _plant(program, tmp_path / "r", 1)
    run, runs = InSitu.run, 0

    def interrupted(self: InSitu, choice: Any) -> dict[str, float]:
        nonlocal runs
        runs += 1
        if runs == 20:
            raise KeyboardInterrupt
        return {k: s / (1 + bool(choice)) for k, s in run(self, choice).items()}

    monkeypatch.setattr(InSitu, "run", interrupted)
    tuned = tune(program, TuneBudget(600.0, records=tmp_path / "r"), None, 1)
    assert tuned.tuning["interrupted"]
    assert tuned.tuning["kept"]
    assert {k["kernel"]: k["blocking"] for k in tuned.tuning["kernels"]} == planted
    _same_answers(tuned, model, tmp_path / "out")


def test_a_killed_search_goes_on_from_its_records(model: ir.Model, tmp_path: Path) -> None:
    path = tmp_path / "r"
    ir.save(model, tmp_path / "m.onnx")
    code = (
        "import sys; from pathlib import Path; import onnx_ir as ir\n"
        "from effc.backends.tvm.isa import host_isa\n"
        "from effc.backends.tvm.lower import lower\n"
        "from effc.backends.tvm.tune import tune\n"
        "from effc.core.backend import TuneBudget\n"
        "program = lower(ir.load(sys.argv[1]), host_isa())\n"
        "tune(program, TuneBudget(600.0, records=Path(sys.argv[2])), None, 2)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, tmp_path / "m.onnx", path])
    try:
        deadline = time.monotonic() + 120
        while not path.exists() or not path.stat().st_size:
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    first = path.read_bytes().splitlines()
    tuned = tune(lower(model, host_isa()), TuneBudget(60.0, trials=6, records=path), None, 2)
    lines = path.read_bytes().splitlines()
    assert lines[: len(first)] == first
    assert 0 < tuned.tuning["trials"] <= 6
    records = [msgspec.json.decode(line, type=Record) for line in lines]
    trials = [(r.key, r.blocking) for r in records]
    assert len(trials) == len(set(trials)), "measured again"
    _same_answers(tuned, model, tmp_path / "out")
