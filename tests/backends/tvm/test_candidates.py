"""Every blocking that tuning may choose computes what onnxruntime does."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")

from effc.backends.tvm.insitu import InSitu  # noqa: E402
from effc.backends.tvm.isa import host_isa  # noqa: E402
from effc.backends.tvm.kernels.choice import Blocking  # noqa: E402
from effc.backends.tvm.lower import lower  # noqa: E402
from effc.backends.tvm.search import RULE  # noqa: E402
from effc.core.reference import OnnxRuntimeRunner, random_feeds  # noqa: E402

Make = Callable[..., Any]
MOST = 24  # candidates of a kernel that a test compiles

CASES = {
    "3x3, partial blocks, edges": (
        "g (float[1,24,9,11] x) => (float[1,40,9,11] y)"
        "{ a = Conv <pads=[1,1,1,1]> (x, w, b) y = Relu(a) }",
        {"w": (40, 24, 3, 3), "b": (40,)},
    ),
    "pointwise with residual": (
        "g (float[2,32,6,7] x) => (float[2,32,6,7] y) { a = Conv(x, w) y = Add(a, x) }",
        {"w": (32, 32, 1, 1)},
    ),
    "stem of three channels": (
        "g (float[1,3,19,19] x) => (float[1,32,10,10] y)"
        "{ y = Conv <pads=[1,1,1,1], strides=[2,2]> (x, w, b) }",
        {"w": (32, 3, 3, 3), "b": (32,)},
    ),
    "groups across blocks": (
        "g (float[1,24,8,8] x) => (float[1,36,8,8] y){ y = Conv <pads=[1,1,1,1], group=3> (x, w) }",
        {"w": (36, 8, 3, 3)},
    ),
    "depthwise": (
        "g (float[1,40,13,9] x) => (float[1,40,7,5] y)"
        "{ y = Conv <pads=[1,1,1,1], strides=[2,2], group=40> (x, w, b) }",
        {"w": (40, 1, 3, 3), "b": (40,)},
    ),
    "product": (
        "g (float[7,33] x) => (float[7,50] y) { a = Gemm(x, w, b) y = Relu(a) }",
        {"w": (33, 50), "b": (50,)},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_candidates_are_correct(case: str, model_of: Make, weights: Make) -> None:
    text, shapes = CASES[case]
    model = model_of(text, weights(**shapes))
    feeds = random_feeds(model, 1)[0]
    with OnnxRuntimeRunner(model, optimize=False) as reference:
        (expected,) = reference.infer(feeds).values()
    program = lower(model, host_isa())
    (site,) = program.sites.values()
    space = site.space()
    cuts = {space.effective(b): b for b in space.candidates(RULE)}
    cuts.pop(None, None)
    cuts.pop(space.effective(RULE), None)
    candidates = list(cuts.values())
    step = max(1, len(candidates) // MOST)
    candidates = list(islice(candidates, 0, None, step))
    assert len(candidates) >= 3
    with InSitu(program, feeds, 2) as bench:
        bench.prepare({site.kernel: candidates})
        for blocking in [RULE, *candidates, RULE]:
            bench.outputs[0][:] = 255  # NaN
            bench.run({site.kernel: blocking})
            found = bench.outputs[0].view(np.float32).reshape(expected.shape)
            np.testing.assert_allclose(found, expected, rtol=0, atol=5e-5, err_msg=str(blocking))


def test_what_a_kernel_can_not_be(model_of: Make, weights: Make) -> None:
    text, shapes = CASES["3x3, partial blocks, edges"]
    program = lower(model_of(text, weights(**shapes)), host_isa())
    (site,) = program.sites.values()
    space = site.space()
    assert space.effective(Blocking(chunks=1000)) is None
    assert space.effective(Blocking(tile=1000, chunks=1)) == space.effective(
        Blocking(tile=11, chunks=1)
    )
    text, shapes = CASES["depthwise"]
    program = lower(model_of(text, weights(**shapes)), host_isa())
    (site,) = program.sites.values()
    assert site.space().effective(Blocking(chunks=2)) is None
