"""ONNX text and arrays in; a rewritten model out, held to onnxruntime's answers for the original."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from effc.core.ir import graphs
from effc.core.passinfra import Effect, Pass, PassContext
from effc.core.reference import OnnxRuntimeRunner, random_feeds
from effc.core.shapes import infer_shapes
from effc.core.verify import judge


@dataclass
class Rewritten:
    """What is left of the model, and how many rewrites were made."""

    model: ir.Model
    count: int

    @property
    def ops(self) -> list[str]:
        return [n.op_type for n in self.model.graph]

    def node(self, op_type: str) -> ir.Node:
        (found,) = [n for n in self.model.graph if n.op_type == op_type]
        return found


def build(text: str, opset: int = 23, **arrays: np.ndarray) -> ir.Model:
    """`graph (float[1,3] x) => (float[1,3] y) {...}` with initializers."""
    header = f'<ir_version: 10, opset_import: ["": {opset}]>\n'
    proto = onnx.parser.parse_model(header + text)
    for name, array in arrays.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = ir.from_proto(proto)
    infer_shapes(model)
    return model


def rewrite(
    model: ir.Model, *passes: Pass, feeds: list[dict[str, np.ndarray]] | None = None
) -> Rewritten:
    """Run the passes; names, schemas, numbers and idempotence must hold."""
    samples = feeds if feeds is not None else random_feeds(model, 2, seed=1)
    with OnnxRuntimeRunner(model, optimize=False) as runner:
        goldens = [runner.infer(s) for s in samples]
    before = [o.name for o in model.graph.outputs]
    count = sum(p.run(model, PassContext()) for p in passes)
    names = [v.name for g in graphs(model) for n in g for v in n.outputs if v.name]
    names += [n for g in graphs(model) for n in g.initializers]
    assert len(names) == len(set(names)), "names collide"
    assert [o.name for o in model.graph.outputs] == before
    infer_shapes(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    with OnnxRuntimeRunner(model, optimize=False) as runner:
        answers = [runner.infer(s) for s in samples]
    verdict = judge(goldens, answers, Effect.EXACT)
    assert verdict.status == "passed", verdict.reason
    again = sum(p.run(model, PassContext()) for p in passes)
    assert again == 0, "not idempotent"
    return Rewritten(model, count)


@pytest.fixture(name="build")
def _build() -> Callable[..., ir.Model]:
    return build


@pytest.fixture(name="rewrite")
def _rewrite() -> Callable[..., Rewritten]:
    return rewrite


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
