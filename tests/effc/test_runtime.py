"""effc.runtime: a model library from Python with numpy alone, and what it says when it is misused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

pytest.importorskip("tvm")

from effc.backends.tvm.isa import host_isa  # noqa: E402
from effc.backends.tvm.library import write_library  # noqa: E402
from effc.backends.tvm.lower import lower  # noqa: E402
from effc.core.errors import ConfigError, DeviceError, EffcError  # noqa: E402
from effc.runtime import Model  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[2,3] x, int64[3] n) => (float[2,3] y, int64[3] m) {
            s = Softmax(x)
            y = Neg(s)
            m = Add(n, n)
        }"""
    )
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    out = tmp_path_factory.mktemp("artifact")
    write_library(lower(model, host_isa()), out)
    return out


FEEDS = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array([1, 2, 3])}


def test_runs(folder: Path) -> None:
    with Model(folder) as model:
        assert [(t.name, t.dtype, t.shape) for t in model.inputs] == [
            ("x", "float32", (2, 3)),
            ("n", "int64", (3,)),
        ]
        found = model(**FEEDS)
        e = np.exp(FEEDS["x"] - 5)
        np.testing.assert_allclose(found["y"], -e / e.sum(1, keepdims=True), rtol=1e-5)
        assert found["m"].tolist() == [2, 4, 6]
        times = model.profile(FEEDS)
        assert times
        assert all(t.seconds >= 0 and t.nodes for t in times)


def test_inputs_need_not_be_contiguous(folder: Path) -> None:
    with Model(folder, threads=2) as model:
        turned = np.asfortranarray(FEEDS["x"])
        first = model.run(FEEDS)["y"]
        assert (model.run({**FEEDS, "x": turned})["y"] == first).all()


def test_instances_live_side_by_side(folder: Path) -> None:
    models = [Model(folder, threads=t) for t in (1, 2, 3)]
    results = [m.run(FEEDS)["y"] for m in models]
    assert all((r == results[0]).all() for r in results)
    for model in models:
        model.close()
        model.close()
    with pytest.raises(ConfigError, match="closed"):
        models[0].run(FEEDS)


@pytest.mark.parametrize(
    ("feeds", "said"),
    [
        ({"x": FEEDS["x"]}, "input 'n' is missing"),
        ({**FEEDS, "z": FEEDS["x"]}, "'z' is no input"),
        ({**FEEDS, "x": FEEDS["x"].T}, "shape (3, 2)"),
        ({**FEEDS, "x": FEEDS["x"].astype(np.float64)}, "float64"),
    ],
)
def test_wrong_feeds_are_refused_in_one_line(
    folder: Path, feeds: dict[str, np.ndarray], said: str
) -> None:
    with Model(folder) as model, pytest.raises(ConfigError) as error:
        model.run(feeds)
    assert said in str(error.value)
    assert error.value.hint
    assert "\n" not in str(error.value)


def test_wrong_threads_and_files(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="threads"):
        Model(folder, threads=0)
    with Model(folder) as model:
        with pytest.raises(EffcError, match="threads"):
            model.threads = 1000
        assert model.run(FEEDS)["m"].tolist() == [2, 4, 6]
    with pytest.raises(ConfigError, match="not there"):
        Model(tmp_path / "nothing.so")
    (tmp_path / "model.so").write_bytes(b"no library")
    with pytest.raises(ConfigError, match="no model library"):
        Model(tmp_path)


def test_the_callers_floating_point_mode_is_left_alone(folder: Path) -> None:
    tiny = np.float32(1e-40)
    with Model(folder) as model:
        model.run(FEEDS)
    assert tiny * np.float32(1) != 0


def test_it_imports_numpy_and_nothing_heavier() -> None:
    code = (
        "import sys, effc.runtime;"
        "sys.exit(any(m in sys.modules for m in ('tvm', 'onnx', 'onnxruntime', 'onnx_ir', 'torch')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
