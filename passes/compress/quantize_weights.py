"""quantize-weights: integers and scales for weights alone; activations stay floats."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import ml_dtypes
import numpy as np
import onnx_ir as ir

from effc.core.errors import ConfigError
from effc.core.ir import Array, is_op
from effc.core.passinfra import Effect, Pass, PassContext
from effc.core.quant import QuantParams, dequantized_constant, make_params
from effc.passes.compress.reconstruct import (
    Moments,
    has_bias,
    inverse_root,
    real_moments,
    settle,
    shift_bias,
)
from effc.passes.compress.report import note
from effc.passes.compress.weights import Weight, find_weights

_SHORTEST = 8  # elements of a block: a scale takes two bytes
_SHRINKS = np.linspace(1.0, 0.5, 26)  # of the range: what is cut off may cost less than it saves


@dataclass(frozen=True, slots=True)
class QuantizeWeights(Pass):
    """w -> DequantizeLinear(q, s, z): `bits` an integer, one scale for `block` weights of an output channel.

    Blocks lie along the operator's inputs (of a convolution: the input channels of one tap) and are as long
    as the largest divisor of their number that is at most `block`; `block=0`, and where that is below 8,
    is one for each output channel. Scales are those of the least square error among 26 shares of the
    range, rounded to bfloat16 (two bytes when stored). 2 to 4 bits are INT4 (UINT4 where asymmetric), up
    to 8 INT8 (UINT8) of the narrower range. Where there are real samples, later weights make up for the
    earlier ones' rounding (reconstruct.py). For Conv, ConvTranspose, Gemm, MatMul and Gather's table.

    Declines constants of fewer than `least` elements, those that not only such operators read, and the
    nodes in `keep`. Dettmers and Zettlemoyer, arXiv 2212.09720 (blocks).
    """

    id: ClassVar[str] = "quantize-weights"
    effect: ClassVar[Effect] = Effect.ROUNDED

    bits: int = field(default=8, metadata={"help": "of an integer", "unit": "2..8"})
    block: int = field(
        default=0,
        metadata={
            "help": "weights that share a scale; 0: those of an output channel",
            "unit": "elements",
        },
    )
    symmetric: bool = field(default=True, metadata={"help": "zero points are 0"})
    least: int = field(default=256, metadata={"help": "smaller constants stay", "unit": "elements"})
    fit: int = field(
        default=128, metadata={"help": "samples on which rounding is made up for; 0: none"}
    )
    keep: tuple[str, ...] = field(
        default=(), metadata={"help": "names of nodes whose weights stay"}
    )

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        if not 2 <= self.bits <= 8 or self.block < 0 or self.block in range(1, 8):
            raise ConfigError(f"{self}: bits are 2 to 8, block 0 or at least 8")
        facts: dict[str, float] = {}
        weights = find_weights(model, keep=self.keep, least=self.least)
        known = real_moments(model, weights, ctx, self.fit)
        for weight in weights:
            facts[weight.name] = round(self._quantize(weight, known.get(weight.name)), 2)
        if facts:
            note(model, self.id, {"sqnr_db": facts})
        return len(facts)

    def _quantize(self, weight: Weight, known: Moments | None) -> float:
        """Replace one weight; its signal-to-noise ratio in dB."""
        array, axis = weight.array, weight.axis
        along = _inputs_axis(weight)
        if is_op(weight.users[0], "Gather"):
            axis = 0
        block = _divisor(array.shape[along], self.block)
        # [outputs, ..., inputs]: blocks are pieces of rows
        moved = np.moveaxis(array, along, -1) if block else np.moveaxis(array, axis, 0)
        matrix = moved.reshape(-1, block) if block else moved.reshape(array.shape[axis], -1)
        scales, zeros, q = quantize_rows(matrix, self.bits, symmetric=self.symmetric)
        dtype = self._type()
        back = q.reshape(moved.shape)
        if block:
            rows = (*moved.shape[:-1], array.shape[along] // block)
            scale, zero = (np.moveaxis(a.reshape(rows), -1, along) for a in (scales, zeros))
            params = make_params(dtype, scale, zero, axis=along, block=block)
            stored = np.moveaxis(back, -1, along)
        else:
            params = make_params(dtype, scales, zeros, axis=axis)
            stored = np.moveaxis(back, 0, axis)
        if known is not None:
            stored = _fitted(weight, params, self.bits, known)
        noise = np.square(array - params.dequantize(stored.astype(dtype.numpy())), dtype=np.float64)
        graph = weight.users[0].graph
        assert isinstance(graph, ir.Graph)
        dequantized_constant(
            graph, weight.name, np.ascontiguousarray(stored).astype(dtype.numpy()), params,
            users=list(weight.users), old=weight.value,
        )  # fmt: skip
        if not weight.value.uses() and weight.name in graph.initializers:
            del graph.initializers[weight.name]
        signal = float(np.square(array, dtype=np.float64).sum())
        total = float(noise.sum())
        return float(10 * np.log10(signal / total)) if total and signal else 200.0

    def _type(self) -> ir.DataType:
        if self.bits <= 4:
            return ir.DataType.INT4 if self.symmetric else ir.DataType.UINT4
        return ir.DataType.INT8 if self.symmetric else ir.DataType.UINT8


def _fitted(weight: Weight, params: QuantParams, bits: int, known: Moments) -> Array:
    """Integers of the weight's shape, each rounded after the errors of those before it; moves the bias."""
    shape = weight.array.shape
    scale, zero = (
        known.rows(np.broadcast_to(a, shape)).astype(np.float64)
        for a in params._spread(weight.array)
    )
    low, high = (
        (0, (1 << bits) - 1) if _unsigned(params) else (-(1 << bits - 1), (1 << bits - 1) - 1)
    )
    integers = np.empty(scale.shape)

    def choose(column: Array, k: int) -> Array:
        q = np.clip(np.rint(column / scale[:, :, k]) + zero[:, :, k], low, high)
        integers[:, :, k] = q
        settled: Array = (q - zero[:, :, k]) * scale[:, :, k]
        return settled

    rows = known.rows(weight.array)
    real, _ = settle(rows, inverse_root(known), choose)
    if has_bias(weight):
        shift_bias(weight, np.einsum("gok,gk->go", rows - real, known.mean))
    return known.array(integers.astype(np.int32), shape)


def _unsigned(params: QuantParams) -> bool:
    return params.dtype in (ir.DataType.UINT4, ir.DataType.UINT8)


def _inputs_axis(weight: Weight) -> int:
    """The axis that the operator sums over first."""
    if is_op(weight.users[0], "Conv"):
        return 1
    if is_op(weight.users[0], "ConvTranspose"):
        return 0
    if is_op(weight.users[0], "Gather"):
        return weight.array.ndim - 1
    rank = weight.array.ndim
    return rank - 1 if weight.axis == rank - 2 else rank - 2


def _divisor(extent: int, most: int) -> int:
    """The largest divisor of `extent` up to `most`; 0 where it is below 8, or all."""
    found = max((d for d in range(1, min(extent, most) + 1) if extent % d == 0), default=0)
    return found if found >= _SHORTEST else 0


def quantize_rows(matrix: Array, bits: int, *, symmetric: bool) -> tuple[Array, Array, Array]:
    """Scales [rows], zero points [rows] and integers [rows, n] (int32) of a float32 matrix [rows, n]."""
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if symmetric else (0, (1 << bits) - 1)
    best = np.full(len(matrix), np.inf)
    scales, zeros = np.ones(len(matrix), np.float32), np.zeros(len(matrix), np.int32)
    least, most = np.minimum(matrix.min(1), 0), np.maximum(matrix.max(1), 0)
    for shrink in _SHRINKS:
        span = np.maximum(most, -least) / high if symmetric else (most - least) / high
        scale = (span * shrink).astype(ml_dtypes.bfloat16).astype(np.float32)
        scale[scale < np.finfo(np.float32).tiny] = 1
        zero = np.zeros(scale.shape, np.int32)
        if not symmetric:
            middle = (least + most) / 2 / scale
            zero = np.clip(np.rint(high / 2 - middle), low, high).astype(np.int32)
        q = np.clip(np.rint(matrix / scale[:, None]) + zero[:, None], low, high)
        error = np.square((q - zero[:, None]) * scale[:, None] - matrix).sum(1)
        better = error < best
        best[better], scales[better], zeros[better] = error[better], scale[better], zero[better]
    q = np.clip(np.rint(matrix / scales[:, None]) + zeros[:, None], low, high)
    return scales, zeros, q.astype(np.int32)
