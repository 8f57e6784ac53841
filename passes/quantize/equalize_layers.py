"""equalize-layers: consecutive layers share the burden of wide channels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from effc.core.passinfra import Effect, Pass, PassContext
from effc.passes.fuse.linear import Linear
from effc.passes.quantize.scale_edges import edges, output_peaks


@dataclass(frozen=True, slots=True)
class EqualizeLayers(Pass):
    """W2 f(W1 x + b) -> (W2 s) f((W1 / s) x + b / s) with s_i = sqrt(r1_i / r2_i).

    r1_i is the largest weight that makes channel i, r2_i the largest that reads it; f is Relu, pooling or
    nothing. Repeated until the ranges settle. Declines behind Relu6 and other functions that scaling does
    not pass through, and where anything else reads the channels (residual adds). Needs folded batch norms.
    Nagel et al., "Data-free quantization through weight equalization and bias correction", 2019.
    """

    id: ClassVar[str] = "equalize-layers"
    effect: ClassVar[Effect] = Effect.EXACT

    rounds: int = field(default=8, metadata={"help": "at most so many sweeps", "unit": "sweeps"})
    tolerance: float = field(
        default=0.02, metadata={"help": "a sweep that changes no channel by more is the last"}
    )

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        changed: set[str] = set()
        for _ in range(self.rounds):
            largest = 0.0
            for edge in edges(model.graph):
                if not isinstance(edge.producer, Linear):
                    continue
                made, read = output_peaks(edge.producer), edge.consumer_peaks()
                with np.errstate(divide="ignore", invalid="ignore"):
                    scale = np.sqrt(made / read)
                scale[~np.isfinite(scale) | (scale <= 0)] = 1.0
                step = float(np.abs(np.log(scale)).max())
                if step > self.tolerance and edge.divide(scale):
                    largest = max(largest, step)
                    changed.add(str(edge.producer.node.name))
            if largest <= self.tolerance:
                break
        return len(changed)
