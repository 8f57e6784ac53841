"""train-quantized: a quantized model learns, as a whole, to answer as the float model does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

import onnx_ir as ir

from effc.core.errors import ConfigError
from effc.core.extras import require
from effc.core.ir import const
from effc.core.passinfra import Effect, Pass, PassContext
from effc.core.shapes import infer_shapes
from effc.passes.quantize.adaround import samples_of
from effc.passes.quantize.learned import free_scales, write_learned
from effc.passes.quantize.units import layers_of

if TYPE_CHECKING:
    from effc.core.torch_module.training import Progress


@dataclass(frozen=True, slots=True)
class TrainQuantized(Pass):
    """q, s, b  ->  those of least squared error of the model's outputs, relative to the float model's.

    Quantization-aware training by distillation, without labels: integers, their scales, biases and the
    scales of activations learn together through the whole Q/DQ model, rounding passed straight through
    (Jacob et al. 2018; scales: Esser et al. 2020, LSQ). For a model that `quantize` has just made (its float
    weights must be known), best after `adaround`, whose integers it starts from. Nothing changes where the
    error on the samples does not fall. Needs torch.
    """

    id: ClassVar[str] = "train-quantized"
    effect: ClassVar[Effect] = Effect.ROUNDED

    epochs: int = field(default=8, metadata={"help": "over the samples"})
    batch: int = field(default=4, metadata={"help": "in each step", "unit": "samples"})
    samples: int = field(default=128, metadata={"help": "at most", "unit": "samples"})
    rate: float = field(default=2e-3, metadata={"help": "learning rate, in steps of a weight"})
    threads: int = field(
        default=1, metadata={"help": "of torch; other numbers round sums differently"}
    )

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        return self.train(model, ctx, lambda progress: None)

    def train(
        self, model: ir.Model, ctx: PassContext, on_epoch: Callable[[Progress], bool | None]
    ) -> int:
        """`run`, telling `on_epoch` of every epoch; it ends the training by returning False."""
        if min(self.epochs, self.batch, self.samples, self.threads) < 1:
            raise ConfigError(
                f"{self}: epochs, batch, samples and threads are at least 1",
                hint="leave the pass out",
            )
        layers = layers_of(model)
        if not layers:
            return 0
        require("the pass train-quantized", "torch", "torch")
        import torch

        from effc.core.torch_module.module import TorchModule
        from effc.core.torch_module.rounding import LearnedScale, LearnedTensor, TrainedIntegers
        from effc.core.torch_module.training import Group, Training, finetune, threads
        from effc.passes.quantize.reconstruct import bias_of, float_module, limits, real_bias

        infer_shapes(model)
        module = TorchModule.from_ir(model)
        module.requires_grad_(False)
        weights = {
            layer.value: TrainedIntegers(layer.real, layer.stored, layer.params, limits(layer))
            for layer in layers
        }
        biases, scales = {}, {}
        for layer in layers:
            value = bias_of(layer)
            # what it is now: adaround may have learned it
            start = None if value is None else real_bias(model, value, stored=True)
            if value is not None and start is not None:
                biases[str(value.name)] = LearnedTensor(start, float(start.std()) or 1.0)
        for name in free_scales(model):
            array = const(model.graph.initializers[name])
            if array is not None:
                scales[name] = LearnedScale(array)
        for name, substitute in {**weights, **biases, **scales}.items():
            module.substitute(name, substitute)
        teacher = float_module(model)
        feeds = [
            {k: torch.as_tensor(v) for k, v in f.items()}
            for f in islice(samples_of(ctx, self.id), self.samples)
        ]
        with torch.no_grad(), threads(self.threads):
            wanted = [teacher(f) for f in feeds]
        names = [n for n in module.output_names if wanted[0][n].is_floating_point()]
        power = {
            n: torch.cat([w[n].flatten() for w in wanted]).var().clamp(min=1e-20) for n in names
        }

        def loss(batch: Any) -> torch.Tensor:
            made = module({k: torch.cat([feeds[i][k] for i in batch]) for k in feeds[0]})
            errors = [
                (made[n] - torch.cat([wanted[i][n] for i in batch])).square().mean() / power[n]
                for n in names
            ]
            return torch.stack(errors).sum()

        def mean_loss() -> float:
            parts = [
                range(i, min(i + self.batch, len(feeds))) for i in range(0, len(feeds), self.batch)
            ]
            with torch.no_grad(), threads(self.threads):
                return sum(float(loss(p)) * len(p) for p in parts) / len(feeds)

        groups = [
            Group([w.latent for w in weights.values()]),
            Group([w.exponent for w in weights.values()], 0.05),
            Group([s.exponent for s in scales.values()], 0.05),
            Group([b.change for b in biases.values()], 0.1),
        ]
        training = Training(self.epochs, self.batch, self.rate, seed=ctx.seed, threads=self.threads)
        before = mean_loss()
        finetune(groups, len(feeds), loss, training, on_epoch)
        if mean_loss() >= before:
            return 0
        return write_learned(model, weights, biases, scales)
