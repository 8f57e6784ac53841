"""The backend as the build sees it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")

from effc.backends.tvm.backend import TvmBackend  # noqa: E402
from effc.core.artifact import Artifact, Manifest, Verdict  # noqa: E402
from effc.core.passinfra import PassContext  # noqa: E402
from effc.core.profiles import load_profile  # noqa: E402
from effc.core.reference import random_feeds  # noqa: E402
from effc.core.target import Target  # noqa: E402
from effc.passes import parse  # noqa: E402

Make = Callable[..., Any]

HOST = Target(load_profile("host"))


def test_probe_names_versions() -> None:
    found = TvmBackend.probe()
    assert found.ok
    assert found.versions is not None
    assert {"apache-tvm", "cc"} <= set(found.versions)


def test_tvm_is_imported_without_torch() -> None:
    code = (
        "import sys; from effc.backends.tvm.backend import TvmBackend;"
        "found = TvmBackend.probe(); assert found.ok, found; assert 'torch' not in sys.modules;"
        "import importlib.util; assert not importlib.util.find_spec('torch') or __import__('torch').ones(1)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_targets_that_can_not_be_built_are_refused_with_a_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = TvmBackend()
    assert backend.accepts(HOST).ok
    monkeypatch.setenv("CC_aarch64_linux_gnu", "no-such-compiler")
    refused = backend.accepts(Target(load_profile("raspberry-pi-4")))
    assert not refused.ok
    assert "no C compiler for aarch64-linux-gnu" in refused.reason
    assert "gcc-aarch64-linux-gnu" in refused.hint
    assert backend.accepts(Target(load_profile("host"), precision="int8")).ok
    assert not backend.accepts(Target(load_profile("host"), precision="fp8")).ok


def test_from_model_to_runner(tmp_path: Path, model_of: Make, weights: Make) -> None:
    model = model_of(
        "g (float[1,16,8,8] x) => (float[1,16,8,8] y) { a = Conv(x, w) y = Relu(a) }",
        weights(w=(16, 16, 1, 1)),
    )
    backend = TvmBackend()
    assert not backend.check(model, HOST)
    lowered = backend.lower(model, HOST)
    facts = backend.describe(lowered)
    assert facts["calls"]["conv"] == 1
    assert facts["fallbacks"] == []
    files = backend.compile(lowered, HOST, tmp_path)
    assert set(files) == {"library", "header"}
    manifest = Manifest(
        1, {}, "host", "tvm", "fp32", (), (), {}, (), "", {}, Verdict("not run", "a test")
    )
    (device,) = backend.devices(HOST)
    feeds = random_feeds(model, 1)[0]
    with device.runner(Artifact(tmp_path, manifest), 2) as runner:
        assert runner.infer(feeds)["y"].shape == (1, 16, 8, 8)
        measured = runner.time(feeds, 5)
        assert len(measured.seconds) == 5
        assert measured.threads == 2
        assert measured.peak_bytes is not None and measured.peak_bytes >= facts["arena_bytes"]
        layers = runner.layers(feeds, 3)
        assert "conv" in {layer.template for layer in layers}
        assert all(layer.seconds >= 0 for layer in layers)


def test_check_lists_problems(model_of: Make) -> None:
    model = model_of(
        "g (float[4,4] x) => (float[1] y) { a = Det(x) y = Reshape(a, s) }",
        {"s": np.array([1])},
    )
    (problem,) = TvmBackend().check(model, HOST)
    assert problem.op == "Det"
    assert problem.remedy


def test_the_module_does_not_import_tvm() -> None:
    code = "import sys, effc.backends.tvm.backend; sys.exit('tvm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_model_without_quantization_is_none_of_integerizes_business(
    model_of: Make, weights: Make
) -> None:
    model = model_of(
        "g (float[1,16,8,8] x) => (float[1,16,8,8] y) { a = Conv(x, w) y = Relu(a) }",
        weights(w=(16, 16, 1, 1)),
    )
    pipeline = parse(TvmBackend().legalize(HOST))
    records = pipeline.run(model, PassContext(HOST, None, 0))
    assert {r.id: r.rewrites for r in records}["integerize"] == 0
    assert [n.op_type for n in model.graph] == ["Conv", "Relu"]
    assert "effc.integer" not in model.opset_imports
