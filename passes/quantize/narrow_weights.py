"""narrow-weights: the weights of chosen quantized nodes get fewer bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from effc.core.errors import ConfigError
from effc.core.ir import Array, attr, const, is_op
from effc.core.passinfra import Effect, Pass, PassContext
from effc.core.quant import dequantized_constant, quant_params
from effc.core.quant_units import FLOAT_WEIGHTS
from effc.passes.quantize.parameters import bias_params, quantize_weight, weight_params

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True)
class NarrowWeights(Pass):
    """conv(x, DQ(w int8)) -> conv(x, DQ(w int4)), by output channel, with the range of least squared error.

    A bias of int32 keeps its real value at the new scale. For nodes whose float weights are still known;
    ConfigError where a name is none. Run correct-bias behind it.
    """

    id: ClassVar[str] = "narrow-weights"
    effect: ClassVar[Effect] = Effect.ROUNDED

    bits: int = field(default=4, metadata={"help": "4 or 2", "unit": "bits"})
    nodes: tuple[str, ...] = field(default=(), metadata={"help": "their names, joined by +"})

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        if self.bits not in (2, 4):
            raise ConfigError(f"narrow-weights.bits={self.bits}", hint="weights have 4 or 2 bits")
        named = set(self.nodes)
        found = [n for n in model.graph if n.name in named and narrowable(n, model)]
        missing = named - {str(n.name) for n in found}
        if missing:
            raise ConfigError(
                f"narrow-weights: {sorted(missing)[0]!r} has no quantized weights to narrow",
                hint="effc blame lists the quantized nodes",
            )
        known: dict[str, Array] = dict(model.meta[FLOAT_WEIGHTS])
        for node in found:
            self._narrow(node, known)
        model.meta[FLOAT_WEIGHTS] = known
        return len(found)

    def _narrow(self, node: ir.Node, known: dict[str, Array]) -> None:
        graph, old = node.graph, node.inputs[1]
        params = quant_params(old.producer()) if old is not None else None
        assert graph is not None and old is not None and params is not None  # narrowable() asked
        weight = known[str(old.name)]
        axis = params.axis if not params.per_tensor else output_axis(node)
        narrow = weight_params(
            weight, axis, bits=self.bits, per_channel=not params.per_tensor, clip=True
        )
        name = f"{node.name}/weight{self.bits}"
        integers = quantize_weight(weight, narrow, self.bits)
        out = dequantized_constant(graph, name, integers, narrow, users=[node], old=old)
        known[str(out.name)] = weight
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        pair = bias.producer() if bias is not None else None
        held, x = quant_params(pair), node.inputs[0]
        activation = quant_params(x.producer()) if x is not None else None
        if bias is None or pair is None or held is None or activation is None:
            return
        stored = const(pair.inputs[0])
        if stored is None:
            return
        scaled = bias_params(activation, narrow)
        real = stored.astype(np.float64) * held.scale.astype(np.float64)
        units = np.rint(real / scaled.scale.astype(np.float64))
        moved = np.clip(units, -(2**31), 2**31 - 1).astype(np.int32)
        out = dequantized_constant(graph, f"{name}/bias", moved, scaled, users=[node], old=bias)
        if str(bias.name) in known:
            known[str(out.name)] = known[str(bias.name)]


def narrowable(node: ir.Node, model: ir.Model) -> bool:
    """Whether `node` has quantized constant weights whose float ones are known."""
    known: Mapping[str, Array] = model.meta.get(FLOAT_WEIGHTS, {})
    weight = node.inputs[1] if is_op(node, *LINEAR) and len(node.inputs) > 1 else None
    if weight is None or str(weight.name) not in known:
        return False
    params = quant_params(weight.producer())
    return params is not None and params.dtype == ir.DataType.INT8 and params.block == 0


def output_axis(node: ir.Node) -> int:
    """The axis of the weights of `node` that holds its output channels."""
    if is_op(node, "Conv"):
        return 0
    return 0 if is_op(node, "Gemm") and attr(node, "transB", 0) else 1
