"""A model of a fixed batch made one of any: what `--backend-option profile=` asks of a static model.

Every other dimension is as it was fixed: the passes have used that it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from effc.core.errors import EffcError, LoweringError
from effc.core.ir import Array, add_const, attr, const, is_op, shape_of
from effc.core.reference import OnnxRuntimeRunner, random_feeds
from effc.core.shapes import infer_shapes

_REMEDY = "leave --backend-option profile out, or build for the batch that is needed"
_LIMIT = 1e-3  # of the range: another batch may take another kernel


def open_batch(model: ir.Model, names: Iterable[str], other: int) -> ir.Model:
    """A copy of `model` whose inputs `names` have a symbolic first dimension, `batch`.

    Batch extents written into Reshape are opened with it, and constants joined to each sample are repeated.
    LoweringError where the graph depends
    on its batch in another way: shapes contradict each other at a batch of `other`, an output does not
    have the batch first, or onnxruntime's answers for a sample change with its neighbours.
    """
    opened = model.clone()
    wanted = set(names)
    inputs = [v for v in opened.graph.inputs if v.name in wanted]
    size = (shape_of(inputs[0]) or (0,))[0]
    for node in opened.graph:
        if is_op(node, "Reshape"):
            _open_reshape(opened.graph, node, size)
        elif is_op(node, "Concat") and size == 1:
            _open_concat(opened.graph, node, inputs[0])
    at_other = opened.clone()
    for made, extent in ((at_other, other), (opened, "batch")):
        for value in made.graph.inputs:
            if value.name in wanted and value.shape is not None:
                value.shape = ir.Shape([extent, *list(value.shape)[1:]])
        _forget(made)
        try:
            infer_shapes(made)
        except EffcError as error:
            raise LoweringError(
                f"the model can't have another batch than {size}: {error}", hint=_REMEDY
            ) from error
    for value in at_other.graph.outputs:
        if (shape_of(value) or (0,))[0] != other:
            raise LoweringError(
                f"the model can't have another batch than {size}: its output {value.name!r} would be"
                f" {value.shape}",
                hint=_REMEDY,
            )
    _compare(model, at_other, wanted, size, other)
    return opened


def _open_reshape(graph: ir.Graph, node: ir.Node, size: int) -> None:
    """Let the first dimension of the result follow from the input."""
    target = const(node.inputs[1])
    before, after = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    if target is None or not before or not after or attr(node, "allowzero", 0) or not target.size:
        return
    if (target < 0).any():
        if before[0] != target[0] or before[0] != size or target[0] < 0:
            return  # it follows already
        opened = np.array([0, *target[1:]], np.int64)
    else:
        if after[0] % size:
            return
        opened = np.array([-1, *after[1:]], np.int64)
    node.replace_input_with(1, add_const(graph, f"{node.name}/batch", opened))


def _open_concat(graph: ir.Graph, node: ir.Node, fed: ir.Value) -> None:
    """Repeat constants that are joined to every sample, such as a class token, for each of the batch."""
    rank = len(node.outputs[0].shape or ())
    arrays = [const(v) for v in node.inputs]
    if not rank or attr(node, "axis", 0) % rank == 0 or all(a is not None for a in arrays):
        return
    for index, array in enumerate(arrays):
        if array is None or array.shape[0] != 1:
            continue
        name = f"{node.name}/batch{index}"
        rest = add_const(graph, f"{name}/rest", np.array(array.shape[1:], np.int64))
        count = ir.node("Shape", [fed], {"start": 0, "end": 1}, name=f"{name}/count")
        shape = ir.node("Concat", [count.outputs[0], rest], {"axis": 0}, name=f"{name}/shape")
        repeated = ir.node("Expand", [node.inputs[index], shape.outputs[0]], name=name)
        for made, kind in (
            (count, ir.DataType.INT64), (shape, ir.DataType.INT64), (repeated, node.outputs[0].dtype),
        ):  # fmt: skip
            made.outputs[0].name = f"{made.name}/out"
            made.outputs[0].type = ir.TensorType(kind) if kind is not None else None
        graph.insert_before(node, [count, shape, repeated])
        node.replace_input_with(index, repeated.outputs[0])


def _forget(model: ir.Model) -> None:
    for node in model.graph:
        for value in node.outputs:
            value.shape = None


def _compare(fixed: ir.Model, opened: ir.Model, names: set[str], size: int, other: int) -> None:
    """Samples have the same answers in both batches; bfloat16, which onnxruntime lacks, is not run."""
    if any(v.dtype == ir.DataType.BFLOAT16 for n in fixed.graph for v in n.outputs):
        return
    (feeds,) = random_feeds(opened, 1, seed=3)
    with OnnxRuntimeRunner(opened, optimize=False) as runner:
        together = runner.infer(feeds)
    with OnnxRuntimeRunner(fixed, optimize=False) as runner:
        for begin in range(0, other - size + 1, size):
            part = {n: a[begin : begin + size] if n in names else a for n, a in feeds.items()}
            _hold(runner.infer(part), together, begin, size)


def _hold(alone: Mapping[str, Array], together: Mapping[str, Array], begin: int, size: int) -> None:
    for name, array in alone.items():
        there = together[name][begin : begin + size].astype(np.float64)
        limit = _LIMIT * max(float(np.abs(array).max(initial=0)), 1e-6)
        if not np.abs(there - array).max(initial=0) <= limit:
            raise LoweringError(
                f"the model can't have another batch than {size}: output {name!r} of a sample depends on"
                " the others",
                hint=_REMEDY,
            )
