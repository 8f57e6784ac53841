"""The same function, and channels of one width where two layers meet."""

from __future__ import annotations

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from effc.core.ir import const
from effc.core.passinfra import Effect, PassContext
from effc.core.reference import record_goldens
from effc.core.shapes import infer_shapes
from effc.core.verify import judge
from effc.passes.quantize.equalize_layers import EqualizeLayers

CHAIN = """
<ir_version: 10, opset_import: ["": 23]>
g (float[1,3,8,8] x) => (float[1,{out},{size},{size}] y) {{
  a = Conv<pads=[1,1,1,1]>(x, w1, b1)
  {middle}
  y = Conv<pads=[1,1,1,1],group={group}>(m, w2)
}}"""


def chain(middle: str, *, group: int = 1, size: int = 8, wide: float = 100.0) -> ir.Model:
    """Two convolutions; one channel between them is `wide` times the others."""
    rng = np.random.default_rng(0)
    w1 = rng.normal(size=(4, 3, 3, 3))
    w1[2] *= wide
    out = 4 if group == 4 else 5
    arrays = {
        "w1": w1,
        "b1": rng.normal(size=4),
        "w2": rng.normal(size=(out, 4 // group, 3, 3)),
        "slope": rng.uniform(0.1, 0.3, (4, 1, 1)),
    }
    proto = onnx.parser.parse_model(CHAIN.format(out=out, size=size, middle=middle, group=group))
    for name, array in arrays.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    model = ir.from_proto(proto)
    infer_shapes(model)
    return model


def peaks(model: ir.Model) -> tuple[np.ndarray, np.ndarray]:
    convs = [n for n in model.graph if n.op_type == "Conv"]
    first, second = (np.abs(const(n.inputs[1])) for n in convs)
    read = second.max((0, 2, 3)) if second.shape[1] > 1 else second.max((1, 2, 3))
    return first.max((1, 2, 3)), read


@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize(
    ("middle", "size"),
    [
        ("m = Relu(a)", 8),
        ("m = Identity(a)", 8),
        ("m = PRelu(a, slope)", 8),
        ("r = LeakyRelu<alpha=0.2>(a) m = MaxPool<kernel_shape=[2,2],strides=[2,2]>(r)", 4),
        ("m = AveragePool<kernel_shape=[3,3],pads=[1,1,1,1]>(a)", 8),
    ],
)
def test_ranges_meet_and_the_function_stays(middle: str, size: int, group: int) -> None:
    model = chain(middle, size=size, group=group)
    feeds = [{"x": np.random.default_rng(1).normal(size=(1, 3, 8, 8)).astype(np.float32)}]
    goldens = record_goldens(model, feeds)
    assert EqualizeLayers().run(model, PassContext()) == 1
    verdict = judge(goldens, record_goldens(model, feeds), Effect.EXACT)
    assert verdict.status == "passed", verdict.reason
    made, read = peaks(model)
    np.testing.assert_allclose(made, read, rtol=0.05)


@pytest.mark.parametrize(
    "middle",
    [
        "m = Clip(a, zero, six)",
        "m = Sigmoid(a)",
        "r = Relu(a) m = Add(r, r)",  # an operator that the rule does not know
    ],
)
def test_declines_where_scaling_does_not_pass(middle: str) -> None:
    model = chain(middle)
    if "zero" in middle:
        proto = ir.to_proto(model)
        for name, value in (("zero", 0.0), ("six", 6.0)):
            proto.graph.initializer.append(
                onnx.numpy_helper.from_array(np.float32(value).reshape(()), name)
            )
        model = ir.from_proto(proto)
    before = peaks(model)
    assert EqualizeLayers().run(model, PassContext()) == 0
    for a, b in zip(before, peaks(model), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_dead_channel_stays_finite() -> None:
    model = chain("m = Relu(a)", wide=0.0)
    EqualizeLayers().run(model, PassContext())
    assert all(np.isfinite(p).all() for p in peaks(model))
