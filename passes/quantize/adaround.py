"""adaround: which way each weight is rounded is learned."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, ClassVar

import onnx_ir as ir

from effc.core.data import Samples
from effc.core.errors import ConfigError
from effc.core.extras import require
from effc.core.passinfra import Effect, Pass, PassContext
from effc.core.shapes import infer_shapes
from effc.passes.quantize.learned import free_scales, write_learned
from effc.passes.quantize.units import layers_of, units_of

if TYPE_CHECKING:
    from effc.passes.quantize.reconstruct import Progress


@dataclass(frozen=True, slots=True)
class Adaround(Pass):
    """q = round(w / s)  ->  q = floor(w / s) + (0 or 1), whichever keeps the output of the unit.

    For the weights of Conv, ConvTranspose, Gemm and MatMul that `quantize` made integers, in a Q/DQ model
    whose float weights are still known (`model.meta`, so in the same process). Units follow the graph: each
    sees the inputs that the quantized part before it makes and is held to the float model's outputs, on the
    samples. With them the biases are learned and, with `scales`, the scales: of weights, and of activations
    where no other operator has to share them. Nothing changes without float weights. Needs torch.

    Nagel et al. 2020 (arXiv:2004.10568); blocks: Li et al. 2021, BRECQ (arXiv:2102.05426); mixed-in float
    inputs: Wei et al. 2022, QDrop (arXiv:2203.05740).
    """

    id: ClassVar[str] = "adaround"
    effect: ClassVar[Effect] = Effect.ROUNDED

    unit: str = field(default="block", metadata={"help": "layer, or block of about two layers"})
    iterations: int = field(default=80, metadata={"help": "of each unit", "unit": "steps"})
    batch: int = field(
        default=16,
        metadata={"help": "in each step, at most; fewer, but 2, where large", "unit": "samples"},
    )
    samples: int = field(default=128, metadata={"help": "at most", "unit": "samples"})
    rate: float = field(default=0.1, metadata={"help": "learning rate of the rounding"})
    warm_up: float = field(
        default=0.2, metadata={"help": "share of the steps before the regularizer begins"}
    )
    regularizer: float = field(
        default=0.3, metadata={"help": "weight of 'up or down, not between' beside the error"}
    )
    drop: float = field(default=0.5, metadata={"help": "share of inputs that are the float ones"})
    bias: bool = field(default=True, metadata={"help": "learn biases as well"})
    scales: bool = field(
        default=True, metadata={"help": "learn scales of weights and activations too"}
    )
    threads: int = field(
        default=1, metadata={"help": "of torch; other numbers round sums differently"}
    )
    cache: int = field(
        default=1024, metadata={"help": "for activations; fewer samples where more", "unit": "MiB"}
    )

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        return self.learn(model, ctx, lambda what, share: None)

    def learn(self, model: ir.Model, ctx: PassContext, progress: Progress) -> int:
        """`run`, telling `progress` the unit and the share done. Raise from it to stop: nothing changed."""
        self._check()
        if not layers_of(model):
            return 0
        require("the pass adaround", "torch", "torch")
        from effc.core.torch_module.training import threads
        from effc.passes.quantize.reconstruct import Recipe, Reconstruction, samples_that_fit

        infer_shapes(model)
        units = units_of(model, blocks=self.unit == "block")
        count = min(self.samples, samples_that_fit(units, model, self.cache << 20))
        recipe = Recipe(
            self.iterations,
            self.batch,
            self.rate,
            self.warm_up,
            self.regularizer,
            self.drop,
            self.bias,
            self.scales,
        )
        scales = free_scales(model) if self.scales else []
        work = Reconstruction(model, units, scales, recipe, ctx.seed)
        with threads(self.threads):
            work.run(islice(samples_of(ctx, self.id), count), progress)
        return write_learned(model, work.roundings, work.biases, work.learned_scales)

    def _check(self) -> None:
        if self.unit not in ("layer", "block"):
            raise ConfigError(f"adaround.unit={self.unit!r}", hint="a unit is a layer or a block")
        if min(self.iterations, self.batch, self.samples, self.cache, self.threads) < 1:
            raise ConfigError(
                f"{self}: iterations, batch, samples, threads and cache are at least 1",
                hint="leave the pass out to round to the nearest",
            )


def samples_of(ctx: PassContext, who: str) -> Samples:
    """The samples that a pass called `who` learns from; ConfigError where there are none."""
    if ctx.samples is None or len(ctx.samples) == 0:
        raise ConfigError(
            f"{who} learns from samples, and there are none", hint="give them with --samples"
        )
    return ctx.samples
