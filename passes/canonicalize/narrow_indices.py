"""narrow-indices: bounds of Slice that fit 32 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from effc.core.ir import Array, add_const, const, graphs, is_op
from effc.core.passinfra import Effect, Pass, PassContext

_LIMIT = np.iinfo(np.int32).max


@dataclass(frozen=True, slots=True)
class NarrowIndices(Pass):
    """Slice(x, starts, ends) -> Slice(x, clip(starts), clip(ends)), both within 32 bits.

    Exporters write "to the end" as 2^63 - 1, which compilers with 32-bit indices (TensorRT 8) cut to some
    other number, or warn of. No tensor has an extent of 2^31, so the clipped bound means the same. Declines
    positive ends of backward slices, where the largest integer has a meaning of its own, and unknown steps.
    """

    id: ClassVar[str] = "narrow-indices"
    effect: ClassVar[Effect] = Effect.EXACT

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        count = 0
        for graph in graphs(model):
            for node in graph:
                if is_op(node, "Slice") and len(node.inputs) > 2:
                    steps = node.inputs[4] if len(node.inputs) > 4 else None
                    known = const(steps) if steps is not None else np.ones(1, np.int64)
                    if known is not None:
                        count += _clip(graph, node, 1, known) + _clip(graph, node, 2, known)
        return count


def _clip(graph: ir.Graph, node: ir.Node, index: int, steps: Array) -> int:
    value = node.inputs[index]
    array = const(value)
    if value is None or array is None or array.dtype != np.int64:
        return 0
    # the least 32-bit integer has no opposite, which compilers take
    clipped = np.clip(array, -_LIMIT, _LIMIT)
    if index == 2:
        clipped = np.where((steps < 0) & (array > 0), array, clipped)
    if np.array_equal(clipped, array):
        return 0
    node.replace_input_with(index, add_const(graph, f"{value.name}/clipped", clipped))
    return 1
