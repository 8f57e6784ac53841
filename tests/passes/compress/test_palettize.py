"""Palettes: few values, the best ones, zeros that stay, and bits that are kept to."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from effc import passes
from effc.core.errors import ConfigError
from effc.core.passinfra import PassContext
from effc.passes.compress.kmeans import nearest, palette
from effc.passes.compress.palettize import Palettize
from effc.passes.compress.prune_weights import PruneWeights
from effc.passes.compress.report import COMPRESSION

Run = Callable[..., ir.Model]
Weights = Callable[[ir.Model, str], np.ndarray]
LAYERS = ("c1", "c2", "c3")


@pytest.mark.parametrize("bits", [2, 4, 5, 8])
def test_each_weight_is_the_nearest_of_the_best_palette(
    model: ir.Model, run: Run, weight_of: Weights, bits: int
) -> None:
    shared = run(model, Palettize(bits=bits, fit=0))
    for name in LAYERS:
        before, after = weight_of(model, name), weight_of(shared, name)
        assert after.shape == before.shape
        assert np.unique(after).size <= 1 << bits
        centers = palette(before, 1 << bits).astype(np.float32)
        np.testing.assert_allclose(after, centers[nearest(before, centers)], atol=1e-6)
    kinds = {n.inputs[0].dtype for n in shared.graph if n.op_type == "Cast" and n.inputs[0]}
    assert kinds == {ir.DataType.UINT4 if bits <= 4 else ir.DataType.UINT8}


def test_groups_of_channels_have_palettes_of_their_own(
    model: ir.Model, run: Run, weight_of: Weights
) -> None:
    shared = run(model, Palettize(bits=3, group=4, fit=0))
    for name in LAYERS:
        before, after = weight_of(model, name), weight_of(shared, name)
        for i in range(0, len(after), 4):
            assert np.unique(after[i : i + 4]).size <= 8
            centers = palette(before[i : i + 4], 8)
            wanted = centers[nearest(before[i : i + 4], centers)]
            np.testing.assert_allclose(after[i : i + 4], wanted, atol=1e-6)
        one = weight_of(run(model, Palettize(bits=3, fit=0)), name)
        assert np.square(after - before).sum() < 0.8 * np.square(one - before).sum()


def test_pruned_weights_stay_zero(
    model: ir.Model, run: Run, weight_of: Weights, samples: Any
) -> None:
    pruned = run(model, PruneWeights(sparsity=0.5, fit=0))
    for options in ({"fit": 0}, {"fit": 24}, {"fit": 24, "entropy": 2.0}):
        shared = run(pruned, Palettize(bits=4, **options), samples)
        for name in LAYERS:
            zeros = weight_of(pruned, name) == 0
            if zeros.mean() < 0.05:
                continue
            after = weight_of(shared, name)
            assert not after[zeros].any()
            assert np.unique(after).size <= 16


def test_fitting_helps(
    model: ir.Model, run: Run, samples: Any, quality: Callable[[ir.Model], float]
) -> None:
    plain = quality(run(model, Palettize(bits=3, fit=0), samples))
    assert quality(run(model, Palettize(bits=3), samples)) > plain + 3


@pytest.mark.parametrize("entropy", [1.5, 2.5])
def test_entropy_is_kept_to(
    model: ir.Model, run: Run, samples: Any, weight_of: Weights, entropy: float
) -> None:
    shared = run(model, Palettize(entropy=entropy), samples)
    bits, size = 0.0, 0
    for name in LAYERS:
        _, counts = np.unique(weight_of(shared, name), return_counts=True)
        share = counts / counts.sum()
        bits += float(-(share * np.log2(share)).sum()) * counts.sum()
        size += int(counts.sum())
    assert entropy - 0.35 < bits / size < entropy + 0.25
    facts = json.loads(shared.metadata_props[COMPRESSION])["palettize"][0]
    assert facts["entropy_bits"].keys() == {"w1", "w2", "w3"}


def test_bits_go_where_they_count(
    model: ir.Model, run: Run, samples: Any, quality: Callable[[ir.Model], float]
) -> None:
    """Two bits a weight, spent by entropy, do more than the four values of two bits."""
    even = run(model, Palettize(bits=2), samples)
    spent = run(model, Palettize(bits=4, entropy=1.9), samples)
    assert quality(spent) > quality(even)


def test_the_backends_folding_gives_the_floats_back(
    model: ir.Model, run: Run, weight_of: Weights
) -> None:
    for options in ({"bits": 4}, {"bits": 5}, {"bits": 4, "group": 8}):
        shared = run(model, Palettize(fit=0, **options))
        wanted = {name: weight_of(shared, name) for name in LAYERS}
        passes.parse("fold-constants,eliminate-dead-code").run(shared, PassContext())
        assert not {"Gather", "Cast"} & {n.op_type for n in shared.graph}
        for name, array in wanted.items():
            np.testing.assert_array_equal(weight_of(shared, name), array)


def test_a_second_time_there_is_nothing_to_do(model: ir.Model, run: Run) -> None:
    shared = run(model, Palettize(fit=0))
    assert Palettize(fit=0).run(shared, PassContext()) == 0


@pytest.mark.parametrize("options", [{"bits": 1}, {"bits": 9}, {"group": -1}, {"tune": 2}])
def test_options_out_of_range(model: ir.Model, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="palettize"):
        Palettize(**options).run(model, PassContext())


def test_training_moves_palettes_and_nothing_else(
    model: ir.Model, run: Run, samples: Any, weight_of: Weights
) -> None:
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    plain = run(model, Palettize(bits=2, fit=0), samples)
    tuned = run(model, Palettize(bits=2, fit=0, tune=3, rate=1e-3), samples)
    torch.set_num_threads(threads)
    for name in LAYERS:
        before, after = weight_of(plain, name), weight_of(tuned, name)
        assert not np.array_equal(before, after)
        assert np.unique(after).size <= 4
        for value in np.unique(before):  # who shared a number still does
            assert np.unique(after[before == value]).size == 1
