"""Stored integers that float kernels read as floats."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from effc.core.ir import add_const, attr, const, replace
from effc.core.passinfra import Effect, Pass, PassContext
from effc.core.rewrite import apply, erase

_STORED = frozenset("biu")


class _Dequantize:
    roots: ClassVar[frozenset[str]] = frozenset({"DequantizeLinear"})

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        values = [const(v) for v in node.inputs if v is not None]
        stored, scale = values[0], values[1] if len(values) > 1 else None
        if any(v is None for v in values) or stored is None or scale is None:
            return None
        if (
            stored.dtype.kind not in _STORED
            or scale.dtype != np.float32
            or attr(node, "block_size")
        ):
            return None
        zero = (
            values[2] if len(values) > 2 and values[2] is not None else np.zeros((), stored.dtype)
        )
        if scale.ndim:
            along = [1] * stored.ndim
            along[attr(node, "axis", 1)] = -1
            scale, zero = scale.reshape(along), np.broadcast_to(zero, scale.shape).reshape(along)
        real = (stored.astype(np.int64) - zero.astype(np.int64)).astype(np.float32) * scale
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

    For kernels that compute in float: they pack their weights when they are built. Declines blocks and
    stored floats. Quantized activations stay as they are.
    """

    id: ClassVar[str] = "effc.backends.tvm.ops.dequantize:DequantizeWeights"
    effect: ClassVar[Effect] = Effect.EXACT

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        return apply(model.graph, [_Dequantize()])
