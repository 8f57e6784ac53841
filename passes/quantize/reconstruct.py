"""Units of a quantized model, each brought as near to the float model as the rounding of its weights allows.

The units run in the graph's order. A unit sees what the quantized part before it makes, and is held to what
the float model makes of its own. Cached are the tensors that cross the place reached, of both models, for
all samples: at most `cache_bytes`, for which fewer samples are taken where they are large.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from effc.core.ir import const, elements, shape_of
from effc.core.measure import Feeds
from effc.core.quant import quant_params
from effc.core.quant_units import FLOAT_WEIGHTS, Array
from effc.core.torch_module.batches import batchable
from effc.core.torch_module.module import TorchModule
from effc.core.torch_module.rounding import Fixed, LearnedRounding, LearnedScale, LearnedTensor
from effc.passes.quantize.units import Layer, Unit

Progress = Callable[[str, float], None]
Values = dict[str, Tensor]

# the exponent of the regularizer: flat at first, so that the error decides; then everything must decide
_BETA = (20.0, 2.0)
# how often in a unit's steps more weights are decided
_DECISIONS = 40
# elements that go into and come out of a unit in one step: with large pictures a few samples hold enough
_STEP_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Recipe:
    """How a unit is optimized; see the options of the pass `adaround`."""

    iterations: int
    batch: int
    rate: float
    warm_up: float
    regularizer: float
    drop: float
    bias: bool
    weight_scales: bool
    floor: float = 0.05
    bias_rate: float = 1e-3
    scale_rate: float = 1e-3


@dataclass(frozen=True)
class Outcome:
    """One unit: its error relative to the float model's signal, rounded to nearest and as learned."""

    name: str
    before: float
    after: float


class Reconstruction:
    """The two models side by side, reconstructed up to some unit."""

    def __init__(
        self,
        model: ir.Model,
        units: Sequence[Unit],
        scales: Sequence[str],
        recipe: Recipe,
        seed: int,
    ) -> None:
        self.model = model
        self.units = tuple(units)
        self.recipe = recipe
        self.random = torch.Generator().manual_seed(seed)
        self.quantized = TorchModule.from_ir(model)
        self.real = TorchModule.from_ir(model)
        self.real.quantized = False
        names = {str(o.name) for n in model.graph for o in n.outputs} | set(
            model.graph.initializers
        )
        for name, array in model.meta.get(FLOAT_WEIGHTS, {}).items():
            if name in names:
                self.real.substitute(name, Fixed(array))
        for module in (self.quantized, self.real):
            module.requires_grad_(False)
        self.scales = frozenset(scales)
        self.roundings: dict[str, LearnedRounding] = {}  # by the value of the weight
        self.biases: dict[str, LearnedTensor] = {}  # by the value of the bias
        self.learned_scales: dict[str, LearnedScale] = {}  # by the name of the initializer

    def run(self, samples: Iterable[Feeds], progress: Progress) -> list[Outcome]:
        """Reconstruct every unit on `samples`; what became of each that has layers."""
        q_values = [{k: torch.from_numpy(np.array(v)) for k, v in f.items()} for f in samples]
        r_values = [dict(v) for v in q_values]
        outcomes: list[Outcome] = []
        for i, unit in enumerate(self.units):
            progress(unit.name or "between layers", i / len(self.units))
            targets = [self._one(self.real, v, unit) for v in r_values]
            if unit.layers:
                outcomes.append(self._learn(unit, q_values, r_values, targets))
            later = {n for u in self.units[i + 1 :] for n in u.inputs}
            for q, r, target in zip(q_values, r_values, targets, strict=True):
                made = self._one(self.quantized, q, unit)
                for values, new in ((q, made), (r, target)):
                    values.update(new)
                    for name in [n for n in values if n not in later]:
                        del values[name]
        progress("done", 1.0)
        return outcomes

    def _one(self, module: TorchModule, values: Values, unit: Unit) -> Values:
        with torch.no_grad():
            made: Values = module({n: values[n] for n in unit.inputs}, unit.outputs)
            return made

    def _learn(
        self, unit: Unit, q: list[Values], r: list[Values], targets: list[Values]
    ) -> Outcome:
        learned = self._substitute(unit, targets)
        together = batchable(
            self.quantized, [{n: v[n] for n in unit.inputs} for v in q[:2]], unit.outputs
        )
        scale = self._signal(unit, targets)
        for rounding in learned.roundings:
            rounding.hard = True
        before = self._error(unit, q, targets, scale)
        for rounding in learned.roundings:
            rounding.hard = False
        groups = [
            {"params": [m.logits for m in learned.roundings], "lr": self.recipe.rate},
            {
                "params": [m.exponent for m in learned.roundings if m.exponent.requires_grad],
                "lr": self.recipe.scale_rate,
            },
            {"params": [m.change for m in learned.biases], "lr": self.recipe.bias_rate},
            {"params": [m.exponent for m in learned.scales], "lr": self.recipe.scale_rate},
        ]
        optimizer = torch.optim.Adam([g for g in groups if g["params"]])
        rates = [g["lr"] for g in optimizer.param_groups]
        norm = {name: max(before, 1e-12) * s for name, s in scale.items()}
        size = sum(q[0][n].numel() for n in unit.inputs)
        size += sum(t.numel() for t in targets[0].values())
        batch = min(self.recipe.batch, max(2, _STEP_ELEMENTS // size))
        every = max(1, self.recipe.iterations // _DECISIONS)
        first = int(self.recipe.warm_up * self.recipe.iterations)
        for step in range(self.recipe.iterations):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                share = step / self.recipe.iterations
                group["lr"] = rate * (
                    self.recipe.floor
                    + (1 - self.recipe.floor) * 0.5 * (1 + math.cos(math.pi * share))
                )
            chosen = torch.randint(len(q), (batch,), generator=self.random).tolist()
            optimizer.zero_grad()
            for part in [chosen] if together else [[c] for c in chosen]:
                loss = self._loss(unit, part, q, r, targets, norm) * (len(part) / len(chosen))
                loss.backward()  # type: ignore[no-untyped-call]
            if step >= first:
                share = (step - first) / max(self.recipe.iterations - first, 1)
                high, low = _BETA
                beta = low + (high - low) * 0.5 * (1 + math.cos(math.pi * share))
                penalty = torch.stack([m.undecided(beta) for m in learned.roundings]).sum()
                (penalty * self.recipe.regularizer).backward()  # type: ignore[no-untyped-call]
                if step % every == 0:
                    for rounding in learned.roundings:
                        rounding.decide(share)
            optimizer.step()
        for module in (*learned.roundings, *learned.biases, *learned.scales):
            module.requires_grad_(False)
        for rounding in learned.roundings:
            rounding.hard = True
        return Outcome(unit.name, before, self._error(unit, q, targets, scale))

    def _loss(
        self,
        unit: Unit,
        part: list[int],
        q: list[Values],
        r: list[Values],
        targets: list[Values],
        norm: dict[str, float],
    ) -> Tensor:
        feeds = {n: torch.cat([q[c][n] for c in part]) for n in unit.inputs}
        if self.recipe.drop:
            for name, value in feeds.items():
                real = torch.cat([r[c][name] for c in part])
                keep = torch.rand(value.shape, generator=self.random) >= self.recipe.drop
                feeds[name] = torch.where(keep, value, real)
        made = self.quantized(feeds, unit.outputs)
        total = torch.zeros(())
        for name, scale in norm.items():
            if made[name].requires_grad:
                wanted = torch.cat([targets[c][name] for c in part])
                total = total + (made[name] - wanted).square().mean() / scale
        return total

    def _substitute(self, unit: Unit, targets: list[Values]) -> _Learned:
        """Put what is learned in the place of the unit's weights, biases and scales."""
        found = _Learned([], [], [])
        spread = max((float(t.std()) for t in targets[0].values() if t.numel() > 1), default=1.0)
        for layer in unit.layers:
            rounding = LearnedRounding(layer.real, layer.params, limits(layer))
            rounding.exponent.requires_grad_(self.recipe.weight_scales and not layer.params.block)
            self.roundings[layer.value] = rounding
            self.quantized.substitute(layer.value, rounding)
            found.roundings.append(rounding)
            bias = bias_of(layer)
            if bias is None or not self.recipe.bias or str(bias.name) in self.biases:
                continue
            start = real_bias(self.model, bias)
            if start is not None:
                learned = LearnedTensor(start, spread)
                self.biases[str(bias.name)] = learned
                self.quantized.substitute(str(bias.name), learned)
                found.biases.append(learned)
        for node in unit.nodes:
            scale = node.inputs[1] if len(node.inputs) > 1 else None
            name = "" if scale is None else str(scale.name)
            array = const(scale)
            if name in self.scales and name not in self.learned_scales and array is not None:
                self.learned_scales[name] = LearnedScale(array)
                self.quantized.substitute(name, self.learned_scales[name])
                found.scales.append(self.learned_scales[name])
        return found

    def _signal(self, unit: Unit, targets: list[Values]) -> dict[str, float]:
        """The variance of every float output: what errors are relative to."""
        found = {}
        for name in unit.outputs:
            if targets[0][name].is_floating_point():
                power = [float(t[name].var(unbiased=False)) for t in targets[:16]]
                found[name] = max(sum(power) / len(power), 1e-20)
        return found

    def _error(
        self, unit: Unit, q: list[Values], targets: list[Values], scale: dict[str, float]
    ) -> float:
        total, count = 0.0, min(len(q), 32)
        for values, target in zip(q[:count], targets, strict=False):
            made = self._one(self.quantized, values, unit)
            total += sum(float((made[n] - target[n]).square().mean()) / s for n, s in scale.items())
        return total / count


@dataclass
class _Learned:
    roundings: list[LearnedRounding]
    biases: list[LearnedTensor]
    scales: list[LearnedScale]


def limits(layer: Layer) -> tuple[int, int] | None:
    """The integers that a symmetric weight uses: what quantized it may leave out the least of its type."""
    if not layer.params.symmetric:
        return None
    most = int(np.abs(layer.stored.astype(np.int64)).max(initial=1))
    return -most, most


def bias_of(layer: Layer) -> ir.Value | None:
    """The bias of a Conv, ConvTranspose or Gemm that only it reads."""
    inputs = layer.node.inputs
    bias = inputs[2] if len(inputs) > 2 else None
    return bias if bias is not None and len(tuple(bias.uses())) == 1 else None


def real_bias(model: ir.Model, bias: ir.Value, *, stored: bool = False) -> Array | None:
    """The numbers of a bias that is constant: the float ones where they are known, unless `stored`."""
    known: Array | None = model.meta.get(FLOAT_WEIGHTS, {}).get(str(bias.name))
    if known is not None and not stored:
        return known
    pair = bias.producer()
    if pair is None:
        return const(bias)
    params, integers = quant_params(pair), const(pair.inputs[0])
    return None if params is None or integers is None else params.dequantize(integers)


def float_module(model: ir.Model) -> TorchModule:
    """The float model that a Q/DQ model was made of: its float weights, and no quantization."""
    module = TorchModule.from_ir(model)
    module.quantized = False
    names = {str(o.name) for n in model.graph for o in n.outputs} | set(model.graph.initializers)
    for name, array in model.meta.get(FLOAT_WEIGHTS, {}).items():
        if name in names:
            module.substitute(name, Fixed(array))
    return module


def samples_that_fit(units: Sequence[Unit], model: ir.Model, cache_bytes: int) -> int:
    """How many samples' tensors, of both models, `cache_bytes` hold at the widest place of the graph."""
    sizes: dict[str, int] = {}
    for node in model.graph:
        for value in (*node.inputs, *node.outputs):
            shape = shape_of(value)
            if value is not None and shape is not None:
                sizes[str(value.name)] = 4 * elements(shape)
    widest = 1
    for i, unit in enumerate(units):
        later = {n for u in units[i:] for n in u.inputs}
        before = {n for u in units[:i] for n in u.outputs} | set(units[0].inputs)
        crossing = sum(sizes.get(n, 0) for n in before & later)
        made = sum(sizes.get(n, 0) for n in unit.outputs)
        widest = max(widest, 2 * crossing + 2 * made)
    return max(1, cache_bytes // widest)
