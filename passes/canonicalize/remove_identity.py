"""remove-identity: nodes that return what they are given go."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from effc.core.ir import Array, attr, const, graphs, is_op, replaceable, shape_of
from effc.core.passinfra import Effect, Pass, PassContext
from effc.core.rewrite import Rule, apply, bypass

# a constant that is larger is no neutral element but a weight; looking at it would load it
_MOST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class RemoveIdentity(Pass):
    """f(x) = x   ->   x

    for Identity, Dropout at inference, Cast to the type it has, CastLike (becomes Cast), Reshape,
    Expand, Transpose, Pad, Slice, Tile, Resize and pooling that change nothing, Concat, Sum, Mean, Max
    and Min of one input, Split into one output, reduction of no axis or of axes of extent 1, neutral
    elements (x * 1, x / 1, x ** 1, x - 0, x + -0.0, integer x + 0), Where on a uniform condition, a
    double Neg or Not, a second Relu, Abs, Ceil, Floor, Round or Sign, and a cast there
    and back through a wider type.

    Declines where a graph output would lose its node or its name (Identity between an input and an
    output), and at x + 0.0 in floating point: -0.0 + 0.0 is 0.0.
    """

    id: ClassVar[str] = "remove-identity"
    effect: ClassVar[Effect] = Effect.EXACT

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        return sum(apply(graph, RULES) for graph in list(graphs(model)))


def _same_shape(node: ir.Node, index: int = 0) -> bool:
    """Whether the output is known to have the shape of the input number `index`."""
    a, b = node.inputs[index], node.outputs[0]
    if a is None or a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
        return False
    return all(
        x == y and (isinstance(x, int) or x.value is not None)
        for x, y in zip(a.shape, b.shape, strict=True)
    )


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _absent(node: ir.Node, index: int) -> bool:
    return _input(node, index) is None


def _always(node: ir.Node) -> bool:
    return True


def _one_input(node: ir.Node) -> bool:
    return len(node.inputs) == 1


def _dropout(node: ir.Node) -> bool:
    training = _input(node, 2)
    mode = const(training, 16)
    if training is not None and (mode is None or bool(mode.reshape(-1)[0])):
        return False
    return not any(v.uses() or v.is_graph_output() for v in node.outputs[1:])


def _cast(node: ir.Node) -> bool:
    x = node.inputs[0]
    return x is not None and x.dtype is not None and int(x.dtype) == attr(node, "to")


def _reshape(node: ir.Node) -> bool:
    return _same_shape(node)


def _expand(node: ir.Node) -> bool:
    if _same_shape(node):
        return True
    x, target = node.inputs[0], const(_input(node, 1), 1024)
    return (
        x is not None
        and x.shape is not None
        and target is not None
        and bool((target == 1).all())
        and len(target) <= len(x.shape)
    )


def _transpose(node: ir.Node) -> bool:
    perm = attr(node, "perm")
    if perm is None:
        x = node.inputs[0]
        return x is not None and x.shape is not None and len(x.shape) <= 1
    return tuple(perm) == tuple(range(len(perm)))


def _pad(node: ir.Node) -> bool:
    pads = const(_input(node, 1), 1024)
    return pads is not None and not pads.any()


def _slice(node: ir.Node) -> bool:
    steps = _input(node, 4)
    found = const(steps, 1024)
    if steps is not None and (found is None or (found != 1).any()):
        return False
    if shape_of(node.inputs[0]) is not None and _same_shape(node):
        return True
    starts, ends = const(_input(node, 1), 1024), const(_input(node, 2), 1024)
    return (
        starts is not None
        and ends is not None
        and not starts.any()
        and bool((ends >= np.iinfo(np.int32).max).all())
    )


def _tile(node: ir.Node) -> bool:
    repeats = const(_input(node, 1), 1024)
    return repeats is not None and bool((repeats == 1).all())


def _resize(node: ir.Node) -> bool:
    if attr(node, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return False
    scales = const(_input(node, 2), 1024)
    if scales is not None and scales.size:
        return bool((scales == 1).all())
    return (
        _input(node, 3) is not None
        and shape_of(node.inputs[0]) is not None
        and _same_shape(node)
        and attr(node, "keep_aspect_ratio_policy", "stretch") == "stretch"
    )


def _pool(node: ir.Node) -> bool:
    kernel = attr(node, "kernel_shape", ())
    if any(k != 1 for k in (*kernel, *attr(node, "strides", ()))) or any(attr(node, "pads", ())):
        return False
    if attr(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID", ""):
        return False
    return not any(v.uses() or v.is_graph_output() for v in node.outputs[1:])


def _split(node: ir.Node) -> bool:
    return len(node.outputs) == 1


def _reduce(node: ir.Node) -> bool:
    axes_input = _input(node, 1)
    axes = const(axes_input, 1024)
    x = node.inputs[0]
    if axes_input is not None and axes is None:
        return False
    if axes is None or axes.size == 0:
        if attr(node, "noop_with_empty_axes", 0):
            return True
        axes = None
    shape = shape_of(x)
    if shape is None or not attr(node, "keepdims", 1):
        return False
    return all(shape[int(a)] == 1 for a in (range(len(shape)) if axes is None else axes))


def _neutral(node: ir.Node, index: int, is_neutral: Callable[[Array], bool]) -> bool:
    """Whether input `index` is a neutral constant that does not broadcast the other one."""
    value, other = _input(node, index), _input(node, 1 - index)
    if value is None or other is None:
        return False
    tensor = None if value.is_graph_input() else value.const_value
    if tensor is None or tensor.nbytes > _MOST_BYTES:
        return False
    rank = None if other.shape is None else len(other.shape)
    single = tensor.size == 1 and rank is not None and len(tensor.shape) <= rank
    if not single and not (
        shape_of(other) is not None
        and np.broadcast_shapes(tuple(tensor.shape.numpy()), shape_of(other) or ())
        == shape_of(other)
    ):
        return False
    return is_neutral(tensor.numpy())


def _ones(array: Array) -> bool:
    return bool((array == 1).all())


def _plus_zeros(array: Array) -> bool:
    if array.dtype.kind in "iu":
        return not array.any()
    return bool((array == 0).all()) and not np.signbit(array.astype(np.float64)).any()


def _minus_zeros(array: Array) -> bool:
    if array.dtype.kind in "iu":
        return not array.any()
    return bool((array == 0).all()) and bool(np.signbit(array.astype(np.float64)).all())


def _where(node: ir.Node) -> int | None:
    condition = const(node.inputs[0], _MOST_BYTES)
    if condition is None or condition.size == 0:
        return None
    if condition.all():
        index = 1
    elif not condition.any():
        index = 2
    else:
        return None
    return index if _same_shape(node, index) and shape_of(node.outputs[0]) is not None else None


def _neutral_index(node: ir.Node) -> int | None:
    """The input that a binary operator returns because the other one is neutral."""
    if node.op_type == "Mul":
        return next((1 - i for i in (0, 1) if _neutral(node, i, _ones)), None)
    if node.op_type == "Add":
        return next((1 - i for i in (0, 1) if _neutral(node, i, _minus_zeros)), None)
    if node.op_type == "Sub":
        return 0 if _neutral(node, 1, _plus_zeros) else None
    if node.op_type in ("Div", "Pow"):
        return 0 if _neutral(node, 1, _ones) else None
    return None


def _and_or(node: ir.Node) -> int | None:
    wanted = node.op_type == "And"
    return next(
        (1 - i for i in (0, 1) if _neutral(node, i, lambda a: bool((a == wanted).all()))), None
    )


_TESTS: dict[str, Callable[[ir.Node], bool]] = {
    "Identity": _always,
    "Dropout": _dropout,
    "Cast": _cast,
    "Reshape": _reshape,
    "Expand": _expand,
    "Transpose": _transpose,
    "Pad": _pad,
    "Slice": _slice,
    "Tile": _tile,
    "Resize": _resize,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "Split": _split,
    **dict.fromkeys(("Concat", "Sum", "Mean", "Max", "Min"), _one_input),
    **dict.fromkeys(("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"), _reduce),
}


class DropIdentity:
    """f(x) -> x, for one input of one node."""

    roots: ClassVar[frozenset[str]] = frozenset(
        {*_TESTS, "Mul", "Add", "Sub", "Div", "Pow", "Where", "And", "Or"}
    )

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        op = node.op_type
        test = _TESTS.get(op)
        if test is not None:
            index = 0 if test(node) else None
        elif op == "Where":
            index = _where(node)
        elif op in ("And", "Or"):
            index = _and_or(node)
        else:
            index = _neutral_index(node)
        if index is None:
            return None
        value = node.inputs[index]
        if value is None or not replaceable(node.outputs[0], value):
            return None
        if value.dtype is None or node.outputs[0].dtype not in (value.dtype, None):
            return None
        return bypass(node, value)


class DropEmptyInput:
    """Resize(x, roi = [], scales = [], sizes) -> Resize(x, , , sizes): an empty constant says nothing."""

    roots: ClassVar[frozenset[str]] = frozenset({"Resize"})

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        changed = False
        for index in (1, 2, 3):
            value = _input(node, index)
            if value is None or value.is_graph_input() or value.const_value is None:
                continue
            if value.const_value.size == 0:
                node.replace_input_with(index, None)
                changed = True
        if not changed:
            return None
        while node.inputs and node.inputs[-1] is None:
            node.resize_inputs(len(node.inputs) - 1)
        return ()


class CastLikeToCast:
    """CastLike(x, y) -> Cast<to = type of y>(x)"""

    roots: ClassVar[frozenset[str]] = frozenset({"CastLike"})

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        like = node.inputs[1]
        if like is None or like.dtype is None:
            return None
        cast = ir.node("Cast", [node.inputs[0]], {"to": int(like.dtype)}, name=node.name)
        for name in ("saturate", "round_mode"):
            if name in node.attributes:
                cast.attributes[name] = node.attributes[name]
        return _put(node, cast)


class MergeCasts:
    """Cast<T>(Cast<W>(x)) -> Cast<T>(x), where every value of x's type is one of W"""

    roots: ClassVar[frozenset[str]] = frozenset({"Cast"})

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        inner = node.inputs[0].producer() if node.inputs[0] is not None else None
        if inner is None or not is_op(inner, "Cast"):
            return None
        x, wide, to = inner.inputs[0], node.inputs[0], node.outputs[0]
        if x is None or x.dtype is None or wide is None or wide.dtype is None:
            return None
        if wide.dtype not in _EXACT.get(x.dtype, ()) or to.dtype not in _EXACT:
            return None
        again = _put(node, ir.node("Cast", [x], {"to": attr(node, "to")}, name=node.name))
        return again


_D = ir.DataType
_EXACT: dict[ir.DataType, tuple[ir.DataType, ...]] = {
    _D.FLOAT16: (_D.FLOAT, _D.DOUBLE),
    _D.BFLOAT16: (_D.FLOAT, _D.DOUBLE),
    _D.FLOAT: (_D.DOUBLE,),
    _D.DOUBLE: (),
    _D.BOOL: (_D.UINT8, _D.INT8, _D.INT32, _D.INT64, _D.FLOAT, _D.DOUBLE, _D.FLOAT16),
    _D.UINT8: (_D.UINT16, _D.INT16, _D.INT32, _D.INT64, _D.FLOAT, _D.DOUBLE),
    _D.INT8: (_D.INT16, _D.INT32, _D.INT64, _D.FLOAT, _D.DOUBLE),
    _D.INT32: (_D.INT64, _D.DOUBLE),
    _D.INT64: (),
}


class DropRepeated:
    """f(f(x)) -> f(x) where f is idempotent, -> x where f is its own inverse"""

    roots: ClassVar[frozenset[str]] = frozenset(
        {"Relu", "Abs", "Ceil", "Floor", "Round", "Sign", "Neg", "Not"}
    )

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        value = node.inputs[0]
        inner = value.producer() if value is not None else None
        if value is None or inner is None or not is_op(inner, node.op_type):
            return None
        kept = inner.inputs[0] if node.op_type in ("Neg", "Not") else value
        if kept is None or not replaceable(node.outputs[0], kept):
            return None
        return bypass(node, kept)


def _put(node: ir.Node, by: ir.Node) -> list[ir.Node] | None:
    """Insert `by` before `node` and let it take its place."""
    graph = node.graph
    if graph is None:
        return None
    graph.insert_before(node, [by])
    old, new = node.outputs[0], by.outputs[0]
    new.type, new.shape = old.type, old.shape.copy() if old.shape is not None else None
    return [by, *bypass(node, new)]


RULES: tuple[Rule, ...] = (
    DropIdentity(),
    DropEmptyInput(),
    CastLikeToCast(),
    MergeCasts(),
    DropRepeated(),
)
