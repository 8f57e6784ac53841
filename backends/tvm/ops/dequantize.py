"""Stored integers that float kernels read as floats."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from effc.core.ir import add_const, const, replace
from effc.core.passinfra import Effect, Pass, PassContext
from effc.core.quant import quant_params
from effc.core.rewrite import apply, erase


class _Dequantize:
    roots: ClassVar[frozenset[str]] = frozenset({"DequantizeLinear"})

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        params, stored = quant_params(node), const(node.inputs[0])
        if params is None or stored is None:
            return None
        real = params.dequantize(stored)
        graph, output = node.graph, node.outputs[0]
        if not isinstance(graph, ir.Graph) or output.is_graph_output():
            return None
        readers = [use.node for use in output.uses()]
        replace(output, add_const(graph, f"{output.name}_real", real))
        erase(node)
        return readers


@dataclass(frozen=True)
class DequantizeWeights(Pass):
    """DequantizeLinear(q, s, z) of constants -> the constant (q - z) * s, in float32.

    For kernels that compute in float: they pack their weights when they are built. Integers of 2 to 32
    bits, one scale for the tensor, for a channel or for a block; declines stored floats. Quantized
    activations stay as they are.
    """

    id: ClassVar[str] = "effc.backends.tvm.ops.dequantize:DequantizeWeights"
    effect: ClassVar[Effect] = Effect.EXACT

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        return apply(model.graph, [_Dequantize()])
