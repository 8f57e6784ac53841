"""Fold an inference batch norm into the linear operator before or behind it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from effc.core.channel_statistics import remember
from effc.core.ir import Array, attr, is_op, replaceable, sole_use
from effc.core.passinfra import Effect
from effc.core.rewrite import Rule, bypass
from effc.passes.fuse.channels import find_linear, find_reader
from effc.passes.fuse.linear import Linear
from effc.passes.fuse.rewriting import RewritePass, known, rank_of


@dataclass(frozen=True)
class FoldBatchNorm(RewritePass):
    """BN(W x + b) -> (s W) x + (s b + t) and W BN(x) + b -> (W s) x + (W t + b).

    s = gamma / sqrt(var + eps), t = beta - s mean.

    Into Conv, ConvTranspose, Gemm and MatMul with constant weights, also through transposes and
    reshapes that keep the channel axis, a Concat of channels, and on the other side a mean over the
    pixels. Behind the norm: only where the operator reads no padding (padding is zero after the
    norm, not before it) or t = 0. Weights that others read too are copied. Computed in float64, then
    rounded to the weight's type.

    Declines: training mode, computed parameters, an intermediate result that something else reads,
    var + eps <= 0 or any number that is not finite (also after rounding). A norm that nothing can
    absorb stays a norm.

    Source: Jacob et al., arXiv 1712.05877, section 3.2.
    """

    id: ClassVar[str] = "fold-batch-norm"
    effect: ClassVar[Effect] = Effect.EXACT

    def rules(self, opset: int) -> Iterable[Rule]:
        return (_IntoProducer(), _IntoConsumer())


def affine(norm: ir.Node) -> tuple[Array, Array] | None:
    """Scale and shift, float64 [C], of a BatchNormalization in inference mode; None if it has none."""
    if attr(norm, "training_mode", 0) or any(
        o.uses() or o.is_graph_output() for o in norm.outputs[1:]
    ):
        return None
    parameters = [known(v) for v in norm.inputs[1:5]]
    if len(parameters) != 4 or any(p is None for p in parameters):
        return None
    gamma, beta, mean, variance = (p.astype(np.float64) for p in parameters if p is not None)
    with np.errstate(all="ignore"):
        scale = gamma / np.sqrt(variance + attr(norm, "epsilon", 1e-5))
        shift = beta - scale * mean
    if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
        return None
    channels = max(p.size for p in (scale, shift))
    return np.broadcast_to(scale, (channels,)), np.broadcast_to(shift, (channels,))


class _IntoProducer:
    roots: ClassVar[frozenset[str]] = frozenset({"BatchNormalization"})

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        x = node.inputs[0]
        if x is None or sole_use(x) is not node or not replaceable(node.outputs[0], x):
            return None
        numbers = affine(node)
        parts = _parts(x) if numbers is not None else None
        if numbers is None or parts is None:
            return None
        if sum(p.outputs for p in parts) != numbers[0].size:
            return None
        at = 0
        for part in parts:
            mine = slice(at, at + part.outputs)
            part.scale_outputs(numbers[0][mine])
            part.shift_outputs(numbers[1][mine])
            at = mine.stop
        if not all(part.fits() for part in parts):
            return None
        for part in parts:
            part.commit()
        x = node.inputs[0]  # committing may have put an Add behind a MatMul
        assert x is not None
        gamma, beta = known(node.inputs[1]), known(node.inputs[2])
        if x.producer() is parts[0].node and gamma is not None and beta is not None:
            remember(x, beta.astype(np.float32), np.abs(gamma).astype(np.float32))
        return (*bypass(node, x), *(part.node for part in parts))


def _parts(value: ir.Value) -> list[Linear] | None:
    """The linear operators whose outputs make up the channels (axis 1) of `value`, in order."""
    concat = value.producer()
    if concat is None or not is_op(concat, "Concat"):
        linear = find_linear(value, 1)
        return None if linear is None else [linear]
    rank = rank_of(value)
    if rank is None or attr(concat, "axis") % rank != 1:
        return None
    parts = [find_linear(v, 1) for v in concat.inputs]
    return None if any(p is None for p in parts) else [p for p in parts if p is not None]


class _IntoConsumer:
    roots: ClassVar[frozenset[str]] = frozenset({"BatchNormalization"})

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        x = node.inputs[0]
        numbers = affine(node)
        if x is None or numbers is None:
            return None
        found = find_reader(node.outputs[0], 1)
        linear = Linear.read(found[0]) if found is not None else None
        if found is None or linear is None or linear.node is not found[0]:
            return None
        scale, shift = numbers
        if found[1] != linear.input_axis or linear.inputs != scale.size:
            return None
        if shift.any():
            if not linear.shift_inputs_is_exact():
                return None
            linear.shift_inputs(shift)
        linear.scale_inputs(scale)
        if not linear.commit():
            return None
        return (*bypass(node, x), linear.node)
