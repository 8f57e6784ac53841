"""migrate-difficulty: channels with outliers hand part of their range to the weights that read them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from effc.core.data import SyntheticSamples
from effc.core.ir import Array
from effc.core.passinfra import Effect, Pass, PassContext
from effc.core.shapes import infer_shapes
from effc.core.specs import static_specs
from effc.passes.quantize.calibrate import calibrate
from effc.passes.quantize.observe import Observer
from effc.passes.quantize.scale_edges import Edge, edges


@dataclass
class ChannelPeaks(Observer):
    """The largest absolute value of each channel, over all samples."""

    axis: int = 1
    peaks: Array | None = None

    def see(self, arrays: list[Array]) -> None:
        for array in arrays:
            others = tuple(i for i in range(array.ndim) if i != self.axis)
            found = np.abs(array).max(axis=others)
            self.peaks = found if self.peaks is None else np.maximum(self.peaks, found)


@dataclass(frozen=True, slots=True)
class MigrateDifficulty(Pass):
    """W f(x) -> (W s) f(x / s), s_i = max|x_i|^alpha / max|W_i|^(1 - alpha), normalized to mean log 0.

    x / s is written into what makes x: the scale of a LayerNormalization, or the weights of a convolution
    or product before Relu or pooling. Declines as equalize-layers does. Activations come from the samples.
    Xiao et al., "SmoothQuant", 2022 (arXiv:2211.10438).
    """

    id: ClassVar[str] = "migrate-difficulty"
    effect: ClassVar[Effect] = Effect.EXACT

    alpha: float = field(default=0.5, metadata={"help": "0: all stays; 1: all range to weights"})

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        infer_shapes(model)
        found = list(edges(model.graph))
        if not found:
            return 0
        samples = ctx.samples or SyntheticSamples(
            static_specs(model.graph.inputs), count=16, seed=ctx.seed
        )
        axes = iter([e.axis for e in found])
        seen = calibrate(
            model, [e.tensors for e in found], samples, lambda: ChannelPeaks(next(axes))
        )
        peaks = {
            _key(e): s.peaks
            for e, s in zip(found, seen, strict=True)
            if isinstance(s, ChannelPeaks)
        }
        count = 0
        # read again one by one: dividing one edge changes the weights of the next
        for edge in edges(model.graph):
            known = peaks.get(_key(edge))
            if known is not None:
                count += edge.divide(self._scale(known.astype(np.float64), edge.consumer_peaks()))
        return count

    def _scale(self, peaks: Array, weights: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = peaks**self.alpha / weights ** (1 - self.alpha)
        good = np.isfinite(scale) & (scale > 0)
        if not good.any():
            return np.ones_like(scale)
        scale = scale / np.exp(np.log(scale[good]).mean())
        return np.where(good, np.clip(scale, 1e-4, 1e4), 1.0)


def _key(edge: Edge) -> str:
    return str(edge.tensors[0].name)
