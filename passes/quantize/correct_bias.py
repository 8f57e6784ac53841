"""correct-bias: quantization shifts the mean of a channel; its bias shifts it back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from effc.core.data import Samples, SyntheticSamples
from effc.core.host import available_cores
from effc.core.ir import Array, add_const, const, is_op, shape_of
from effc.core.passinfra import Effect, Pass, PassContext
from effc.core.quant import dequantized_constant, integer_range, quant_params
from effc.core.quant_units import FLOAT_WEIGHTS, quantized_nodes, restore
from effc.core.reference import OnnxRuntimeRunner
from effc.core.shapes import infer_shapes
from effc.core.specs import static_specs
from effc.passes.quantize.calibrate import with_outputs

LINEAR = ("Conv", "ConvTranspose", "Gemm")


@dataclass(frozen=True, slots=True)
class CorrectBias(Pass):
    """conv(DQ(Q(x)), DQ(w)) + b -> ... + b + (E[y] - E[y']), channel by channel, on the samples.

    y is what the float model gives, y' the quantized one, whose earlier layers are corrected already. For
    Conv, ConvTranspose and Gemm with quantized weights whose float ones are still known. A bias that is
    int32 stays so. Nagel et al. 2019, section 4.2 (empirical bias correction).
    """

    id: ClassVar[str] = "correct-bias"
    effect: ClassVar[Effect] = Effect.ROUNDED

    samples: int = field(default=32, metadata={"help": "how many are used", "unit": "samples"})
    at_once: int = field(
        default=1,
        metadata={"help": "layers corrected by one run over the samples", "unit": "layers"},
    )

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        infer_shapes(model)
        layers = [n for n in quantized_nodes(model) if is_op(n, *LINEAR) and _known(n, model)]
        if not layers:
            return 0
        samples: Samples = ctx.samples or SyntheticSamples(
            static_specs(model.graph.inputs), count=16, seed=ctx.seed
        )
        real = model.clone()
        real.meta[FLOAT_WEIGHTS] = model.meta[FLOAT_WEIGHTS]
        restore(real, {str(n.name) for n in quantized_nodes(real)})
        names = [str(n.outputs[0].name) for n in layers]
        wanted = _means(real, names, samples, self.samples)
        known = dict(model.meta[FLOAT_WEIGHTS])
        count = 0
        for start in range(0, len(layers), max(self.at_once, 1)):
            part = layers[start : start + max(self.at_once, 1)]
            found = _means(model, [str(n.outputs[0].name) for n in part], samples, self.samples)
            for node in part:
                name = str(node.outputs[0].name)
                count += _shift(node, wanted[name] - found[name], known)
        model.meta[FLOAT_WEIGHTS] = known
        return count


def _known(node: ir.Node, model: ir.Model) -> bool:
    known: Mapping[str, Array] = model.meta.get(FLOAT_WEIGHTS, {})
    weight = node.inputs[1]
    return (
        weight is not None and str(weight.name) in known and shape_of(node.outputs[0]) is not None
    )


def _means(model: ir.Model, names: Sequence[str], samples: Samples, count: int) -> dict[str, Array]:
    """The mean over samples and positions of each channel (axis 1) of these values."""
    sums: dict[str, Array] = {}
    done = 0
    with OnnxRuntimeRunner(
        with_outputs(model, names), threads=available_cores(), integer_kernels=False
    ) as runner:
        for feeds in islice(samples, count):
            done += 1
            for name, array in runner.infer(feeds).items():
                others = tuple(i for i in range(array.ndim) if i != 1)
                sums[name] = sums.get(name, 0.0) + array.mean(axis=others, dtype=np.float64)
    return {name: total / done for name, total in sums.items()}


def _shift(node: ir.Node, shift: Array, known: dict[str, Array]) -> bool:
    """Add `shift` [C] to the bias of `node`; `known` learns what the new one was without quantization."""
    graph = node.graph
    assert graph is not None
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    name = f"{node.name}/corrected_bias"
    pair = bias.producer() if bias is not None else None
    params = quant_params(pair)
    if bias is None or params is None or pair is None:
        array = np.zeros(shift.shape, np.float32) if bias is None else const(bias)
        if array is None:
            return False
        value = add_const(graph, name, (array + shift).astype(np.float32))
        node.resize_inputs(3)
        node.replace_input_with(2, value)
        known[str(value.name)] = array
        return True
    stored = const(pair.inputs[0])
    if stored is None:
        return False
    low, high = integer_range(params.dtype)
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.nan_to_num(np.rint(shift / params.scale.astype(np.float64)), posinf=0, neginf=0)
    moved = np.clip(stored.astype(np.int64) + steps, low, high).astype(stored.dtype)
    out = dequantized_constant(graph, name, moved, params, users=[node], old=bias)
    if str(bias.name) in known:
        known[str(out.name)] = known[str(bias.name)]
    return True
