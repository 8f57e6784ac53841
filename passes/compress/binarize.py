"""binarize: weights of two or three values, a scale by channel, trained to work so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx_ir as ir

from effc.core.data import Samples
from effc.core.errors import ConfigError
from effc.core.extras import require
from effc.core.ir import const, is_op
from effc.core.passinfra import Effect, Pass, PassContext
from effc.core.quant import dequantized_constant, make_params
from effc.core.quant_units import FLOAT_WEIGHTS
from effc.core.schemes import weight_axis

if TYPE_CHECKING:
    from torch import Tensor

    from effc.core.torch_module.signs import SignWeight
    from effc.core.torch_module.training import Progress, Training

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True)
class Binarize(Pass):
    """w  ->  DQ(sign(w), alpha), alpha by output channel; with `values=3`, DQ(-1, 0 or 1, alpha).

    The signs are stored as integers of `bits` bits. With `epochs` the network first learns to work with such
    weights, on the samples: their labels where it has some (one output, of class scores), else the answers
    of the float model. Everything that is not binarized learns too (biases, the ends). Without `epochs` the
    weights are replaced as they are, which costs most networks most of their accuracy. The first and the
    last layer stay float unless `ends`, as in the papers: XNOR-Net (Rastegari et al. 2016,
    arXiv:1603.05279), BinaryConnect (Courbariaux et al. 2015, arXiv:1511.00363), TWN (Li et al. 2016,
    arXiv:1605.04711). Declines for weights that are not constant or that several nodes read. Training needs
    torch.
    """

    id: ClassVar[str] = "binarize"
    effect: ClassVar[Effect] = Effect.LOSSY

    values: int = field(default=2, metadata={"help": "2 (-1, 1) or 3 (-1, 0, 1)"})
    epochs: int = field(default=10, metadata={"help": "of training on the samples; 0: none"})
    batch: int = field(default=32, metadata={"help": "of training", "unit": "samples"})
    rate: float = field(default=2e-3, metadata={"help": "learning rate of Adam"})
    ends: bool = field(default=False, metadata={"help": "binarize the first and last layer too"})
    bits: int = field(
        default=4, metadata={"help": "of the stored integers: 4 or 8", "unit": "bits"}
    )
    threads: int = field(
        default=1, metadata={"help": "of torch; other numbers round sums differently"}
    )

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        return self.train(model, ctx, lambda progress: None)

    def train(
        self, model: ir.Model, ctx: PassContext, on_epoch: Callable[[Progress], bool | None]
    ) -> int:
        """`run`, telling `on_epoch` of every epoch; it ends the training by returning False."""
        self._check()
        layers = binarizable(model, ends=self.ends)
        if not layers:
            return 0
        require("the pass binarize", "torch", "torch")
        from effc.core.torch_module.module import TorchModule, write_back
        from effc.core.torch_module.signs import SignWeight
        from effc.core.torch_module.training import Training

        signs = {
            value: SignWeight(_array(value), weight_axis(node), ternary=self.values == 3)
            for node, value in layers
        }
        if self.epochs:
            module = TorchModule.from_ir(model)
            for value, sign in signs.items():
                module.substitute(str(value.name), sign)
            training = Training(
                self.epochs, self.batch, self.rate, seed=ctx.seed, threads=self.threads
            )
            _train(model, module, _samples(ctx.samples), training, on_epoch)
            write_back(module, model, module.weights.keys() - {str(v.name) for v in signs})
        for node, value in layers:
            _store(model, node, value, signs[value], self.bits)
        return len(layers)

    def _check(self) -> None:
        if self.values not in (2, 3) or self.bits not in (4, 8) or self.epochs < 0:
            raise ConfigError(
                f"{self}: values are 2 or 3, bits 4 or 8, epochs not negative",
                hint="binarize{values=3} makes ternary weights",
            )


def binarizable(model: ir.Model, *, ends: bool) -> list[tuple[ir.Node, ir.Value]]:
    """Layers with a constant float weight (input 1) of their own; the first and last only with `ends`."""
    layers = [n for n in model.graph if is_op(n, *LAYERS)]
    found = []
    for node in layers if ends else layers[1:-1]:
        value = node.inputs[1]
        if value is None or not value.is_initializer() or len(tuple(value.uses())) != 1:
            continue
        if value.dtype == ir.DataType.FLOAT and const(value) is not None:
            found.append((node, value))
    return found


def _array(value: ir.Value) -> Any:
    array = const(value)
    assert array is not None
    return array


def _samples(samples: Samples | None) -> Samples:
    if samples is None or len(samples) == 0:
        raise ConfigError(
            "binarize trains on samples, and there are none",
            hint="give them with --samples, or binarize{epochs=0} without training",
        )
    return samples


def _train(
    model: ir.Model,
    module: Any,
    samples: Samples,
    training: Training,
    on_epoch: Callable[[Progress], bool | None],
) -> None:
    """Train what `module` holds on `samples`: on their labels, or on the answers of `model`."""
    import torch

    from effc.core.torch_module.batches import batchable, run_batch
    from effc.core.torch_module.distillation import Lesson
    from effc.core.torch_module.module import TorchModule
    from effc.core.torch_module.training import finetune

    labelled = getattr(samples, "labelled", None)
    pairs = list(labelled()) if labelled is not None else [(f, None) for f in samples]
    feeds = [{k: torch.as_tensor(v) for k, v in f.items()} for f, _ in pairs]
    names = list(module.output_names)
    error: Callable[[Sequence[int]], Tensor]
    if len(names) == 1 and all(label is not None for _, label in pairs):
        labels = torch.tensor([label for _, label in pairs])
        together = batchable(module, feeds, names)

        def error(batch: Sequence[int]) -> Tensor:
            made = run_batch(module, [feeds[i] for i in batch], names, together=together)
            return torch.nn.functional.cross_entropy(made[names[0]].flatten(1), labels[list(batch)])
    else:
        error = Lesson(module, TorchModule.from_ir(model), feeds, training.seed, vary=False).error
    finetune(list(module.parameters()), len(feeds), error, training, on_epoch)


def _store(model: ir.Model, node: ir.Node, value: ir.Value, sign: SignWeight, bits: int) -> None:
    dtype = ir.DataType.INT4 if bits == 4 else ir.DataType.INT8
    axis = weight_axis(node)
    scale = sign.scale().detach().numpy().reshape(-1)
    # a channel of zeros keeps a scale that divides
    params = make_params(dtype, np.where(scale > 0, scale, 1.0), 0, axis=axis)
    integers = sign.signs().numpy().astype(params.zero_point.dtype)
    real = _array(value)
    graph = node.graph
    assert graph is not None
    out = dequantized_constant(graph, str(value.name), integers, params, users=[node], old=value)
    model.meta[FLOAT_WEIGHTS] = {**model.meta.get(FLOAT_WEIGHTS, {}), str(out.name): real}
    if not value.uses() and not value.is_graph_output():
        del graph.initializers[str(value.name)]
