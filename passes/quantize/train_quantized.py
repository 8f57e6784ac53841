"""train-quantized: a quantized model learns, as a whole, to answer as the float model does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, ClassVar

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
    error on the samples, or on variations that it has not seen, does not fall. Needs torch.
    """

    id: ClassVar[str] = "train-quantized"
    effect: ClassVar[Effect] = Effect.ROUNDED

    epochs: int = field(default=8, metadata={"help": "over the samples"})
    batch: int = field(default=4, metadata={"help": "in each step", "unit": "samples"})
    samples: int = field(default=128, metadata={"help": "at most", "unit": "samples"})
    vary: bool = field(
        default=True, metadata={"help": "learn from parts of pictures, mirrored or not"}
    )
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

        from effc.core.torch_module.distillation import Lesson
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
        feeds = [
            {k: torch.as_tensor(v) for k, v in f.items()}
            for f in islice(samples_of(ctx, self.id), self.samples)
        ]
        with threads(self.threads):
            lesson = Lesson(module, float_module(model), feeds, ctx.seed, vary=self.vary)
            before = lesson.mean_error(self.batch)
        groups = [
            Group([w.latent for w in weights.values()]),
            Group([w.exponent for w in weights.values()], 0.2),
            Group([s.exponent for s in scales.values()], 0.05),
            Group([b.change for b in biases.values()]),
        ]
        training = Training(self.epochs, self.batch, self.rate, seed=ctx.seed, threads=self.threads)
        finetune(groups, len(feeds), lesson.error_of_variations, training, on_epoch)
        with threads(self.threads):
            if lesson.mean_error(self.batch) >= before:
                return 0
        return write_learned(model, weights, biases, scales)
