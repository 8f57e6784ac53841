"""A small convolutional network with structure in its weights, and samples for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from effc.core.ir import const
from effc.core.passinfra import Pass, PassContext
from effc.core.reference import OnnxRuntimeRunner
from effc.core.shapes import infer_shapes

Array = np.ndarray[Any, Any]

TEXT = """<ir_version: 10, opset_import: ["": 23]>
g (float[1,3,12,12] x) => (float[1,10] y) {
  c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
  r1 = Relu(c1)
  c2 = Conv<pads=[1,1,1,1], group=2, strides=[2,2]>(r1, w2, b2)
  r2 = Relu(c2)
  c3 = Conv<pads=[1,1,1,1]>(r2, w3, b3)
  s = Add(c3, r2)
  r3 = Relu(s)
  p = GlobalAveragePool(r3)
  f = Flatten(p)
  y = Gemm<transB=1>(f, w4, b4)
}"""


class ListSamples:
    """Given samples."""

    synthetic = False
    fingerprint = "list"

    def __init__(self, feeds: list[dict[str, Array]]) -> None:
        self.feeds = feeds

    def __iter__(self) -> Iterator[dict[str, Array]]:
        return iter(self.feeds)

    def __len__(self) -> int:
        return len(self.feeds)


def network(seed: int = 0) -> ir.Model:
    rng = np.random.default_rng(seed)
    proto = onnx.parser.parse_model(TEXT)
    shapes = {"w1": (16, 3, 3, 3), "w2": (16, 8, 3, 3), "w3": (16, 16, 3, 3), "w4": (10, 16)}
    for name, shape in shapes.items():
        # heavy tails, as trained weights have
        w = rng.standard_t(4, shape) * (1.4 / np.sqrt(np.prod(shape[1:])))
        bias = rng.standard_normal(shape[0]) * 0.1
        for key, array in ((name, w), (name.replace("w", "b"), bias)):
            proto.graph.initializer.append(
                onnx.numpy_helper.from_array(array.astype(np.float32), key)
            )
    model = ir.from_proto(proto)
    infer_shapes(model)
    return model


def smooth_samples(count: int, seed: int = 0) -> ListSamples:
    """Correlated inputs, as pictures are: noise that has been blurred."""
    rng = np.random.default_rng(seed)
    feeds = []
    for _ in range(count):
        x = rng.standard_normal((1, 3, 16, 16))
        x = sum(np.roll(x, (i, j), (2, 3)) for i in range(3) for j in range(3)) / 3
        feeds.append({"x": x[:, :, 2:14, 2:14].astype(np.float32) + rng.normal(0, 0.5)})
    return ListSamples([{"x": f["x"].astype(np.float32)} for f in feeds])


def answers(model: ir.Model, samples: ListSamples) -> Array:
    with OnnxRuntimeRunner(model, optimize=False) as runner:
        return np.concatenate([next(iter(runner.infer(f).values())) for f in samples])


def sqnr(right: Array, found: Array) -> float:
    noise = float(np.square(right - found.astype(np.float64)).sum())
    return float(10 * np.log10(np.square(right.astype(np.float64)).sum() / max(noise, 1e-30)))


def run(model: ir.Model, step: Pass, samples: ListSamples | None = None) -> ir.Model:
    """A compressed copy, valid by the standard, with every weight found once by the checker."""
    copy = model.clone()
    step.run(copy, PassContext(samples=samples))
    infer_shapes(copy)
    onnx.checker.check_model(ir.to_proto(copy), full_check=True)
    assert [o.name for o in copy.graph.outputs] == [o.name for o in model.graph.outputs]
    return copy


def weight_of(model: ir.Model, output: str) -> Array:
    """What the operator that makes `output` has for a weight, whatever computes it."""
    copy = model.clone()
    node = next(n for n in copy.graph if n.outputs[0].name == output)
    value = node.inputs[1]
    assert value is not None
    array = const(value)
    if array is not None:
        return array
    copy.graph.outputs[:] = [value]
    feeds = {
        str(v.name): np.zeros(tuple(v.shape or ()), np.float32)  # type: ignore[arg-type]
        for v in copy.graph.inputs
    }
    with OnnxRuntimeRunner(copy, optimize=False) as runner:
        return next(iter(runner.infer(feeds).values()))


@pytest.fixture
def model() -> ir.Model:
    return network()


@pytest.fixture
def samples() -> ListSamples:
    return smooth_samples(24)


@pytest.fixture
def held_out() -> ListSamples:
    return smooth_samples(12, seed=99)


@pytest.fixture(name="run")
def _run() -> Callable[..., ir.Model]:
    return run


@pytest.fixture(name="quality")
def _quality(model: ir.Model, held_out: ListSamples) -> Callable[[ir.Model], float]:
    """The SQNR of a compressed model's answers, in dB, on samples that it has not seen."""
    right = answers(model, held_out)
    return lambda other: sqnr(right, answers(other, held_out))


@pytest.fixture(name="weight_of")
def _weight_of() -> Callable[..., Array]:
    return weight_of
