"""A bundle of a small network, and an environment in which stand-ins play TensorRT and CUDA."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper

import effc
from effc.choices import BuildOptions

STAND_IN = Path(__file__).parent / "stand_in"
SCRIPT = "build_on_device.py"


def network() -> onnx.ModelProto:
    """conv, relu, conv, residual add, conv, sigmoid, mean, gemm: weights at random, one filter tiny."""
    rng = np.random.default_rng(5)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        array = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        return numpy_helper.from_array(array.astype(np.float32), name)

    first = weight("w1", 8, 3, 3, 3)
    small = numpy_helper.to_array(first).copy()
    small[3] *= 1e-3  # its scale is under the normal numbers of float16
    tensors = [
        numpy_helper.from_array(small, "w1"), weight("b1", 8), weight("w2", 8, 8, 3, 3),
        weight("w3", 16, 8, 1, 1), weight("w4", 10, 16), weight("b4", 10),
    ]  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "c1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "r1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], "c2", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c2", "r1"], ["a"], "a"),
        helper.make_node("Relu", ["a"], ["r2"], "r2"),
        helper.make_node("Conv", ["r2", "w3"], ["c3"], "c3"),
        helper.make_node("Sigmoid", ["c3"], ["s"], "s"),
        helper.make_node("Mul", ["c3", "s"], ["m"], "m"),
        helper.make_node("ReduceMean", ["m", "axes"], ["p"], "p", keepdims=0),
        helper.make_node("Gemm", ["p", "w4", "b4"], ["logits"], "gemm", transB=1),
    ]
    tensors.append(numpy_helper.from_array(np.array([2, 3], np.int64), "axes"))
    graph = helper.make_graph(
        nodes, "small", [helper.make_tensor_value_info("x", T.FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("logits", T.FLOAT, [1, 10])], tensors,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "small.onnx"
    onnx.save(network(), path)
    return path


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("samples") / "samples.npz"
    rng = np.random.default_rng(1)
    np.savez(path, x=rng.standard_normal((8, 3, 16, 16)).astype(np.float32))
    return path


@pytest.fixture(scope="session")
def built(model_file: Path, samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The int8 bundle for AGX Orin, which has a DLA; not to be changed."""
    out = tmp_path_factory.mktemp("built") / "bundle"
    options = BuildOptions(precision="int8", samples=samples, backend_options={"workspace": "512M"})
    effc.build(str(model_file), "jetson-agx-orin", out, options)
    return out


@pytest.fixture
def bundle(built: Path, tmp_path: Path) -> Path:
    """A copy of the bundle."""
    return Path(shutil.copytree(built, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables with which the script finds the stand-ins for TensorRT and CUDA's runtime."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler: CUDA's runtime has no stand-in")
    folder = tmp_path_factory.mktemp("cuda")
    library = folder / "libcudart.so"
    source = str(STAND_IN / "cudart.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", source, "-o", str(library)], check=True)
    return {
        "PYTHONPATH": str(STAND_IN),
        "LD_LIBRARY_PATH": str(folder),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "EFFC_STAND_IN_TENSORRT": "10.3.0",
    }


@pytest.fixture
def script(stand_ins: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the script of a bundle with arguments; `tensorrt=""`: without stand-ins."""

    def run(
        folder: Path, *arguments: str, tensorrt: str = "10.3.0", fails: str = ""
    ) -> subprocess.CompletedProcess[str]:
        names = {"EFFC_STAND_IN_TENSORRT": tensorrt, "EFFC_STAND_IN_FAILS": fails}
        variables = {**os.environ, **({**stand_ins, **names} if tensorrt else {})}
        return subprocess.run(
            [sys.executable, str(folder / SCRIPT), *arguments],
            capture_output=True,
            text=True,
            env=variables,
        )

    return run


@pytest.fixture
def to_model(tmp_path: Path) -> Callable[[str], Path]:
    """Write a graph in ONNX's textual form, opset 21."""

    def make(text: str) -> Path:
        path = tmp_path / "net.onnx"
        header = '<ir_version: 10, opset_import: ["": 21]>\n'
        onnx.save(onnx.parser.parse_model(f"{header}net {text}"), path)
        return path

    return make
