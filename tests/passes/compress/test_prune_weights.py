"""Pruning: the right number, the right ones, and what the others make up for."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from effc.core.errors import ConfigError
from effc.core.passinfra import PassContext
from effc.passes.compress.prune_weights import PruneWeights, adaptive_score
from effc.passes.compress.report import COMPRESSION

Run = Callable[..., ir.Model]
Weights = Callable[[ir.Model, str], np.ndarray]
LAYERS = ("c1", "c2", "c3")  # the Gemm has fewer than 256 weights


def test_sparsity_is_met_over_the_model(model: ir.Model, run: Run, weight_of: Weights) -> None:
    pruned = run(model, PruneWeights(sparsity=0.6, fit=0))
    weights = [weight_of(pruned, n) for n in LAYERS]
    zeros = sum(int((w == 0).sum()) for w in weights)
    assert zeros == round(0.6 * sum(w.size for w in weights))
    shares = [float((w == 0).mean()) for w in weights]
    assert max(shares) - min(shares) > 0.02  # layers differ
    for name, w in zip(LAYERS, weights, strict=True):
        before = weight_of(model, name)
        np.testing.assert_array_equal(w[w != 0], before[w != 0])
        assert np.abs(before[w == 0]).max() <= np.abs(before[w != 0]).min()
        assert not np.signbit(w[w == 0]).any()
    np.testing.assert_array_equal(weight_of(pruned, "y"), weight_of(model, "y"))
    facts = json.loads(pruned.metadata_props[COMPRESSION])["prune-weights"][0]
    assert facts["sparsity"] == pytest.approx(0.6, abs=1e-3)
    assert facts["layers"].keys() == {"w1", "w2", "w3"}


def test_every_layer_alike(model: ir.Model, run: Run, weight_of: Weights) -> None:
    pruned = run(model, PruneWeights(sparsity=0.5, scope="layer", fit=0))
    for name in LAYERS:
        w = weight_of(pruned, name)
        assert (w == 0).sum() == round(0.5 * w.size)


def test_sensitivity_is_a_threshold_in_standard_deviations(
    model: ir.Model, run: Run, weight_of: Weights
) -> None:
    pruned = run(model, PruneWeights(sensitivity=0.7, fit=0))
    for name in LAYERS:
        before, after = weight_of(model, name), weight_of(pruned, name)
        kept = np.abs(before) > 0.7 * before.std()
        np.testing.assert_array_equal(after, np.where(kept, before, 0))


def test_fitting_beats_cutting(
    model: ir.Model, run: Run, samples: Any, quality: Callable[[ir.Model], float]
) -> None:
    cut = run(model, PruneWeights(sparsity=0.5, fit=0), samples)
    fitted = run(model, PruneWeights(sparsity=0.5), samples)
    assert quality(fitted) > quality(cut) + 3
    again = run(model, PruneWeights(sparsity=0.5), samples)
    for name, value in fitted.graph.initializers.items():
        other = again.graph.initializers[name]
        assert value.const_value is not None and other.const_value is not None
        np.testing.assert_array_equal(value.const_value.numpy(), other.const_value.numpy())


def test_fitting_keeps_the_sparsity(
    model: ir.Model, run: Run, samples: Any, weight_of: Weights
) -> None:
    pruned = run(model, PruneWeights(sparsity=0.5), samples)
    weights = [weight_of(pruned, n) for n in LAYERS]
    assert sum(int((w == 0).sum()) for w in weights) == round(0.5 * sum(w.size for w in weights))


def test_nodes_to_keep_and_small_constants_stay(
    model: ir.Model, run: Run, weight_of: Weights
) -> None:
    for node in model.graph:
        node.name = f"node_{node.outputs[0].name}"
    pruned = run(model, PruneWeights(sparsity=0.5, keep=("node_c2",), least=500, fit=0))
    for name in ("c1", "c2", "y"):
        np.testing.assert_array_equal(weight_of(pruned, name), weight_of(model, name))
    assert (weight_of(pruned, "c3") == 0).any()


def test_adaptive_scores_by_their_definition() -> None:
    w = np.array([3.0, -1.0, 2.0])
    np.testing.assert_allclose(adaptive_score(w), [1, 1 / 14, 4 / 13])


def test_the_models_tensors_are_not_written_to(model: ir.Model, run: Run, samples: Any) -> None:
    before = {n: v.const_value.numpy().copy() for n, v in model.graph.initializers.items()}  # type: ignore[union-attr]
    run(model, PruneWeights(sparsity=0.7), samples)
    for name, array in before.items():
        np.testing.assert_array_equal(model.graph.initializers[name].const_value.numpy(), array)  # type: ignore[union-attr]


@pytest.mark.parametrize("options", [{"sparsity": 1.0}, {"scope": "row"}, {"sensitivity": -1.0}])
def test_options_out_of_range(model: ir.Model, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="prune-weights"):
        PruneWeights(**options).run(model, PassContext())


def test_training_recovers_and_keeps_zeros(
    model: ir.Model,
    run: Run,
    samples: Any,
    weight_of: Weights,
    quality: Callable[[ir.Model], float],
) -> None:
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that wait for one another take minutes on a busy machine
    plain = run(model, PruneWeights(sparsity=0.6, fit=0), samples)
    tuned = run(model, PruneWeights(sparsity=0.6, fit=0, tune=40, rate=5e-3), samples)
    torch.set_num_threads(threads)
    assert quality(tuned) > quality(plain) + 3
    for name in LAYERS:
        np.testing.assert_array_equal(weight_of(tuned, name) == 0, weight_of(plain, name) == 0)


def test_training_without_samples_is_refused(model: ir.Model) -> None:
    with pytest.raises(ConfigError, match="samples"):
        PruneWeights(tune=1).run(model, PassContext())
