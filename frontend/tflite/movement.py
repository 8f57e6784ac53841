"""Operators that move elements: shapes, slices, concatenations, padding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from effc.core.errors import FrontendError
from effc.frontend.tflite.graph import (
    AXIS_IN_NCHW,
    NATIVE,
    NCHW,
    Graph,
    Unsupported,
    elements,
)
from effc.frontend.tflite.read import DAMAGED, Operator
from effc.frontend.tflite.windows import activation

Converter = Callable[[Graph, Operator], None]
_FAR = (1 << 31) - 1
_MAX_MIRRORED = 1 << 16  # of one axis, whose indices are written out


def _reshape(g: Graph, operator: Operator) -> None:
    """RESHAPE, SQUEEZE and EXPAND_DIMS: the output's own shape says it all."""
    x, o = operator.input(0), operator.output()
    if elements(g.shape(x)) != elements(g.shape(o)):
        raise FrontendError(
            f"{operator.place} makes {list(g.shape(o))} of {list(g.shape(x))}", hint=DAMAGED
        )
    layout = NATIVE
    if g.has_nchw(x):
        _, h, w, c = g.shape(x)
        if h * w == 1 or c == 1:  # both layouts have the same bytes
            layout = NCHW
    g.move(x, o, lambda v: g.reshape(v, g.shape(o)), layout, NATIVE)


def _transpose(g: Graph, operator: Operator) -> None:
    x, o = operator.input(0), operator.output()
    order = g.ints(operator, 1)
    if sorted(order) != list(range(g.rank(x))):
        raise FrontendError(f"{operator.place} has the order {order}", hint=DAMAGED)
    layout = NATIVE
    if g.has_nchw(x):
        layout, order = NCHW, [AXIS_IN_NCHW[k] for k in order]
    if order == sorted(order):
        g.move(x, o, lambda v: g.emit("Identity", v), layout, NATIVE)
    else:
        g.move(x, o, lambda v: g.emit("Transpose", v, perm=order), layout, NATIVE)


def _concatenation(g: Graph, operator: Operator) -> None:
    o = operator.output()
    indices = [operator.input(k) for k in range(len(operator.inputs))]
    axis = g.axis(operator, operator.options.get("Axis", 0), g.rank(o))
    layout = g.layout(*indices)
    if layout == NCHW:
        axis = AXIS_IN_NCHW[axis]
    fused = activation(operator)
    if fused == "NONE" and all(g.same_quantization(i, o) for i in indices):
        g.put(o, g.emit("Concat", *(g.stored(i, layout) for i in indices), axis=axis), layout)
    else:
        y = g.emit("Concat", *(g.real(i, layout) for i in indices), axis=axis)
        g.put_real(o, y, layout, fused)


def _pack(g: Graph, operator: Operator) -> None:
    o = operator.output()
    indices = [operator.input(k) for k in range(len(operator.inputs))]
    axis = g.axis(operator, operator.options.get("Axis", 0), g.rank(o))
    same = all(g.same_quantization(i, o) for i in indices)
    values = [
        g.emit("Unsqueeze", g.stored(i) if same else g.real(i), g.int64(axis)) for i in indices
    ]
    y = g.emit("Concat", *values, axis=axis)
    if same:
        g.put(o, y)
    else:
        g.put_real(o, y)


def _split(g: Graph, operator: Operator, x: int, axis: int, sizes: list[int]) -> None:
    if len(sizes) != len(operator.outputs) or sum(sizes) != g.shape(x)[axis] or min(sizes) < 0:
        raise FrontendError(
            f"{operator.place} splits {g.shape(x)[axis]} into {sizes[:9]} for "
            f"{len(operator.outputs)} outputs",
            hint=DAMAGED,
        )
    layout = g.layout(x)
    where = AXIS_IN_NCHW[axis] if layout == NCHW else axis
    parts = g.emit_many(len(sizes), "Split", g.stored(x, layout), g.int64(*sizes), axis=where)
    for o, part in zip(operator.outputs, parts, strict=True):
        _copied(g, operator, x, o)
        g.put(o, part, layout)


def _copied(g: Graph, operator: Operator, x: int, o: int) -> None:
    if not g.same_quantization(x, o):
        raise Unsupported("its outputs have another quantization than its input")


def _split_even(g: Graph, operator: Operator) -> None:
    # the axis comes first
    x, count = operator.input(1), len(operator.outputs)
    axis = g.one_int(operator, 0)
    axis = g.axis(operator, axis, g.rank(x))
    size = g.shape(x)[axis]
    _split(g, operator, x, axis, [size // max(count, 1)] * count)


def _split_v(g: Graph, operator: Operator) -> None:
    x, sizes = operator.input(0), g.ints(operator, 1)
    axis = g.one_int(operator, 2)
    axis = g.axis(operator, axis, g.rank(x))
    if sizes.count(-1) == 1:
        sizes[sizes.index(-1)] = g.shape(x)[axis] - sum(sizes) - 1
    _split(g, operator, x, axis, sizes)


def _unpack(g: Graph, operator: Operator) -> None:
    x = operator.input(0)
    axis = g.axis(operator, operator.options.get("Axis", 0), g.rank(x))
    count = g.shape(x)[axis]
    if count != len(operator.outputs):
        raise FrontendError(
            f"{operator.place} unpacks {count} into {len(operator.outputs)}", hint=DAMAGED
        )
    parts = g.emit_many(count, "Split", g.stored(x), g.int64(*[1] * count), axis=axis)
    for o, part in zip(operator.outputs, parts, strict=True):
        _copied(g, operator, x, o)
        g.put(o, g.emit("Squeeze", part, g.int64(axis)))


def _cut(
    g: Graph, operator: Operator, begin: list[int], end: list[int], step: list[int]
) -> Callable[[ir.Value], ir.Value]:
    axes = [
        k
        for k, size in enumerate(g.shape(operator.input(0)))
        if (begin[k], step[k]) != (0, 1) or end[k] < size
    ]

    def build(value: ir.Value) -> ir.Value:
        if not axes:
            return g.emit("Identity", value)
        return g.emit(
            "Slice",
            value,
            g.int64(*(begin[k] for k in axes)),
            g.int64(*(end[k] for k in axes)),
            g.int64(*axes),
            g.int64(*(step[k] for k in axes)),
        )

    return build


def _slice(g: Graph, operator: Operator) -> None:
    x, o = operator.input(0), operator.output()
    begin, size = g.ints(operator, 1), g.ints(operator, 2)
    shape = g.shape(x)
    if len(begin) != len(shape) or len(size) != len(shape):
        raise FrontendError(f"{operator.place}: begin {begin[:9]}, size {size[:9]}", hint=DAMAGED)
    end = [d if s == -1 else b + s for b, s, d in zip(begin, size, shape, strict=True)]
    if any(not 0 <= b <= e <= d for b, e, d in zip(begin, end, shape, strict=True)):
        raise FrontendError(
            f"{operator.place} takes {begin} to {end} of {list(shape)}", hint=DAMAGED
        )
    g.move(x, o, _cut(g, operator, begin, end, [1] * len(shape)))


def _strided_slice(g: Graph, operator: Operator) -> None:
    """Source: strided_slice_logic.h; the masks have one bit an axis."""
    x, o = operator.input(0), operator.output()
    options, shape = operator.options, g.shape(x)
    if options.get("EllipsisMask", 0) or options.get("NewAxisMask", 0):
        raise Unsupported("it inserts axes", "write the slice without ... and newaxis")
    given = [g.ints(operator, k) for k in (1, 2, 3)]
    if len({len(v) for v in given}) != 1 or len(given[0]) > len(shape):
        raise FrontendError(f"{operator.place} has indices of several lengths", hint=DAMAGED)
    begin, end, step = [0] * len(shape), list(shape), [1] * len(shape)
    for k, (b, e, s) in enumerate(zip(*given, strict=True)):
        if s == 0:
            raise FrontendError(f"{operator.place} has a stride of 0", hint=DAMAGED)
        if options.get("ShrinkAxisMask", 0) >> k & 1:
            b = b + shape[k] if b < 0 else b
            begin[k], end[k] = b, b + 1
            continue
        if options.get("Offset", False):
            e += b
        begin[k] = (0 if s > 0 else _FAR) if options.get("BeginMask", 0) >> k & 1 else b
        end[k] = (_FAR if s > 0 else -_FAR) if options.get("EndMask", 0) >> k & 1 else e
        step[k] = s
    cut = _cut(g, operator, begin, end, step)
    shrinks = bool(options.get("ShrinkAxisMask", 0))
    g.move(x, o, lambda v: g.reshape(cut(v), g.shape(o)) if shrinks else cut(v))


def _gather(g: Graph, operator: Operator) -> None:
    x, o = operator.input(0), operator.output()
    if operator.options.get("BatchDims", 0):
        raise Unsupported("it gathers with batch dimensions", "use tf.gather without batch_dims")
    axis = g.axis(operator, operator.options.get("Axis", 0), g.rank(x))
    indices = g.stored(operator.input(1))
    g.move(x, o, lambda v: g.emit("Gather", v, indices, axis=axis))


def _gather_nd(g: Graph, operator: Operator) -> None:
    indices = g.emit("Cast", g.stored(operator.input(1)), to=ir.DataType.INT64)
    g.move(operator.input(0), operator.output(), lambda v: g.emit("GatherND", v, indices))


def _pad(g: Graph, operator: Operator) -> None:
    x, o = operator.input(0), operator.output()
    edges = _edges(g, operator, x)
    layout = g.layout(x)
    order = [0, 3, 1, 2] if layout == NCHW else list(range(g.rank(x)))
    amounts = g.int64(*(edges[2 * k] for k in order), *(edges[2 * k + 1] for k in order))
    fill = operator.optional(2)
    value = g.reshape(g.real(fill), ()) if fill is not None else None
    g.put_real(o, g.emit("Pad", g.real(x, layout), amounts, value), layout)


def _mirror_pad(g: Graph, operator: Operator) -> None:
    x, o = operator.input(0), operator.output()
    edges = _edges(g, operator, x)
    repeats = operator.options.get("Mode", 0) == 1  # SYMMETRIC repeats the border, REFLECT does not
    for k, size in enumerate(g.shape(x)):
        before, behind = edges[2 * k : 2 * k + 2]
        if before or behind:
            most = size if repeats else size - 1
            if max(before, behind) > most or size + before + behind > _MAX_MIRRORED:
                raise FrontendError(
                    f"{operator.place} pads {list(g.shape(x))} by {edges}", hint=DAMAGED
                )
    layout = g.layout(x)

    def build(value: ir.Value) -> ir.Value:
        for k, size in enumerate(g.shape(x)):
            if any(edges[2 * k : 2 * k + 2]):
                mode = "symmetric" if repeats else "reflect"
                index = np.pad(np.arange(size), edges[2 * k : 2 * k + 2], mode=mode)  # type: ignore[call-overload]
                axis = AXIS_IN_NCHW[k] if layout == NCHW else k
                value = g.emit("Gather", value, g.int64(*map(int, index)), axis=axis)
        return value

    g.move(x, o, build, layout)


def _edges(g: Graph, operator: Operator, x: int) -> list[int]:
    edges = g.ints(operator, 1)
    if len(edges) != 2 * g.rank(x) or min(edges, default=0) < 0:
        raise FrontendError(f"{operator.place} pads by {edges[:16]}", hint=DAMAGED)
    return edges


def _tile(g: Graph, operator: Operator) -> None:
    times = g.int64(*g.ints(operator, 1))
    g.move(operator.input(0), operator.output(), lambda v: g.emit("Tile", v, times))


def _broadcast_to(g: Graph, operator: Operator) -> None:
    shape = g.int64(*g.ints(operator, 1))
    g.move(operator.input(0), operator.output(), lambda v: g.emit("Expand", v, shape))


def _fill(g: Graph, operator: Operator) -> None:
    shape = g.int64(*g.ints(operator, 0))
    g.move(operator.input(1), operator.output(), lambda v: g.emit("Expand", v, shape))


def _shape(g: Graph, operator: Operator) -> None:
    o = operator.output()
    dtype = g.tensors[o].dtype
    if dtype is None:
        raise Unsupported(f"its output is of type {g.tensors[o].type_name}")
    shape = g.shape(operator.input(0))
    g.put_const(o, np.array(len(shape) if operator.op == "RANK" else shape, dtype))


def _reverse(g: Graph, operator: Operator) -> None:
    x = operator.input(0)
    axes = g.axes(operator, 1, g.rank(x))

    def build(value: ir.Value) -> ir.Value:
        n = len(axes)
        return g.emit(
            "Slice",
            value,
            g.int64(*[-1] * n),
            g.int64(*[-_FAR] * n),
            g.int64(*axes),
            g.int64(*[-1] * n),
        )

    g.move(x, operator.output(), build)


CONVERTERS: dict[str, Converter] = {
    "RESHAPE": _reshape,
    "SQUEEZE": _reshape,
    "EXPAND_DIMS": _reshape,
    "TRANSPOSE": _transpose,
    "CONCATENATION": _concatenation,
    "PACK": _pack,
    "UNPACK": _unpack,
    "SPLIT": _split_even,
    "SPLIT_V": _split_v,
    "SLICE": _slice,
    "STRIDED_SLICE": _strided_slice,
    "GATHER": _gather,
    "GATHER_ND": _gather_nd,
    "PAD": _pad,
    "PADV2": _pad,
    "MIRROR_PAD": _mirror_pad,
    "TILE": _tile,
    "BROADCAST_TO": _broadcast_to,
    "FILL": _fill,
    "SHAPE": _shape,
    "RANK": _shape,
    "REVERSE_V2": _reverse,
}
