"""Layout plans: where data is blocked, what is a view, which conversions are left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")

from effc.backends.tvm.grouping import fuse, read_ops  # noqa: E402
from effc.backends.tvm.isa import host_isa  # noqa: E402
from effc.backends.tvm.layout import PLAIN, Layout, TensorType  # noqa: E402
from effc.backends.tvm.plan import METADATA, moves_for_free, plan_layouts  # noqa: E402
from effc.backends.tvm.program import Program  # noqa: E402

Make = Callable[..., Any]

Same = Callable[..., Program]
LANES = host_isa().lanes


def templates(program: Program) -> Counter[str]:
    return Counter(c.template for c in program.calls)


def test_a_chain_of_convolutions_has_no_conversion(
    same: Same, model_of: Make, weights: Make
) -> None:
    model = model_of(
        """g (float[1,3,20,20] x) => (float[1,10] y) {
            a = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w0)
            b = Relu(a)
            c = Conv<pads=[1,1,1,1], group=24>(b, w1)
            d = Conv(c, w2)
            e = Add(d, b)
            p = GlobalAveragePool(e)
            f = Flatten(p)
            y = Gemm<transB=1>(f, w3, b3)
        }""",
        weights(w0=(24, 3, 3, 3), w1=(24, 1, 3, 3), w2=(24, 24, 1, 1), w3=(10, 24), b3=(10,)),
    )
    program = same(model)
    assert templates(program) == {
        "conv": 2, "depthwise": 1, "globalaveragepool": 1, "gemm": 1,
    }  # fmt: skip
    assert program.arena_bytes == program.arena_bound


def test_the_decision_stands_on_the_values(model_of: Make, weights: Make) -> None:
    model = model_of(
        """g (float[1,32,8,8] x) => (float[1,32,8,8] y) {
            a = Conv(x, w)
            y = Relu(a)
        }""",
        weights(w=(32, 32, 1, 1)),
    )
    ops, _ = read_ops(model)
    groups = fuse(ops, model.graph.outputs)
    plan_layouts(groups, model.graph.inputs, model.graph.outputs, host_isa()).annotate()
    assert model.graph.inputs[0].metadata_props[METADATA] == "plain"
    assert model.graph.outputs[0].metadata_props[METADATA] == f"NCHW{LANES}c"


@pytest.mark.parametrize("channels", [2 * LANES, LANES + 2])
def test_concat_of_channels(same: Same, channels: int, model_of: Make, weights: Make) -> None:
    """Producers write into the concatenation where channels are whole blocks; else somebody copies."""
    model = model_of(
        f"""g (float[1,{LANES},9,9] x) => (float[1,8,9,9] y) {{
            a = Conv(x, w0)
            b = Conv(x, w1)
            r = Relu(a)
            c = Concat<axis=1>(r, b, a)
            y = Conv(c, w2)
        }}""",
        weights(w0=(channels, LANES, 1, 1), w1=(channels, LANES, 1, 1), w2=(8, 3 * channels, 1, 1)),
    )
    program = same(model)
    found = templates(program)
    assert (found["concat"] == 0) == (channels % LANES == 0)
    assert found["conv"] == 3


def test_nested_and_repeated_concats(same: Same, model_of: Make) -> None:
    model = model_of(
        """g (float[2,3] x, float[4,3] z) => (float[16,3] y) {
            a = Exp(x)
            b = Neg(z)
            c = Concat<axis=0>(a, b)
            d = Abs(z)
            y = Concat<axis=0>(c, d, a, b)
        }"""
    )
    program = same(model)
    assert templates(program) == {"elementwise": 3, "concat": 2}


def test_slices_of_leading_rows_are_views(same: Same, model_of: Make) -> None:
    model = model_of(
        """g (float[6,5] x) => (float[2,5] y, float[4,5] z) {
            a = Exp(x)
            p, q = Split<axis=0>(a, s)
            y = Softmax(p)
            z = Softmax(q)
        }""",
        {"s": np.array([2, 4])},
    )
    assert templates(same(model)) == {"elementwise": 1, "softmax": 2}


def test_reshapes_of_row_major_data_are_views(same: Same, model_of: Make) -> None:
    model = model_of(
        """g (float[4,6] x) => (float[8,3] y) {
            a = Softmax(x)
            b = Reshape(a, s)
            y = Softmax(b)
        }""",
        {"s": np.array([8, 3])},
    )
    assert templates(same(model)) == {"softmax": 2}


def test_outputs_that_are_inputs_constants_or_twice_the_same(same: Same, model_of: Make) -> None:
    model = model_of(
        """g (float[4,6] x) => (float[4,6] p, float[24] q, float[4,6] r) {
            p = Identity(x)
            q = Flatten<axis=0>(x)
            r = Identity(c)
        }""".replace("float[24] q", "float[1,24] q"),
        {"c": np.arange(24, dtype=np.float32).reshape(4, 6)},
    )
    same(model)


def test_what_moves_for_free() -> None:
    blocked = Layout(16)
    assert moves_for_free(TensorType((1, 20, 1, 1), "float32", blocked), PLAIN)
    assert not moves_for_free(TensorType((1, 20, 1, 1), "float32", PLAIN), blocked)
    assert moves_for_free(TensorType((2, 32, 1), "float32", PLAIN), blocked)
    assert not moves_for_free(TensorType((2, 20, 1, 1), "float32", blocked), PLAIN)
    assert not moves_for_free(TensorType((1, 32, 2, 1), "float32", blocked), PLAIN)
