"""Fold arithmetic with constants into the weights and the bias of the linear operator beside it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from effc.core.ir import Array, attr, is_op, replaceable, sole_use
from effc.core.passinfra import Effect
from effc.core.rewrite import Rule, bypass
from effc.passes.fuse.channels import find_linear, find_reader
from effc.passes.fuse.linear import Linear, channel_vector
from effc.passes.fuse.rewriting import (
    RewritePass,
    graph_of,
    rank_of,
    split_const,
    substitute,
)

ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div", "Neg"})


@dataclass(frozen=True)
class FoldBias(RewritePass):
    """s * (W x + b) + t -> (s W) x + (s b + t) and W (s * x + t) + b -> (W s) x + (W t + b).

    s and t are constants, scalar or one number a channel, spelt Add, Sub, Mul, Div or Neg, with
    either order of the operands; W is a Conv, ConvTranspose, Gemm or MatMul with constant weights.
    Behind W, transposes and reshapes that keep the channel axis may stand between. Before W, t is
    folded only where no output reads padding. MatMul + Add on matrices becomes a Gemm; a MatMul of
    higher rank keeps its Add (kernels take it as an epilogue), never a Reshape-Gemm-Reshape.

    Declines: constants that vary along another axis or broadcast the value, an intermediate result
    that something else reads, division by a constant with a zero, results that are not finite.
    """

    id: ClassVar[str] = "fold-bias"
    effect: ClassVar[Effect] = Effect.EXACT

    def rules(self, opset: int) -> Iterable[Rule]:
        return (_IntoProducer(), _IntoConsumer(), _MatMulAddToGemm())


@dataclass(frozen=True)
class Affine:
    """scale * value + shift, both float64 constants; `value` is input `index` of the node."""

    value: ir.Value
    index: int
    scale: Array
    shift: Array

    @classmethod
    def read(cls, node: ir.Node) -> Affine | None:
        """The affine view of an arithmetic node with one constant operand, or None."""
        zero, one = np.float64(0), np.float64(1)
        if is_op(node, "Neg"):
            x = node.inputs[0]
            return None if x is None else cls(x, 0, np.asarray(-one), np.asarray(zero))
        if not is_op(node, "Add", "Sub", "Mul", "Div"):
            return None
        split = split_const(node)
        if split is None or split[0].dtype.kind not in "fV":
            return None
        held, value, at = split
        index = 1 - at
        c = held.astype(np.float64)
        if not np.isfinite(c).all():
            return None
        match node.op_type:
            case "Add":
                return cls(value, index, np.asarray(one), c)
            case "Sub":
                return (
                    cls(value, index, np.asarray(-one), c)
                    if index
                    else cls(value, index, np.asarray(one), -c)
                )
            case "Mul":
                return cls(value, index, c, np.asarray(zero))
        if index != 0 or not c.all():
            return None
        return cls(value, index, 1 / c, np.asarray(zero))

    def axis(self, rank: int) -> int | None:
        """The one axis of a value of this rank along which the constants vary, None for scalars.

        -1 where they vary along several, or where their rank is higher.
        """
        axes: set[int] = set()
        for array in (self.scale, self.shift):
            if array.ndim > rank:
                return -1
            axes |= {rank - array.ndim + i for i, n in enumerate(array.shape) if n != 1}
        if not axes:
            return None
        return axes.pop() if len(axes) == 1 else -1

    def vectors(self, rank: int, axis: int | None, channels: int) -> tuple[Array, Array] | None:
        """Scale and shift as vectors [channels] along `axis`."""
        at = axis if axis is not None else rank - 1
        scale = channel_vector(self.scale, rank, at, channels)
        shift = channel_vector(self.shift, rank, at, channels)
        return None if scale is None or shift is None else (scale, shift)


class _IntoProducer:
    roots: ClassVar[frozenset[str]] = ARITHMETIC

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        affine = Affine.read(node)
        if affine is None or sole_use(affine.value) is not node:
            return None
        if not replaceable(node.outputs[0], affine.value):
            return None
        rank = rank_of(affine.value)
        if rank is None:
            return None
        axis = affine.axis(rank)
        if axis == -1:
            return None
        linear = find_linear(affine.value, axis)
        if linear is None or linear.node is node:
            return None
        vectors = affine.vectors(rank, axis, linear.outputs)
        if vectors is None:
            return None
        scale, shift = vectors
        linear.scale_outputs(scale)
        if affine.shift.any():
            if not linear.takes_bias:
                return None  # an Add would only move
            linear.shift_outputs(shift)
        if not linear.commit():
            return None
        value = node.inputs[affine.index]  # a MatMul that became a Gemm has a new result
        assert value is not None
        return (*bypass(node, value), *_around(linear.node))


class _IntoConsumer:
    roots: ClassVar[frozenset[str]] = ARITHMETIC

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        affine = Affine.read(node)
        rank = rank_of(node.outputs[0])
        if affine is None or rank is None or rank_of(affine.value) != rank:
            return None
        axis = affine.axis(rank)
        if axis == -1 or (axis is not None and affine.value.shape != node.outputs[0].shape):
            return None  # along several axes, or the constant broadcasts the value
        if axis is None:
            axis = self._channel_axis(node, rank)
        found = find_reader(node.outputs[0], axis)
        linear = Linear.read(found[0]) if found is not None else None
        if found is None or linear is None or linear.node is not found[0]:
            return None
        if found[1] != linear.input_axis:
            return None
        vectors = affine.vectors(rank, axis, linear.inputs)
        if vectors is None:
            return None
        scale, shift = vectors
        if affine.shift.any():
            if not linear.shift_inputs_is_exact() or not linear.takes_bias:
                return None
            linear.shift_inputs(shift)
        linear.scale_inputs(scale)
        if not linear.commit():
            return None
        value = node.inputs[affine.index]  # a MatMul that became a Gemm has a new result
        assert value is not None
        return (*bypass(node, value), *_around(linear.node))

    def _channel_axis(self, node: ir.Node, rank: int) -> int:
        """Which axis a scalar may be taken to lie on: that of the reader's channels."""
        reader = sole_use(node.outputs[0])
        if reader is not None and is_op(reader, "MatMul"):
            return rank - 1
        if reader is not None and is_op(reader, "Gemm") and attr(reader, "transA", 0):
            return 0
        return min(1, rank - 1)


class _MatMulAddToGemm:
    roots: ClassVar[frozenset[str]] = frozenset({"Add"})

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        split = split_const(node)
        if split is None:
            return None
        bias, value, index = split
        product = value.producer()
        if not is_op(product, "MatMul") or sole_use(value) is not node:
            return None
        assert product is not None  # is_op refuses None
        a, b = product.inputs
        if rank_of(a) != 2 or rank_of(b) != 2 or bias.ndim > 2 or bias.dtype.kind not in "fV":
            return None
        columns = b.shape[1] if b is not None and b.shape is not None else None
        if bias.size != 1 and (bias.shape[-1] != columns or bias.size != columns):
            return None
        gemm = ir.node("Gemm", [a, b, node.inputs[index]], name=product.name)
        graph_of(node).insert_before(node, gemm)
        substitute(node, gemm)
        return _around(gemm)


def _around(node: ir.Node) -> Iterable[ir.Node]:
    """Nodes that may match now that `node` changed: those that read it and those that it reads."""
    near = [node]
    near += [use.node for out in node.outputs for use in out.uses()]
    near += [p for v in node.inputs if v is not None and (p := v.producer()) is not None]
    return near
