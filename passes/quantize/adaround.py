"""adaround: which way each weight is rounded is learned."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import onnx_ir as ir

from effc.core.data import Samples
from effc.core.errors import ConfigError
from effc.core.extras import require
from effc.core.ir import add_const, const, is_op
from effc.core.passinfra import Effect, Pass, PassContext
from effc.core.quant import QuantParams, make_params, quant_params
from effc.core.quant_units import FLOAT_WEIGHTS, MOVERS, Array
from effc.core.shapes import infer_shapes
from effc.passes.quantize.units import Layer, layers_of, units_of

if TYPE_CHECKING:
    from torch import Tensor

    from effc.passes.quantize.reconstruct import Progress, Reconstruction


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
    iterations: int = field(default=400, metadata={"help": "of each unit", "unit": "steps"})
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
        scales = _free_scales(model) if self.scales else []
        work = Reconstruction(model, units, scales, recipe, ctx.seed)
        with threads(self.threads):
            work.run(islice(_samples(ctx.samples), count), progress)
        return _write(model, work)

    def _check(self) -> None:
        if self.unit not in ("layer", "block"):
            raise ConfigError(f"adaround.unit={self.unit!r}", hint="a unit is a layer or a block")
        if min(self.iterations, self.batch, self.samples, self.cache, self.threads) < 1:
            raise ConfigError(
                f"{self}: iterations, batch, samples, threads and cache are at least 1",
                hint="leave the pass out to round to the nearest",
            )


def _samples(samples: Samples | None) -> Samples:
    if samples is None or len(samples) == 0:
        raise ConfigError(
            "adaround learns from samples, and there are none", hint="give them with --samples"
        )
    return samples


def _write(model: ir.Model, work: Reconstruction) -> int:
    """Put what was learned into the IR, in constants of its own; the number of weights changed."""
    layers = layers_of(model)
    products = [_bias_pair(layer) for layer in layers]  # before any scale changes
    for name, learned in work.learned_scales.items():
        array = learned().detach().numpy().astype(np.float32)
        for node, index in tuple(model.graph.initializers[name].uses()):
            _set(model, node, index, array)
    changed = 0
    for layer, pair in zip(layers, products, strict=True):
        rounding = work.roundings.get(layer.value)
        if rounding is None:
            continue
        integers = rounding.integers().astype(layer.stored.dtype)
        changed += not np.array_equal(integers.astype(np.int8), layer.stored.astype(np.int8))
        _set(model, layer.weight, 0, integers)
        scale = rounding.learned_scale(layer.params)
        if not np.array_equal(scale, layer.params.scale):
            _set(model, layer.weight, 1, scale)
        bias = layer.node.inputs[2] if len(layer.node.inputs) > 2 else None
        if bias is None:
            continue
        learned_bias = work.biases.get(str(bias.name))
        if pair is not None:
            _requantize(model, layer, pair, learned_bias() if learned_bias else None)
        elif learned_bias is not None and bias.is_initializer():
            array = learned_bias().detach().numpy()
            _set(model, layer.node, 2, array, like=bias)
    return changed


def _set(
    model: ir.Model, node: ir.Node, index: int, array: Array, like: ir.Value | None = None
) -> None:
    """Let `node` read `array` as its input, and forget what it read where nothing else does."""
    old = node.inputs[index]
    assert old is not None
    new = add_const(model.graph, f"{old.name}/learned", array)
    node.replace_input_with(index, new)
    known = model.meta[FLOAT_WEIGHTS]
    if like is not None:
        model.meta[FLOAT_WEIGHTS] = {
            **known,
            str(new.name): known.get(str(like.name), const(like)),
        }
    if not old.uses() and not old.is_graph_output() and old.is_initializer():
        del model.graph.initializers[str(old.name)]


def _bias_pair(layer: Layer) -> ir.Node | None:
    """The DequantizeLinear of the layer's bias where its scale is that of input times weight."""
    inputs = layer.node.inputs
    bias = inputs[2] if len(inputs) > 2 else None
    pair = bias.producer() if bias is not None else None
    params, x = quant_params(pair), _input_params(layer)
    if params is None or x is None or not x.per_tensor:
        return None
    return pair if np.allclose(params.scale, x.scale * layer.params.scale, rtol=1e-6) else None


def _input_params(layer: Layer) -> QuantParams | None:
    source = layer.node.inputs[0]
    return quant_params(source.producer()) if source is not None else None


def _requantize(model: ir.Model, layer: Layer, pair: ir.Node, learned: Tensor | None) -> None:
    """The bias in units of the scales of input and weight, as they are now."""
    params, x, stored = quant_params(pair), _input_params(layer), const(pair.inputs[0])
    weight = quant_params(layer.weight)
    if params is None or x is None or weight is None or stored is None:
        return
    known = model.meta[FLOAT_WEIGHTS].get(str(pair.outputs[0].name))
    real = params.dequantize(stored) if known is None else known
    if learned is not None:
        real = learned.detach().numpy()
    scale = (x.scale * weight.scale).astype(np.float32)
    new = make_params(params.dtype, scale, 0, axis=params.axis)
    _set(model, pair, 0, new.quantize(real))
    if not np.array_equal(scale, params.scale):
        _set(model, pair, 1, scale)


def _free_scales(model: ir.Model) -> list[str]:
    """Scales of activations that one pair alone reads, and that no operator makes two pairs share."""
    found = []
    for node in model.graph:
        if not is_op(node, "QuantizeLinear"):
            continue
        scale, source, readers = node.inputs[1], node.inputs[0], list(node.outputs[0].consumers())
        if scale is None or source is None or not scale.is_initializer() or len(readers) != 1:
            continue
        pair = readers[0]
        users = {use.node for use in scale.uses()}
        shares = _moved_in(source) or _moved_out(pair.outputs[0])
        if is_op(pair, "DequantizeLinear") and users == {node, pair} and not shares:
            found.append(str(scale.name))
    return found


def _moved_in(value: ir.Value) -> bool:
    """Whether a mover of quantized elements makes `value`."""
    made = value.producer()
    if made is None or not is_op(made, *MOVERS):
        return False
    return any(
        v is not None and (is_op(v.producer(), "DequantizeLinear") or _moved_in(v))
        for v in made.inputs
    )


def _moved_out(value: ir.Value) -> bool:
    """Whether a mover takes the dequantized `value` to another quantization."""
    return any(
        is_op(n, *MOVERS)
        and any(is_op(m, "QuantizeLinear") for o in n.outputs for m in o.consumers())
        for n in value.consumers()
    )
