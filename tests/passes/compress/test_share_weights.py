"""Hashed weights: the graph's arithmetic is the hash, numbers are the means of what shares them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from effc import passes
from effc.core.errors import ConfigError
from effc.core.passinfra import PassContext
from effc.passes.compress.share_weights import PRIME, ShareWeights, hashes

Run = Callable[..., ir.Model]
Weights = Callable[[ir.Model, str], np.ndarray]


def test_the_graph_computes_the_hash(model: ir.Model, run: Run, weight_of: Weights) -> None:
    made = run(model, ShareWeights(ratio=3, seed=5))
    rng = np.random.default_rng(5)
    for name, output in (("w2", "c2"), ("w3", "c3")):
        before, after = weight_of(model, output), weight_of(made, output)
        factors = [int(f) for f in rng.integers(1, PRIME, 4)]
        buckets = round(before.size / 3)
        index, sign = hashes(before.size, buckets, factors)
        table = made.graph.initializers[f"{name}/table"].const_value
        assert table is not None and table.numpy().shape == (buckets,)
        np.testing.assert_array_equal(after.ravel(), table.numpy()[index] * sign)
        for bucket in range(0, buckets, 50):
            mine = index == bucket
            if mine.any():
                mean = float((before.ravel()[mine] * sign[mine]).mean())
                np.testing.assert_allclose(table.numpy()[bucket], mean, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(weight_of(made, "c1"), weight_of(model, "c1"))  # too small


def test_the_file_shrinks_and_folding_gives_the_floats(
    model: ir.Model, run: Run, weight_of: Weights
) -> None:
    made = run(model, ShareWeights(ratio=4))
    sizes = [
        sum(v.const_value.nbytes for v in m.graph.initializers.values()) for m in (model, made)
    ]  # type: ignore[union-attr]
    assert sizes[1] < 0.5 * sizes[0]
    wanted = weight_of(made, "c3")
    passes.parse("fold-constants,eliminate-dead-code").run(made, PassContext())
    assert "Mod" not in {n.op_type for n in made.graph}
    np.testing.assert_array_equal(weight_of(made, "c3"), wanted)


def test_hashes_spread_evenly() -> None:
    index, sign = hashes(100_000, 1000, [123_456_789, 987_654, 55_555, 7])
    counts = np.bincount(index, minlength=1000)
    assert 50 < counts.min() and counts.max() < 160
    assert abs(sign.mean()) < 0.02


def test_options_out_of_range(model: ir.Model) -> None:
    for step in (ShareWeights(ratio=1), ShareWeights(tune=1)):
        with pytest.raises(ConfigError, match="share-weights"):
            step.run(model, PassContext())
