"""Real architectures through load, passes and verification: every one keeps its answers."""

from __future__ import annotations

import numpy as np

from effc import passes
from effc.core.check import check_model
from effc.core.instruments import first_broken_pass
from effc.core.ir import const, is_op, sole_producer
from effc.core.passinfra import Effect, PassContext
from effc.core.reference import random_feeds, record_goldens
from effc.core.shapes import infer_shapes
from effc.core.verify import judge


def test_passes_keep_the_answers(timm_case):
    model = timm_case.load()
    check_model(model)
    infer_shapes(model)
    original, nodes = model.clone(), len(model.graph)
    feeds = random_feeds(model, 2)
    goldens = record_goldens(model, feeds)
    for name in goldens[0]:  # a model that computes next to nothing would prove nothing
        first, second = (np.asarray(g[name], np.float64) for g in goldens)
        assert np.isfinite(first).all()
        assert np.abs(first - second).max() > 1e-3 * np.abs(first).max()

    pipeline = passes.parse(f"{passes.CANONICALIZE},{passes.FUSE}")
    pipeline.run(model, PassContext())
    check_model(model)
    infer_shapes(model)
    verdict = judge(goldens, record_goldens(model, feeds), Effect.EXACT)
    assert verdict.status == "passed", (
        f"{verdict.reason}; first broken: {first_broken_pass(original, pipeline, feeds)}"
    )
    assert len(model.graph) <= nodes
    left = [
        n.name
        for n in model.graph
        if is_op(n, "BatchNormalization")
        and (conv := sole_producer(n.inputs[0], "Conv", "ConvTranspose", "Gemm")) is not None
        and const(conv.inputs[1]) is not None
    ]
    assert not left, "a batch norm is left behind its convolution"
    again = {r.id: r.rewrites for r in pipeline.run(model, PassContext()) if r.rewrites}
    assert not again, "the pipeline is not idempotent"
