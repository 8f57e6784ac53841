"""Rules whose source index is read at run time: Gather and its kind."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx

from effc.backends.tvm.ops.contract import Expr, Lazy, OpNode, rule
from effc.backends.tvm.ops.math import cast
from effc.backends.tvm.ops.movement import clamped, data
from effc.backends.tvm.tir import let

Inputs = Sequence[Lazy | None]
Index = tuple[Expr, ...]


def wrapped(i: Expr, extent: int) -> Expr:
    """A run-time index of ONNX: negative counts from the end; kept inside whatever it is."""
    i = cast(i, "int32")
    return let(i, lambda i: clamped(tirx.Select(i < 0, i + extent, i), extent))


@rule("Gather", kind="map", cost=2)
def _gather(node: OpNode, inputs: Inputs) -> Lazy:
    x, where, shape = data(inputs), data(inputs, 1), node.input(0).shape
    axis, rank = node.attr("axis", 0) % len(shape), len(node.input(1).shape)
    fixed = node.constants.get(1)

    def read(index: Index) -> Expr:
        if fixed is not None and fixed.size == 1:
            i: Expr = int(fixed.reshape(())) % shape[axis]
        else:
            i = wrapped(where(index[axis : axis + rank]), shape[axis])
        return x((*index[:axis], i, *index[axis + rank :]))

    return read


@rule("GatherElements", kind="map", cost=2)
def _gather_elements(node: OpNode, inputs: Inputs) -> Lazy:
    x, where, shape = data(inputs), data(inputs, 1), node.input(0).shape
    axis = node.attr("axis", 0) % len(shape)

    def read(index: Index) -> Expr:
        i = wrapped(where(index), shape[axis])
        return x((*index[:axis], i, *index[axis + 1 :]))

    return read


@rule("GatherND", kind="map", cost=3)
def _gather_nd(node: OpNode, inputs: Inputs) -> Lazy:
    x, where, shape = data(inputs), data(inputs, 1), node.input(0).shape
    indices, batch = node.input(1).shape, node.attr("batch_dims", 0)
    outer = len(indices) - 1

    def read(index: Index) -> Expr:
        at = tuple(
            wrapped(where((*index[:outer], k)), shape[batch + k]) for k in range(indices[-1])
        )
        return x((*index[:batch], *at, *index[outer:]))

    return read


@rule("ReverseSequence", kind="map", cost=3)
def _reverse_sequence(node: OpNode, inputs: Inputs) -> Lazy:
    x, lengths = data(inputs), data(inputs, 1)
    time, batch = node.attr("time_axis", 0), node.attr("batch_axis", 1)

    def read(index: Index) -> Expr:
        n = cast(lengths((index[batch],)), "int32")
        t = index[time]
        source = let(n, lambda n: tirx.Select(t < n, n - 1 - t, t))
        source = clamped(source, node.input(0).shape[time])
        return x(tuple(source if a == time else i for a, i in enumerate(index)))

    return read
