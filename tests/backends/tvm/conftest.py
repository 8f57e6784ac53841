"""Builds tiny models for this machine and compares them with onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

pytest.importorskip("tvm")

from effc.backends.tvm.isa import host_isa  # noqa: E402
from effc.backends.tvm.library import write_library  # noqa: E402
from effc.backends.tvm.lower import lower  # noqa: E402
from effc.backends.tvm.program import Program  # noqa: E402
from effc.core.integers import reference  # noqa: E402
from effc.core.native import Model  # noqa: E402
from effc.core.reference import OnnxRuntimeRunner, random_feeds  # noqa: E402
from effc.core.shapes import infer_shapes  # noqa: E402

Array = np.ndarray[Any, Any]


def _model_of(text: str, weights: dict[str, Array] | None = None) -> ir.Model:
    """The body of a graph in ONNX's textual form, opset 17, with initializers by name."""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    for name, array in (weights or {}).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    model = ir.from_proto(proto)
    infer_shapes(model)
    return model


def _weights(seed: int = 0, **shapes: tuple[int, ...]) -> dict[str, Array]:
    """Random float32 weights that keep activations near one."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, shape in shapes.items():
        scale = max(1.0, float(np.prod(shape[1:]))) ** -0.5
        found[name] = (rng.standard_normal(shape) * scale).astype(np.float32)
    return found


@pytest.fixture(scope="session")
def model_of() -> Callable[..., ir.Model]:
    return _model_of


@pytest.fixture(scope="session")
def weights() -> Callable[..., dict[str, Array]]:
    return _weights


@dataclass
class Built:
    program: Program
    folder: Path

    def model(self, threads: int = 1) -> Model:
        return Model(self.folder, threads)


@pytest.fixture
def build(tmp_path: Path) -> Callable[[ir.Model], Built]:
    """Lower and compile a model into a folder of its own."""
    count = 0

    def make(model: ir.Model) -> Built:
        nonlocal count
        count += 1
        folder = tmp_path / f"built{count}"
        program = lower(model, host_isa())
        write_library(program, folder)
        return Built(program, folder)

    return make


@pytest.fixture
def same(build: Callable[[ir.Model], Built]) -> Callable[..., Program]:
    """Build a model and compare it with onnxruntime; gives the Program."""

    def check(model: ir.Model, tolerance: float = 2e-5, threads: int = 1) -> Program:
        feeds = random_feeds(model, 1)[0]
        with OnnxRuntimeRunner(model, optimize=False) as reference:
            wanted = reference.infer(feeds)
        built = build(model)
        with built.model(threads) as compiled:
            found = compiled.run(feeds)
        assert list(found) == list(wanted)
        for name, expected in wanted.items():
            assert found[name].shape == expected.shape
            assert found[name].dtype == expected.dtype
            scale = max(1.0, float(np.abs(expected).max(initial=0)))
            np.testing.assert_allclose(found[name], expected, rtol=0, atol=tolerance * scale)
        return built.program

    return check


@pytest.fixture
def same_integers(build: Callable[[ir.Model], Built]) -> Callable[..., Program]:
    """Build a model and compare it with the numpy reference of integer operators, bit for bit."""

    def check(model: ir.Model, feeds: dict[str, Array], threads: int = 1) -> Program:
        wanted = reference.run(model, feeds)
        built = build(model)
        with built.model(threads) as compiled:
            found = compiled.run(feeds)
        assert list(found) == list(wanted)
        for name, expected in wanted.items():
            assert found[name].dtype == expected.dtype
            np.testing.assert_array_equal(found[name], expected, err_msg=name)
        return built.program

    return check
