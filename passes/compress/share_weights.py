"""share-weights: the hashing trick, many weights one number."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from effc.core.errors import ConfigError
from effc.core.ir import Array, add_const
from effc.core.passinfra import Effect, Pass, PassContext
from effc.passes.compress.distill import distill
from effc.passes.compress.report import note
from effc.passes.compress.weights import Weight, find_weights, insert, keep_original

PRIME = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class ShareWeights(Pass):
    """w_i -> s(i) table[h(i)], h and s hashes of the position: 1/`ratio` as many numbers are stored.

    h(i) = ((a i + c) mod (2^31 - 1)) mod n, s(i) = 1 - 2 (h'(i) mod 2): a, c from the seed, in the graph as
    integer arithmetic, so that the file holds the table and no indices (backends compute them once, from
    constants). A number is the mean of the weights that share it, signs undone. Chance decides what
    shares, so without training (`tune` epochs on the samples, needs torch) little accuracy is left.

    Declines constants of fewer than `least` elements, those that not only linear operators read, and
    the nodes in `keep`. Chen et al., "Compressing Neural Networks with the Hashing Trick", arXiv 1504.04788.
    """

    id: ClassVar[str] = "share-weights"
    effect: ClassVar[Effect] = Effect.LOSSY

    ratio: float = field(default=4.0, metadata={"help": "weights for each number that is stored"})
    seed: int = field(default=0, metadata={"help": "of the hashes"})
    least: int = field(
        default=1024, metadata={"help": "smaller constants stay", "unit": "elements"}
    )
    keep: tuple[str, ...] = field(
        default=(), metadata={"help": "names of nodes whose weights stay"}
    )
    tune: int = field(
        default=0, metadata={"help": "training on the samples afterwards", "unit": "epochs"}
    )
    rate: float = field(default=1e-3, metadata={"help": "learning rate of the training"})

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        if self.ratio <= 1:
            raise ConfigError(f"{self}: ratio is over 1")
        if self.tune and ctx.samples is None:
            raise ConfigError(f"{self}: training needs samples", hint="give --samples")
        weights = find_weights(model, keep=self.keep, least=self.least)
        if not weights:
            return 0
        original = keep_original(model)
        rng = np.random.default_rng(self.seed)
        for weight in weights:
            factors = [int(f) for f in rng.integers(1, PRIME, 4)]
            _share(weight, max(1, round(weight.array.size / self.ratio)), factors)
        loss = None
        if self.tune and ctx.samples is not None:
            loss = distill(
                model, original, ctx.samples, {}, epochs=self.tune, rate=self.rate, seed=ctx.seed
            )
        note(model, self.id, {"weights": [w.name for w in weights], "loss": loss})
        return len(weights)


def hashes(size: int, buckets: int, factors: list[int]) -> tuple[Array, Array]:
    """Bucket and sign (1 or -1) of the positions 0..size-1, int64."""
    a, c, b, d = factors
    i = np.arange(size, dtype=np.int64)
    return (a * i + c) % PRIME % buckets, 1 - 2 * ((b * i + d) % PRIME % 2)


def _share(weight: Weight, buckets: int, factors: list[int]) -> None:
    if factors[0] * weight.array.size >= 1 << 63:
        return
    index, sign = hashes(weight.array.size, buckets, factors)
    flat = weight.array.ravel().astype(np.float64) * sign
    count = np.maximum(np.bincount(index, minlength=buckets), 1)
    table = (np.bincount(index, flat, buckets) / count).astype(np.float32)
    graph = weight.users[0].graph
    assert isinstance(graph, ir.Graph)
    numbers: dict[int, ir.Value] = {}
    nodes: list[ir.Node] = []

    def number(value: int) -> ir.Value:
        if value not in numbers:
            numbers[value] = add_const(graph, f"{weight.name}/{value}", np.array(value, np.int64))
        return numbers[value]

    def op(kind: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        node = ir.node(kind, list(inputs), attributes)
        out: ir.Value = node.outputs[0]
        node.name = out.name = f"{weight.name}/hash{len(nodes)}"
        out.shape = ir.Shape((weight.array.size,))
        out.dtype = ir.DataType.INT64
        nodes.append(node)
        return out

    at = op("Range", number(0), number(weight.array.size), number(1))
    a, c, b, d = (number(f) for f in factors)
    hashed = op("Mod", op("Mod", op("Add", op("Mul", at, a), c), number(PRIME)), number(buckets))
    odd = op("Mod", op("Mod", op("Add", op("Mul", at, b), d), number(PRIME)), number(2))
    signs = op("Sub", number(1), op("Mul", odd, number(2)))
    real = op("Cast", signs, to=ir.DataType.FLOAT)
    shared = op("Gather", add_const(graph, f"{weight.name}/table", table), hashed, axis=0)
    signed = op("Mul", shared, real)
    for value in (real, shared, signed):
        value.dtype = ir.DataType.FLOAT
    shape = np.array(weight.array.shape, np.int64)
    op("Reshape", signed, add_const(graph, f"{weight.name}/shape", shape))
    insert(weight, nodes)
