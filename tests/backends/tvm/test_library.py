"""The shared library: the same bytes each time, nothing exported but the interface, clear failures."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tvm")

from effc.backends.tvm.isa import host_isa  # noqa: E402
from effc.backends.tvm.library import c_compiler, write_library  # noqa: E402
from effc.backends.tvm.lower import lower  # noqa: E402
from effc.core.errors import BackendUnavailable, LoweringError  # noqa: E402
from effc.core.reference import random_feeds  # noqa: E402

Make = Callable[..., Any]

BODY = """g (float[1,3,16,16] x) => (float[1,5] y) {
    a = Conv<pads=[1,1,1,1]>(x, w)
    b = Relu(a)
    p = GlobalAveragePool(b)
    f = Flatten(p)
    y = Gemm(f, v)
}"""


@pytest.fixture
def model(model_of: Make, weights: Make) -> Make:
    return lambda: model_of(BODY, weights(w=(16, 3, 3, 3), v=(16, 5)))


def test_the_same_model_gives_the_same_bytes(tmp_path: Path, model: Make) -> None:
    found = []
    for name in ("a", "another/deeper"):
        files = write_library(lower(model(), host_isa()), tmp_path / name)
        found.append(files["library"].read_bytes())
    assert found[0] == found[1]
    assert str(tmp_path).encode() not in found[0]
    assert b"/tmp/" not in found[0]


def test_only_the_interface_is_exported(tmp_path: Path, model: Make) -> None:
    library = write_library(lower(model(), host_isa()), tmp_path)["library"]
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", str(library)], capture_output=True, text=True, check=True
    ).stdout
    names = {line.split()[-1] for line in listed.splitlines()}
    assert names
    assert all(n.startswith("effc_model_") for n in names)
    needed = subprocess.run(["ldd", str(library)], capture_output=True, text=True).stdout
    assert "tvm" not in needed
    assert "python" not in needed


def test_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Make) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    assert c_compiler() is None
    with pytest.raises(BackendUnavailable, match="no C compiler"):
        write_library(lower(model(), host_isa()), tmp_path)


def test_a_compiler_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Make
) -> None:
    monkeypatch.setenv("CC", "false")
    with pytest.raises(LoweringError, match="can't build the library") as error:
        write_library(lower(model(), host_isa()), tmp_path)
    assert error.value.hint
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_results_have_the_same_bits_for_any_number_of_threads(
    build: Callable[..., Any], threads: int, model: Make
) -> None:
    source = model()
    feeds = random_feeds(source, 1)[0]
    with build(source).model() as compiled:
        alone = compiled.run(feeds)["y"]
        compiled.threads = threads
        for _ in range(50):
            assert (compiled.run(feeds)["y"] == alone).all()
        compiled.threads = 1
        assert (compiled.run(feeds)["y"] == alone).all()
