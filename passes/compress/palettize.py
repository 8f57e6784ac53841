"""palettize: each weight becomes one of a few numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import ml_dtypes
import numpy as np
import onnx_ir as ir

from effc.core.errors import ConfigError
from effc.core.ir import Array, add_const
from effc.core.passinfra import Effect, Pass, PassContext
from effc.passes.compress.distill import distill
from effc.passes.compress.kmeans import cheap_palette, nearest, palette
from effc.passes.compress.reconstruct import (
    Moments,
    has_bias,
    inverse_root,
    real_moments,
    settle,
    shift_bias,
)
from effc.passes.compress.report import note
from effc.passes.compress.weights import Weight, find_weights, insert, keep_original

_PRUNED = 0.05  # zeros from which on a zero stays a zero
_REFITTED = 32  # centers: their normal equations cost K^2 each


@dataclass(frozen=True, slots=True)
class _Layer:
    """A weight with its rows [groups, outputs of a group, K] and what is known of its inputs."""

    weight: Weight
    rows: Array
    importance: Array  # of a squared error of each weight, shaped to broadcast over the rows
    known: Moments | None
    root: Array | None


@dataclass(frozen=True, slots=True)
class Palettize(Pass):
    """w -> Gather(palette, indices): 2^bits numbers for a weight, or for each `group` of output channels.

    The palette is the best one in the mean square (kmeans.py), zero among it where weights were pruned,
    and pruned weights stay zero. With `entropy` b, it is the one that is best for b bits a weight on average
    after entropy coding, over the whole model (layers that matter more get more). Where there are real
    samples, errors count by what they do to the layer's output; the layer's later weights make up
    for the earlier ones' errors, and palette and bias are fitted again (reconstruct.py). With `tune`
    epochs, palettes and biases are trained on the samples (needs torch).

    Han et al., "Deep Compression", arXiv 1510.00149; Choi et al., arXiv 1612.01543 (entropy, importance).
    Declines constants of fewer than `least` elements, those that not only linear operators read, the
    nodes in `keep`, and what has no more values than the palette.
    """

    id: ClassVar[str] = "palettize"
    effect: ClassVar[Effect] = Effect.LOSSY

    bits: int = field(default=4, metadata={"help": "2^bits numbers in a palette", "unit": "2..8"})
    group: int = field(
        default=0, metadata={"help": "output channels that share a palette; 0: all of a weight"}
    )
    entropy: float = field(
        default=0.0, metadata={"help": "bits a weight on average once coded; 0: any number"}
    )
    least: int = field(default=256, metadata={"help": "smaller constants stay", "unit": "elements"})
    keep: tuple[str, ...] = field(
        default=(), metadata={"help": "names of nodes whose weights stay"}
    )
    fit: int = field(
        default=128, metadata={"help": "samples on which errors are made up for; 0: none"}
    )
    tune: int = field(
        default=0, metadata={"help": "training on the samples afterwards", "unit": "epochs"}
    )
    rate: float = field(default=1e-3, metadata={"help": "learning rate of the training"})

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        if not 2 <= self.bits <= 8 or self.group < 0 or self.entropy < 0:
            raise ConfigError(f"{self}: bits are 2 to 8, group and entropy at least 0")
        if self.tune and ctx.samples is None:
            raise ConfigError(f"{self}: training needs samples", hint="give --samples")
        weights = [
            w
            for w in find_weights(model, keep=self.keep, least=self.least)
            if np.unique(w.array).size > 1 << self.bits
        ]
        if not weights:
            return 0
        original = keep_original(model)
        known = real_moments(model, weights, ctx, self.fit)
        layers = [_layer(w, known.get(w.name)) for w in weights]
        price = self._price(layers) if self.entropy else 0.0
        facts: dict[str, float] = {}
        zeros: dict[str, Array] = {}
        for layer in layers:
            centers, indices, name = self._shared(layer, price)
            facts[layer.weight.name] = round(_entropy(indices), 3)
            zeros[name] = (centers == 0).ravel()
        loss = None
        if self.tune and ctx.samples is not None:
            loss = distill(
                model, original, ctx.samples, zeros,
                epochs=self.tune, rate=self.rate, seed=ctx.seed,
            )  # fmt: skip
        note(model, self.id, {"entropy_bits": facts, "loss": loss, "fitted": len(known)})
        return len(layers)

    def _shared(self, layer: _Layer, price: float) -> tuple[Array, Array, str]:
        """Replace one weight; its centers [groups of channels, n], the indices, the palette's name."""
        weight = layer.weight
        outputs = np.arange(weight.array.shape[weight.axis])
        parts = outputs // self.group if self.group else np.zeros_like(outputs)
        found = []
        owner = parts.reshape(layer.rows.shape[:2]) if layer.known is not None else parts[None]
        for part in range(int(parts.max()) + 1):
            mine = owner == part
            found.append(self._centers(layer, mine, price))
        count = max(len(c) for c, _ in found)
        centers = np.stack([np.pad(c, (0, count - len(c)), mode="edge") for c, _ in found])
        bits = np.stack([np.pad(b, (0, count - len(b)), constant_values=99.0) for _, b in found])
        indices, centers = _assign(layer, owner, centers, bits * price)
        real = np.take_along_axis(centers[owner], indices, axis=2)
        if layer.known is not None and has_bias(weight):
            error = layer.rows - real
            shift_bias(weight, np.einsum("gok,gk->go", error, layer.known.mean))
        return centers, indices, _emit(weight, _shape_back(layer, indices), centers, self.group)

    def _centers(self, layer: _Layer, mine: Array, price: float) -> tuple[Array, Array]:
        values = layer.rows[mine].ravel()
        importance = np.broadcast_to(layer.importance, layer.rows.shape)[mine].ravel()
        limit = 1 << self.bits
        if price:
            return cheap_palette(values, limit, importance, price)
        stays = values == 0 if (values == 0).mean() >= _PRUNED else np.zeros(values.shape, bool)
        centers = palette(values[~stays], limit - bool(stays.any()), importance[~stays])
        if stays.any():
            centers = np.unique(np.append(centers, 0.0))
        return centers, np.zeros(len(centers))

    def _price(self, layers: list[_Layer]) -> float:
        """What a bit may cost in error, so that all layers take `entropy` bits a weight on average."""
        low, high = 1e-12, 1.0
        total = sum(layer.rows.size for layer in layers)
        for _ in range(24):
            price, used = float(np.sqrt(low * high)), 0.0
            for layer in layers:
                importance = np.broadcast_to(layer.importance, layer.rows.shape)
                centers, bits = cheap_palette(layer.rows, 1 << self.bits, importance, price)
                chosen = _cheapest(layer.rows, layer.importance, centers, bits * price)
                used += _entropy(chosen) * layer.rows.size
            low, high = (price, high) if used > self.entropy * total else (low, price)
        return high


def _layer(weight: Weight, known: Moments | None) -> _Layer:
    if known is None:
        rows = np.moveaxis(weight.array, weight.axis, 0).reshape(
            1, weight.array.shape[weight.axis], -1
        )
        rows = rows.astype(np.float64)
        importance = np.full((1, 1, 1), 1 / max(float(np.square(rows).sum()), 1e-30))
        return _Layer(weight, rows, importance, None, None)
    rows, root = known.rows(weight.array).astype(np.float64), inverse_root(known)
    energy = max(float(np.einsum("gok,gkl,gol->", rows, known.centered, rows)), 1e-30)
    importance = 1 / np.square(np.einsum("gii->gi", root)[:, None, :-1]) / energy
    return _Layer(weight, rows, importance, known, root)


def _assign(layer: _Layer, owner: Array, centers: Array, prices: Array) -> tuple[Array, Array]:
    """The index of every weight in the palette of its group, and the palettes, fitted again."""
    rows = layer.rows
    stays = rows == 0 if (rows == 0).mean() >= _PRUNED else np.zeros(rows.shape, bool)
    zero = np.abs(centers).argmin(axis=1)
    indices = np.empty(rows.shape, np.int64)

    def choose(column: Array, k: int) -> Array:
        weighed = layer.importance[:, :, min(k, layer.importance.shape[2] - 1), None]
        cost = weighed * (column[:, :, None] - centers[owner]) ** 2 + prices[owner]
        found = np.where(stays[:, :, k], zero[owner], cost.argmin(axis=2))
        indices[:, :, k] = found
        chosen: Array = np.take_along_axis(centers[owner], found[:, :, None], 2)[:, :, 0]
        return chosen

    if layer.root is None:
        for k in range(rows.shape[2]):
            choose(rows[:, :, k], k)
        return indices, centers
    settle(rows, layer.root, choose)
    if layer.known is not None and centers.shape[1] <= _REFITTED:
        moments = layer.known.centered if has_bias(layer.weight) else layer.known.h[:, :-1, :-1]
        centers = np.stack(
            [_refit(rows, moments, indices, owner == p, c) for p, c in enumerate(centers)]
        )
    return indices, centers


def _refit(rows: Array, h: Array, indices: Array, mine: Array, centers: Array) -> Array:
    """The numbers that, with these indices, change the layer's output least; zero stays zero."""
    free = [i for i in range(len(centers)) if centers[i] != 0 and (indices[mine] == i).any()]
    if not free:
        return centers
    marks = np.stack([((indices == i) & mine[:, :, None]).astype(np.float64) for i in free])
    spread = np.einsum("cgok,gkl->cgol", marks, h, optimize=True)
    normal = np.einsum("cgol,dgol->cd", spread, marks, optimize=True)
    right = np.einsum("cgol,gol->c", spread, rows, optimize=True)
    damping = 1e-3 * np.trace(normal) / len(free)
    change = right - normal @ centers[free]
    refitted = centers.copy()
    refitted[free] += np.linalg.solve(normal + damping * np.eye(len(free)), change)
    return refitted


def _cheapest(rows: Array, importance: Array, centers: Array, prices: Array) -> Array:
    if not prices.any():
        return nearest(rows, centers)
    best = np.full(rows.shape, np.inf)
    chosen = np.zeros(rows.shape, np.int64)
    for i, (center, price) in enumerate(zip(centers, prices, strict=True)):
        cost = importance * (rows - center) ** 2 + price
        better = cost < best
        best[better], chosen[better] = cost[better], i
    return chosen


def _entropy(indices: Array) -> float:
    share = np.bincount(indices.ravel()) / indices.size
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum())


def _shape_back(layer: _Layer, indices: Array) -> Array:
    shape = layer.weight.array.shape
    if layer.known is not None:
        return layer.known.array(indices, shape)
    axis = layer.weight.axis
    moved = tuple(np.delete(shape, axis))
    return np.moveaxis(indices.reshape(shape[axis], *moved), 0, axis)


def _emit(weight: Weight, indices: Array, centers: Array, group: int) -> str:
    """Gather(palette, Cast(indices)); with groups the palettes lie behind one another, as do indices."""
    graph = weight.users[0].graph
    assert isinstance(graph, ir.Graph)
    short = ml_dtypes.uint4 if centers.shape[1] <= 16 else np.uint8
    stored = add_const(graph, f"{weight.name}/indices", indices.astype(np.uint8).astype(short))
    numbers = centers.astype(np.float32) + np.float32(0)  # no -0
    table = add_const(graph, f"{weight.name}/palette", numbers.ravel())
    cast = ir.node("Cast", [stored], {"to": ir.DataType.INT32})
    nodes = [cast]
    if group and len(centers) > 1:
        first = np.arange(indices.shape[weight.axis]) // group * centers.shape[1]
        along = [1] * indices.ndim
        along[weight.axis] = -1
        starts = add_const(graph, f"{weight.name}/starts", first.reshape(along).astype(np.int32))
        nodes.append(ir.node("Add", [cast.outputs[0], starts]))
    nodes.append(ir.node("Gather", [table, nodes[-1].outputs[0]], {"axis": 0}))
    for node in nodes:
        node.name = f"{weight.name}/{node.op_type.lower()}"
        out = node.outputs[0]
        out.name, out.shape, out.dtype = node.name, ir.Shape(indices.shape), ir.DataType.INT32
    insert(weight, nodes)
    return str(table.name)
