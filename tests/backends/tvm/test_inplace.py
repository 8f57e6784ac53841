"""Elementwise results over their dying operands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("tvm")

from effc.backends.tvm.isa import host_isa  # noqa: E402
from effc.backends.tvm.lower import lower  # noqa: E402
from effc.backends.tvm.program import Program  # noqa: E402

Make = Callable[..., Any]
BODY = """g (float[1,20,9,9] x) => (float[1,20,9,9] {outputs}) {{
    a = Conv<pads=[1,1,1,1]>(x, w)
    p = GlobalAveragePool(a)
    s = Sigmoid(p)
    m = Mul(a, s)
    y = Conv(m, v)
}}"""


def places(program: Program) -> tuple[str, str]:
    """Where the product's first operand and its result lie."""
    (mul,) = (c for c in program.calls if c.template == "elementwise" and len(c.args) == 3)
    return program.root(mul.args[1]), program.root(mul.args[0])


def test_squeeze_and_excite_scales_in_place(same: Make, model_of: Make, weights: Make) -> None:
    model = model_of(BODY.format(outputs="y"), weights(w=(20, 20, 3, 3), v=(20, 20, 1, 1)))
    program = same(model, threads=3)
    operand, result = places(program)
    assert operand == result


def test_an_operand_that_is_read_again_stays(model_of: Make, weights: Make) -> None:
    text = BODY.replace("y = Conv(m, v)", "c = Conv(m, v)\n y = Add(c, a)").format(outputs="y")
    program = lower(model_of(text, weights(w=(20, 20, 3, 3), v=(20, 20, 1, 1))), host_isa())
    operand, result = places(program)
    assert operand != result


def test_outputs_keep_their_own_memory(same: Make, model_of: Make, weights: Make) -> None:
    text = BODY.format(outputs="y, float[1,20,9,9] a, float[1,20,9,9] m")
    same(model_of(text, weights(w=(20, 20, 3, 3), v=(20, 20, 1, 1))))
