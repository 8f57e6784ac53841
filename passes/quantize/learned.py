"""What torch has learned of a Q/DQ model, written into the IR."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import onnx_ir as ir

from effc.core.ir import add_const, const, is_op
from effc.core.quant import QuantParams, make_params, quant_params
from effc.core.quant_units import FLOAT_WEIGHTS, MOVERS, Array
from effc.passes.quantize.units import Layer, layers_of

if TYPE_CHECKING:
    from torch import Tensor

    from effc.core.torch_module.rounding import LearnedScale, LearnedTensor


class Rounding(Protocol):
    """A weight that was learned."""

    def integers(self) -> Any: ...
    def learned_scale(self, params: QuantParams) -> Any: ...


def write_learned(
    model: ir.Model,
    roundings: Mapping[str, Rounding],
    biases: Mapping[str, LearnedTensor],
    scales: Mapping[str, LearnedScale],
) -> int:
    """Put what was learned into the IR, in constants of its own; the number of weights changed.

    `roundings` by the name of the dequantized weight, `biases` by that of the bias, `scales` by that of the
    initializer. A bias of scale sx * sw keeps that: it is rounded anew.
    """
    layers = layers_of(model)
    products = [_bias_pair(layer) for layer in layers]  # before any scale changes
    for name, learned in scales.items():
        array = learned().detach().numpy().astype(np.float32)
        old = model.graph.initializers[name]
        new = add_const(model.graph, f"{name}/learned", array)
        for node, index in tuple(old.uses()):  # both ends of a pair go on sharing it
            node.replace_input_with(index, new)
        if not old.is_graph_output():
            del model.graph.initializers[name]
    changed = 0
    for layer, pair in zip(layers, products, strict=True):
        rounding = roundings.get(layer.value)
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
        learned_bias = biases.get(str(bias.name))
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


def free_scales(model: ir.Model) -> list[str]:
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
