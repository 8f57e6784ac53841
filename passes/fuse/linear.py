"""Convolutions and matrix products with constant weights, seen as y[o] = sum_i W[o, i] x[i] + b[o]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import onnx_ir as ir

from effc.core.ir import Array, add_const, attr, const, is_op, replace, sole_use
from effc.passes.fuse.rewriting import (
    graph_of,
    known,
    rank_of,
    result_name,
    set_const,
    set_input,
    split_const,
    substitute,
)

PRODUCTS = ("Gemm", "MatMul")
CONVOLUTIONS = ("Conv", "ConvTranspose")


@dataclass(eq=False)
class Linear:
    """One such operator, to be changed and then committed.

    `weight` is float64 in the operator's own layout: Conv [O, I/groups, k...], ConvTranspose
    [I, O/groups, k...], Gemm and MatMul [I, O] (Gemm's transB is undone on reading). It is made when it
    is asked for, and written back only if it was set: where a bias moves, large weights stay untouched.
    `bias` is float64 [O] and already carries Gemm's beta, or is None where there is none.
    """

    node: ir.Node
    held: Array  # the weight in the operator's own layout and its own type
    bias: Array | None
    groups: int
    dtype: np.dtype[np.generic]
    add: ir.Node | None = None  # the Add behind a MatMul that holds its bias
    # weight (None: unchanged) and bias as they will be written
    stored: tuple[Array | None, Array | None] | None = None
    wide: Array | None = None  # `held` in float64, or what took its place
    changed: bool = False

    @classmethod
    def read(cls, node: ir.Node | None) -> Self | None:
        """The linear view of `node` (an Add behind a MatMul counts as its bias), or None.

        None where the weight or the bias is computed, or has a form that no channel vector describes.
        """
        if node is None:
            return None
        if is_op(node, "Add"):
            return cls._read_biased(node)
        if not is_op(node, *PRODUCTS, *CONVOLUTIONS) or len(node.inputs) < 2:
            return None
        stored = const(node.inputs[1])
        if stored is None or stored.dtype.kind not in "fV":
            return None
        conv = is_op(node, *CONVOLUTIONS)
        if (conv and stored.ndim < 3) or (not conv and stored.ndim != 2):
            return None
        groups = attr(node, "group", 1) if conv else 1
        turned = is_op(node, "Gemm") and attr(node, "transB", 0)
        view = cls(node, stored.T if turned else stored, None, groups, stored.dtype)
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            held = known(node.inputs[2])
            if held is None:
                return None
            if is_op(node, "Gemm"):
                held = held.astype(np.float64) * attr(node, "beta", 1.0)
            view.bias = channel_vector(held, max(held.ndim, 1), -1, view.outputs)
            if view.bias is None:
                return None
        return view

    @classmethod
    def _read_biased(cls, add: ir.Node) -> Self | None:
        split = split_const(add)
        if split is None:
            return None
        held, other, _ = split
        product = other.producer()
        if not is_op(product, "MatMul") or sole_use(other) is not add:
            return None
        view = cls.read(product)
        rank = rank_of(other)
        if view is None or rank is None or held.ndim > rank:
            return None
        view.bias = channel_vector(held, max(held.ndim, 1), -1, view.outputs)
        view.add = add
        return view if view.bias is not None else None

    @property
    def weight(self) -> Array:
        if self.wide is None:
            self.wide = self.held.astype(np.float64)
        return self.wide

    @weight.setter
    def weight(self, weight: Array) -> None:
        self.wide = weight
        self.changed = True

    @property
    def shape(self) -> tuple[int, ...]:
        """That of `weight`."""
        return (self.held if self.wide is None else self.wide).shape

    @property
    def conv(self) -> bool:
        return is_op(self.node, *CONVOLUTIONS)

    @property
    def outputs(self) -> int:
        """The number of output channels."""
        if is_op(self.node, "Conv"):
            return int(self.shape[0])
        return int(self.shape[1]) * self.groups

    @property
    def inputs(self) -> int:
        """The number of input channels."""
        if is_op(self.node, "Conv"):
            return int(self.shape[1]) * self.groups
        return int(self.shape[0])

    @property
    def result(self) -> ir.Value:
        """The value that holds y."""
        return (self.add or self.node).outputs[0]

    @property
    def output_axis(self) -> int | None:
        """Which axis of y holds its channels, not negative; None when the rank is unknown."""
        if self.conv or is_op(self.node, "Gemm"):
            return 1
        rank = rank_of(self.node.inputs[0])
        return rank - 1 if rank is not None and rank > 0 else None

    @property
    def input_axis(self) -> int | None:
        """Which axis of x holds its channels, not negative; None when the rank is unknown."""
        if self.conv:
            return 1
        if is_op(self.node, "Gemm"):
            return 0 if attr(self.node, "transA", 0) else 1
        return self.output_axis

    @property
    def takes_bias(self) -> bool:
        """Whether a bias needs no operator of its own."""
        return (
            self.conv
            or is_op(self.node, "Gemm")
            or self.add is not None
            or rank_of(self.node.inputs[0]) == 2
        )

    def scale_outputs(self, scale: Array) -> None:
        """y' = scale * y, scale of shape [O]."""
        if (scale == 1).all():
            return
        if is_op(self.node, "Conv"):
            self.weight = self.weight * _at(scale, self.weight.ndim, 0)
        elif self.conv:
            # [I, O/g, k...]: the rows of one group lead to that group's outputs
            rows = self.weight.shape[0] // self.groups
            table = np.repeat(scale.reshape(self.groups, -1), rows, axis=0)
            self.weight = self.weight * table.reshape(*table.shape, *[1] * (self.weight.ndim - 2))
        else:
            self.weight = self.weight * scale
        if self.bias is not None:
            self.bias = self.bias * scale

    def shift_outputs(self, shift: Array) -> None:
        """y' = y + shift, shift of shape [O]."""
        self.bias = shift.copy() if self.bias is None else self.bias + shift

    def scale_inputs(self, scale: Array) -> None:
        """y' = W (scale * x) + b, scale of shape [I]. Padding stays exact: it is zero."""
        if (scale == 1).all():
            return
        if is_op(self.node, "Conv"):
            self.weight = self.weight * self._by_group(scale)
        else:
            self.weight = self.weight * _at(scale, self.weight.ndim, 0)

    def shift_inputs(self, shift: Array) -> None:
        """y' = W (x + shift) + b, shift of shape [I]; only where every output sees every tap."""
        if is_op(self.node, "Conv"):
            taps = self.weight * self._by_group(shift)
            self.shift_outputs(taps.sum(axis=tuple(range(1, taps.ndim))))
        else:
            alpha = attr(self.node, "alpha", 1.0) if is_op(self.node, "Gemm") else 1.0
            self.shift_outputs(alpha * (shift @ self.weight))

    def shift_inputs_is_exact(self) -> bool:
        """Whether no output of this operator reads padding."""
        if is_op(self.node, "Conv"):
            return unpadded(self.node)
        return not self.conv

    def _by_group(self, vector: Array) -> Array:
        """Input channels [I] -> broadcastable to the weight [O, I/groups, k...]."""
        per_group = vector.reshape(self.groups, -1)
        table = np.repeat(per_group, self.outputs // self.groups, axis=0)
        return table.reshape(*table.shape, *[1] * (self.weight.ndim - 2))

    def fits(self) -> bool:
        """Whether `commit` would succeed; nothing may change in between."""
        weight = cast(self.weight, self.dtype) if self.changed else None
        bias = None if self.bias is None else cast(self.bias, self.dtype)
        if (self.changed and weight is None) or (self.bias is not None and bias is None):
            return False
        self.stored = weight, bias
        return True

    def commit(self) -> bool:
        """Write weight and bias back, cast to the weight's type; False (and no change) on overflow.

        A MatMul that gets its first bias becomes a Gemm where its input is a matrix, and gets an Add
        behind it elsewhere: never a Reshape-Gemm-Reshape.
        """
        if self.stored is None and not self.fits():
            return False
        assert self.stored is not None  # fits() stored it
        weight, bias = self.stored
        node, name = self.node, result_name(self.node)
        if is_op(node, "Gemm"):
            if weight is not None and attr(node, "transB", 0):
                weight = weight.T
            if attr(node, "beta", 1.0) != 1.0:
                node.attributes["beta"] = ir.AttrFloat32("beta", 1.0)
        if weight is not None:
            set_const(node, 1, weight, f"{name}.weight")
        if bias is None:
            return True
        if self.add is not None:
            split = split_const(self.add)
            assert split is not None  # that is how it was read
            set_const(self.add, split[2], bias, f"{name}.bias")
        elif self.conv or is_op(node, "Gemm"):
            set_const(node, 2, bias, f"{name}.bias")
        elif self.takes_bias:
            self._become_gemm(bias, name)
        else:
            self._append_add(bias, name)
        return True

    def _become_gemm(self, bias: Array, name: str) -> None:
        old = self.node
        gemm = ir.node("Gemm", [old.inputs[0], old.inputs[1]], name=old.name)
        substitute(old, gemm)
        self.node = gemm
        set_input(gemm, 2, add_const(graph_of(gemm), f"{name}.bias", bias))

    def _append_add(self, bias: Array, name: str) -> None:
        graph, out = graph_of(self.node), self.node.outputs[0]
        add = ir.node("Add", [None, None], name=f"{name}.bias")
        add.metadata_props.update(self.node.metadata_props)
        result = add.outputs[0]
        result.type, result.shape = out.type, out.shape
        result.name = f"{out.name}.biased"
        graph.insert_after(self.node, add)
        replace(out, result)
        add.replace_input_with(0, out)
        add.replace_input_with(1, add_const(graph, f"{name}.bias", bias))
        self.add = add


def regroup(weight: Array, groups: int, fewer: int) -> Array:
    """A Conv weight [O, I/groups, k...] as one of `fewer` groups (a divisor): [O, I/fewer, k...].

    The new places are zero.
    """
    if groups == fewer:
        return weight
    outputs, per_group, *kernel = weight.shape
    share = groups // fewer  # old groups in a new one
    wide = np.zeros((fewer, share, outputs // groups, share, per_group, *kernel))
    blocks = weight.reshape(fewer, share, outputs // groups, per_group, *kernel)
    for i in range(share):
        wide[:, i, :, i] = blocks[:, i]
    return wide.reshape(outputs, share * per_group, *kernel)


def cast(array: Array, dtype: np.dtype[np.generic]) -> Array | None:
    """`array` in `dtype`, or None where a finite number would overflow or a number is not finite."""
    with np.errstate(over="ignore"):
        result = array.astype(dtype)
    return result if bool(np.isfinite(result).all()) else None


def _at(vector: Array, ndim: int, axis: int) -> Array:
    shape = [1] * ndim
    shape[axis] = -1
    return vector.reshape(shape)


def channel_vector(array: Array, rank: int, axis: int, channels: int) -> Array | None:
    """The float64 vector [channels] that `array` is when broadcast to a value of this rank.

    None where it varies along another axis, or would broadcast the value itself.
    """
    if array.ndim > rank:
        return None
    shape = (1,) * (rank - array.ndim) + array.shape
    axis %= rank
    if any(extent != 1 for i, extent in enumerate(shape) if i != axis):
        return None
    if shape[axis] not in (1, channels):
        return None
    return np.broadcast_to(array.astype(np.float64).reshape(-1), (channels,)).copy()


def unpadded(conv: ir.Node) -> bool:
    """Whether a Conv reads no padding."""
    mode = attr(conv, "auto_pad", "NOTSET")
    return mode == "VALID" or (mode == "NOTSET" and not any(attr(conv, "pads", ())))
