"""Following the axis of the channels from an operator to the linear one before or behind it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from effc.core.ir import attr, const, is_op, shape_of, sole_use
from effc.passes.fuse.linear import CONVOLUTIONS, PRODUCTS, Linear
from effc.passes.fuse.rewriting import rank_of


def find_linear(value: ir.Value | None, axis: int | None) -> Linear | None:
    """The linear operator whose channels lie on `axis` of `value`, if only reshaping stands between.

    Walks up through Transpose, Reshape, Flatten, Squeeze and Unsqueeze, all read once, as long as the
    axis survives whole; `axis` None is for a scalar, which commutes with all of them.
    """
    while value is not None and sole_use(value) is not None:
        node = value.producer()
        if node is None:
            return None
        if is_op(node, "Transpose"):
            if axis is not None:
                perm = attr(node, "perm")
                rank = rank_of(node.inputs[0])
                if perm is None and rank is None:
                    return None
                axis = perm[axis] if perm is not None else rank - 1 - axis  # type: ignore[operator]
        elif is_op(node, "Reshape", "Flatten", "Squeeze", "Unsqueeze"):
            if axis is not None:
                axis = _axis_before(shape_of(node.inputs[0]), shape_of(value), axis)
                if axis is None:
                    return None
        else:
            view = Linear.read(node)
            if view is None or (axis is not None and view.output_axis != axis):
                return None
            return view
        value = node.inputs[0]
    return None


def find_reader(value: ir.Value, axis: int) -> tuple[ir.Node, int] | None:
    """The convolution or product that alone reads `value` as its x, and where its channels then lie.

    Walks down through Transpose, reshapes that keep `axis` whole, and means over other axes: an affine
    function of the channels commutes with all of them.
    """
    while (node := sole_use(value)) is not None and node.inputs[0] is value:
        if is_op(node, *PRODUCTS, *CONVOLUTIONS):
            return node, axis
        result = node.outputs[0]
        before, after = shape_of(value), shape_of(result)
        rank = rank_of(value)
        if rank is None:
            return None
        if is_op(node, "Transpose"):
            axis = attr(node, "perm", tuple(reversed(range(rank)))).index(axis)
        elif is_op(node, "Reshape", "Flatten", "Squeeze", "Unsqueeze"):
            found = _axis_before(after, before, axis)
            if found is None:
                return None
            axis = found
        elif is_op(node, "ReduceMean"):
            axes = attr(node, "axes")
            if len(node.inputs) > 1 and node.inputs[1] is not None:
                held = const(node.inputs[1])
                axes = None if held is None else tuple(int(a) for a in held)
            if not axes or axis in (over := {a % rank for a in axes}):
                return None
            if not attr(node, "keepdims", 1):
                axis -= sum(1 for a in over if a < axis)
        elif not (is_op(node, "GlobalAveragePool") and axis == 1):
            return None
        value = result
    return None


def _axis_before(
    before: tuple[int, ...] | None, after: tuple[int, ...] | None, axis: int
) -> int | None:
    """The axis of `before` that a row-major reshape to `after` carries over whole to `axis`."""
    if before is None or after is None:
        return None
    outer = int(np.prod(after[:axis], dtype=np.int64))
    for i, extent in enumerate(before):
        if extent == after[axis] and int(np.prod(before[:i], dtype=np.int64)) == outer:
            return i
    return None
