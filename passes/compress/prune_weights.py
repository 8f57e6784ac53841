"""prune-weights: the smallest weights become zero."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from effc.core.errors import ConfigError
from effc.core.ir import Array
from effc.core.passinfra import Effect, Pass, PassContext
from effc.passes.compress.distill import distill
from effc.passes.compress.reconstruct import (
    Moments,
    has_bias,
    inverse_root,
    real_moments,
    settle,
    shift_bias,
)
from effc.passes.compress.report import note
from effc.passes.compress.weights import Weight, find_weights, keep_original, set_array


@dataclass(frozen=True, slots=True)
class PruneWeights(Pass):
    """w -> w where |w| > t, else 0: unstructured, for storage (zeros cost a fraction of a bit).

    The thresholds t: with `sensitivity` s, s times the layer's standard deviation (Han et al. 2015,
    arXiv 1506.02626); else so that `sparsity` of all weights are zero, chosen over the whole model by
    what its loss costs the layer's output, or in every layer alike (`scope=layer`). Where there are real
    samples, that cost is the second-order one, and the layer's other weights and its bias make up for
    as much as they can (reconstruct.py); else it is w^2 over the sum of the squares of the layer's
    weights that are as large (LAMP: Lee et al., arXiv 2010.07611). With `tune` epochs, the rest is
    trained on the samples to answer as the original model does (needs torch).

    Declines constants of fewer than `least` elements, those that not only linear operators read, and
    the nodes in `keep`.
    """

    id: ClassVar[str] = "prune-weights"
    effect: ClassVar[Effect] = Effect.LOSSY

    sparsity: float = field(
        default=0.5, metadata={"help": "the share of weights that become zero", "unit": "0..1"}
    )
    sensitivity: float = field(
        default=0.0,
        metadata={
            "help": "threshold of each layer, instead of sparsity",
            "unit": "standard deviations",
        },
    )
    scope: str = field(
        default="model", metadata={"help": "model: layers differ in sparsity; layer: none does"}
    )
    least: int = field(default=256, metadata={"help": "smaller constants stay", "unit": "elements"})
    keep: tuple[str, ...] = field(
        default=(), metadata={"help": "names of nodes whose weights stay"}
    )
    fit: int = field(
        default=128,
        metadata={"help": "samples on which the other weights make up for those gone; 0: none"},
    )
    tune: int = field(
        default=0, metadata={"help": "training on the samples afterwards", "unit": "epochs"}
    )
    rate: float = field(default=1e-3, metadata={"help": "learning rate of the training"})

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        if (
            not 0 <= self.sparsity < 1
            or self.sensitivity < 0
            or self.scope not in ("model", "layer")
        ):
            raise ConfigError(
                f"{self}: sparsity is 0 to below 1, sensitivity at least 0, scope model or layer"
            )
        weights = find_weights(model, keep=self.keep, least=self.least)
        known = real_moments(model, weights, ctx, self.fit)
        roots = {name: inverse_root(m) for name, m in known.items()}
        masks = self._masks(weights, known, roots)
        changed = [(w, m) for w, m in zip(weights, masks, strict=True) if (w.array[~m] != 0).any()]
        if not changed:
            return 0
        original = keep_original(model)
        layers: dict[str, float] = {}
        zeros: dict[str, Array] = {}
        for weight, mask in changed:
            array = np.where(mask, weight.array, np.float32(0))
            if weight.name in known:
                array = _fitted(weight, mask, known[weight.name], roots[weight.name])
            name = set_array(weight, array, "pruned")
            layers[weight.name] = round(float(1 - mask.mean()), 4)
            zeros[name] = ~mask
        loss = None
        if self.tune:
            if ctx.samples is None:
                raise ConfigError(f"{self}: training needs samples", hint="give --samples")
            loss = distill(
                model, original, ctx.samples, zeros,
                epochs=self.tune, rate=self.rate, seed=ctx.seed,
            )  # fmt: skip
        total = sum(w.array.size for w in weights)
        gone = sum(int((~m).sum()) for _, m in changed)
        note(model, self.id, {"sparsity": round(gone / total, 4), "layers": layers, "loss": loss})
        return len(changed)

    def _masks(
        self, weights: list[Weight], known: dict[str, Moments], roots: dict[str, Array]
    ) -> list[Array]:
        """True where a weight stays."""
        if self.sensitivity:
            return [np.abs(w.array) > self.sensitivity * w.array.std() for w in weights]
        scores = [
            _damage(w, known[w.name], roots[w.name]) if w.name in known else adaptive_score(w.array)
            for w in weights
        ]
        if self.scope == "layer" or len(known) not in (0, len(weights)):
            return [_top(s, self.sparsity) for s in scores]
        kept = _top(np.concatenate([s.ravel() for s in scores] or [np.zeros(0)]), self.sparsity)
        ends = np.cumsum([s.size for s in scores])[:-1]
        return [m.reshape(s.shape) for m, s in zip(np.split(kept, ends), scores, strict=False)]


def _damage(weight: Weight, known: Moments, root: Array) -> Array:
    """What the layer's output loses with each weight, over the output's energy."""
    rows = known.rows(weight.array).astype(np.float64)
    inverse = np.square(root).sum(axis=1)[:, None, :-1]  # its diagonal
    energy = np.einsum("gok,gkl,gol->", rows, known.centered, rows)
    return known.array(np.square(rows) / inverse / max(energy, 1e-30), weight.array.shape)


def _fitted(weight: Weight, mask: Array, known: Moments, root: Array) -> Array:
    """The weights that stay, changed so that the layer's output does least."""
    kept = known.rows(mask)
    rows, bias = settle(known.rows(weight.array), root, lambda column, k: column * kept[:, :, k])
    if has_bias(weight):
        shift_bias(weight, bias.ravel())
    return known.array(rows + 0.0, weight.array.shape)


def _top(scores: Array, sparsity: float) -> Array:
    """True for all but the lowest share `sparsity` of the scores."""
    flat = scores.ravel()
    lowest = np.argsort(flat, kind="stable")[: round(sparsity * flat.size)]
    kept = np.ones(flat.size, bool)
    kept[lowest] = False
    return kept.reshape(scores.shape)


def adaptive_score(array: Array) -> Array:
    """w^2 over the sum of the squares of all weights of the layer that are at least as large."""
    squares = np.square(array.ravel().astype(np.float64))
    order = np.argsort(squares, kind="stable")
    behind = np.cumsum(squares[order][::-1])[::-1]
    scores = np.empty_like(squares)
    scores[order] = squares[order] / np.maximum(behind, 1e-300)
    return scores.reshape(array.shape)
