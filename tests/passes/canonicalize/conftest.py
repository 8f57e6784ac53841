"""Runs a pass on ONNX text and holds its result against onnxruntime's on the untouched model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from effc import passes
from effc.core.passinfra import PassContext
from effc.core.reference import OnnxRuntimeRunner
from effc.core.shapes import infer_shapes

Apply = Callable[..., ir.Model]


def _feeds(model: ir.Model, extents: Mapping[str, int]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    feeds = {}
    for value in model.graph.inputs:
        if value.name in model.graph.initializers or value.name is None:
            continue
        shape = [d if isinstance(d, int) else extents[str(d)] for d in value.shape or ()]
        dtype = np.dtype((value.dtype or ir.DataType.FLOAT).numpy())
        if dtype == np.bool_:
            feeds[value.name] = np.asarray(rng.random(shape) < 0.5)
        elif dtype.kind in "iu":
            feeds[value.name] = np.asarray(rng.integers(0, 3, shape)).astype(dtype)
        else:
            feeds[value.name] = np.asarray(rng.standard_normal(shape)).astype(dtype)
    return feeds


def ops(model: ir.Model) -> list[str]:
    """The operators of the main graph, in order."""
    return [n.op_type for n in model.graph]


@pytest.fixture
def apply() -> Apply:
    """`apply(pipeline, text, N=2, feeds=None, infer=True)`: the model after the pipeline, numbers checked."""

    def run(
        pipeline: str,
        text: str | ir.Model,
        *,
        feeds: Mapping[str, Any] | None = None,
        infer: bool = True,
        exact: bool = True,
        **extents: int,
    ) -> ir.Model:
        model = ir.from_onnx_text(text) if isinstance(text, str) else text
        feeds = feeds if feeds is not None else _feeds(model, extents)
        with OnnxRuntimeRunner(model, optimize=False) as runner:
            want = runner.infer(feeds)
        if infer:
            infer_shapes(model)
        passes.parse(pipeline).run(model, PassContext())
        with OnnxRuntimeRunner(model, optimize=False) as runner:
            got = runner.infer(feeds)
        assert list(got) == list(want), "the outputs keep their names and order"
        for name in want:
            assert got[name].dtype == want[name].dtype
            if exact:
                np.testing.assert_array_equal(got[name], want[name])
            else:
                np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-6)
        return model

    return run
