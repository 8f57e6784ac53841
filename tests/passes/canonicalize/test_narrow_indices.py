"""Bounds of Slice within 32 bits, with the same elements."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import given, settings
from hypothesis import strategies as st

from effc.core.passinfra import PassContext
from effc.core.reference import OnnxRuntimeRunner
from effc.core.shapes import infer_shapes
from effc.passes.canonicalize.narrow_indices import NarrowIndices

HUGE = [2**63 - 1, -(2**63), -(2**63) + 1, 2**31, -(2**31), 2**31 - 1, 2**40]


def sliced(start: int, end: int, step: int) -> ir.Model:
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 23]> g (float[3,7] x) => (y) { y = Slice(x, s, e, a, t) }'
    )
    for name, value in (("s", start), ("e", end), ("a", 1), ("t", step)):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([value]), name))
    model = ir.from_proto(proto)
    infer_shapes(model)
    return model


def answer(model: ir.Model) -> np.ndarray:
    with OnnxRuntimeRunner(model, optimize=False) as runner:
        return runner.infer({"x": np.arange(21, dtype=np.float32).reshape(3, 7)})["y"]


@given(
    st.one_of(st.integers(-9, 9), st.sampled_from(HUGE)),
    st.one_of(st.integers(-9, 9), st.sampled_from(HUGE)),
    st.sampled_from([1, 2, -1, -3]),
)
@settings(max_examples=40, deadline=None)
def test_the_elements_are_the_same(start: int, end: int, step: int) -> None:
    model = sliced(start, end, step)
    before = answer(model)
    count = NarrowIndices().run(model, PassContext())
    declined = step < 0 and end > 2**31 - 1
    far = [abs(start) > 2**31 - 1, abs(end) > 2**31 - 1 and not declined]
    assert count == sum(far)
    bounds = [v.const_value.numpy() for v in list(model.graph)[0].inputs[1:3]]
    assert np.abs(bounds[0]) < 2**31 and (declined or np.abs(bounds[1]) < 2**31)
    assert all(b.dtype == np.int64 for b in bounds)
    np.testing.assert_array_equal(answer(model), before)
