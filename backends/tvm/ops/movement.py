"""Rules that move data: the output's index says where the element comes from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import tirx

from effc.backends.tvm.ops.broadcast import broadcast
from effc.backends.tvm.ops.contract import Expr, Lazy, OpNode, Refused, rule

Inputs = Sequence[Lazy | None]
Index = tuple[Expr, ...]


def data(inputs: Inputs, i: int = 0) -> Lazy:
    """A required input."""
    value = inputs[i] if i < len(inputs) else None
    if value is None:
        raise Refused(f"input {i} is missing", "give the input that the operator requires")
    return value


def clamped(i: Expr, extent: int) -> Expr:
    """`i` moved into [0, extent)."""
    return tirx.min(tirx.max(i, 0), extent - 1) if not isinstance(i, int) else i


def reindex(source: Sequence[int], target: Sequence[int], index: Index) -> Index:
    """The coordinates in shape `source` of the element at `index` of shape `target`, row-major.

    Axes are matched in the smallest groups of equal size, so that axes which merely pass through cost
    no division.
    """
    result: list[Expr] = []
    a = b = 0
    while a < len(source) or b < len(target):
        left, right = a + 1, b + 1
        m = source[a] if a < len(source) else 1
        n = target[b] if b < len(target) else 1
        while m != n:
            if m < n and left < len(source):
                m, left = m * source[left], left + 1
            elif n < m and right < len(target):
                n, right = n * target[right], right + 1
            else:
                break
        left, right = min(left, len(source)), min(right, len(target))
        flat: Expr = 0
        for extent, i in zip(target[b:right], index[b:right], strict=True):
            flat = flat * extent + i if not (isinstance(flat, int) and flat == 0) else i
        group = source[a:left]
        for axis, extent in enumerate(group):
            stride = math.prod(group[axis + 1 :])
            if extent == 1:
                result.append(0)
                continue
            i = flat // stride if stride > 1 else flat
            result.append(i % extent if stride * extent < math.prod(group) else i)
        a, b = left, right
    return tuple(result)


@rule("Reshape", "Squeeze", "Unsqueeze", static=(1,), kind="map", cost=0, by_shape=True)
def _reshape(node: OpNode, inputs: Inputs) -> Lazy:
    x, source, target = data(inputs), node.input(0).shape, node.outputs[0].shape
    return lambda index: x(reindex(source, target, index))


@rule("Flatten", kind="map", cost=0)
def _flatten(node: OpNode, inputs: Inputs) -> Lazy:
    return _reshape(node, inputs)  # type: ignore[return-value]


@rule("Transpose", kind="map", cost=0)
def _transpose(node: OpNode, inputs: Inputs) -> Lazy:
    x, rank = data(inputs), len(node.input(0).shape)
    perm = node.attr("perm") or tuple(reversed(range(rank)))
    inverse = [list(perm).index(axis) for axis in range(rank)]
    return lambda index: x(tuple(index[i] for i in inverse))


@rule("Expand", static=(1,), kind="map", cost=0, by_shape=True)
def _expand(node: OpNode, inputs: Inputs) -> Lazy:
    return broadcast(data(inputs), node.input(0).shape, len(node.outputs[0].shape))


@rule("Tile", static=(1,), kind="map", cost=0, by_shape=True)
def _tile(node: OpNode, inputs: Inputs) -> Lazy:
    x, source, target = data(inputs), node.input(0).shape, node.outputs[0].shape

    def read(index: Index) -> Expr:
        return x(
            tuple(
                0 if e == 1 else (i if e == t else i % e)
                for e, t, i in zip(source, target, index, strict=True)
            )
        )

    return read


@rule("Slice", static=(1, 2, 3, 4), kind="map", cost=0)
def _slice(node: OpNode, inputs: Inputs) -> Lazy:
    x, shape = data(inputs), node.input(0).shape
    starts = node.const(1, "starts")
    if starts is None:
        starts = np.asarray(node.attr("starts"))
    axes = node.const(3, "axes")
    if axes is None:
        axes = np.asarray(node.attr("axes") or range(starts.size))
    steps = node.const(4, "steps")
    first, step = [0] * len(shape), [1] * len(shape)
    for k, axis in enumerate(int(a) % len(shape) for a in axes.reshape(-1)):
        step[axis] = int(steps.reshape(-1)[k]) if steps is not None else 1
        extent, start = shape[axis], int(starts.reshape(-1)[k])
        start = start + extent if start < 0 else start
        first[axis] = max(0, min(start, extent if step[axis] > 0 else extent - 1))
    return lambda index: x(
        tuple(f + i * s if (f or s != 1) else i for f, s, i in zip(first, step, index, strict=True))
    )


@rule("Split", static=(1,), kind="map", cost=0, by_shape=True)
def _split(node: OpNode, inputs: Inputs) -> tuple[Lazy, ...]:
    x = data(inputs)
    axis = node.attr("axis", 0) % len(node.input(0).shape)
    lazies, begin = [], 0
    for out in node.outputs:
        lazies.append(_shifted(x, axis, begin))
        begin += out.shape[axis]
    return tuple(lazies)


def _shifted(x: Lazy, axis: int, begin: int) -> Lazy:
    return lambda index: x(tuple(i + begin if a == axis else i for a, i in enumerate(index)))


@rule("Concat", kind="map", cost=2)
def _concat(node: OpNode, inputs: Inputs) -> Lazy:
    axis = node.attr("axis", 1) % len(node.outputs[0].shape)
    parts, begin = [], 0
    for k in range(len(inputs)):
        extent = node.input(k).shape[axis]
        if extent:
            parts.append((data(inputs, k), begin, extent))
            begin += extent

    def read(index: Index) -> Expr:
        def part(k: int) -> Expr:
            x, begin, extent = parts[k]
            i = clamped(index[axis] - begin, extent) if len(parts) > 1 else index[axis]
            value = x((*index[:axis], i, *index[axis + 1 :]))
            if k + 1 == len(parts):
                return value
            return tirx.if_then_else(index[axis] < begin + extent, value, part(k + 1))

        return part(0)

    return read


def _pad_source(i: Expr, n: int, mode: str) -> Expr:
    """Where coordinate `i` (maybe outside [0, n)) of a padded axis reads."""
    if mode == "edge" or n == 1:
        return clamped(i, n)
    if mode == "wrap":
        return tirx.floormod(i, n)
    period = 2 * (n - 1)
    r = tirx.floormod(i, period)
    return tirx.min(r, period - r)


@rule("Pad", static=(1, 3), kind="map", cost=2)
def _pad(node: OpNode, inputs: Inputs) -> Lazy:
    x, shape, dtype = data(inputs), node.input(0).shape, node.outputs[0].dtype
    mode = node.attr("mode", "constant")
    given = node.const(1, "pads")
    pads = np.asarray(node.attr("pads") or node.attr("paddings")) if given is None else given
    axes = node.const(3, "axes")
    used = [int(a) % len(shape) for a in axes] if axes is not None else list(range(len(shape)))
    before = [0] * len(shape)
    for k, axis in enumerate(used):
        before[axis] = int(pads.reshape(-1)[k])
    fill = inputs[2] if len(inputs) > 2 else None
    rank = len(node.input(2).shape) if fill is not None else 0
    value = node.attr("value", 0.0)

    def read(index: Index) -> Expr:
        source, inside = [], []
        for n, p, i, total in zip(shape, before, index, node.outputs[0].shape, strict=True):
            s = i - p if p else i
            if p <= 0 and total - p <= n:
                source.append(s)
                continue
            if mode != "constant":
                source.append(_pad_source(s, n, mode))
                continue
            if p > 0:
                inside.append(s >= 0)
            if total - p > n:
                inside.append(s < n)
            source.append(clamped(s, n))
        v = x(tuple(source))
        if not inside:
            return v
        blank = fill((0,) * rank) if fill is not None else literal(value, dtype)
        return tirx.if_then_else(tirx.all(*inside), v, blank)

    return read


def literal(value: Any, dtype: str) -> Expr:
    """A number as an element of `dtype` that rules see."""
    return tirx.const(value, {"bfloat16": "float32"}.get(dtype, dtype))


@rule("DepthToSpace", kind="map", cost=1)
def _depth_to_space(node: OpNode, inputs: Inputs) -> Lazy:
    x, b, out = data(inputs), node.attr("blocksize"), node.outputs[0].shape

    def read(index: Index) -> Expr:
        n, c, h, w = index
        cell = (h % b) * b + w % b
        crd = node.attr("mode", "DCR") == "CRD"
        depth = c * (b * b) + cell if crd else cell * out[1] + c
        return x((n, depth, h // b, w // b))

    return read


@rule("SpaceToDepth", kind="map", cost=1)
def _space_to_depth(node: OpNode, inputs: Inputs) -> Lazy:
    x, b, shape = data(inputs), node.attr("blocksize"), node.input(0).shape

    def read(index: Index) -> Expr:
        n, d, h, w = index
        crd = node.attr("mode", "DCR") == "CRD"
        c, cell = (d // (b * b), d % (b * b)) if crd else (d % shape[1], d // shape[1])
        return x((n, c, h * b + cell // b, w * b + cell % b))

    return read


@rule("CenterCropPad", static=(1,), kind="map", cost=2, by_shape=True)
def _center_crop_pad(node: OpNode, inputs: Inputs) -> Lazy:
    x, source, target = data(inputs), node.input(0).shape, node.outputs[0].shape

    def read(index: Index) -> Expr:
        at, inside = [], []
        for n, t, i in zip(source, target, index, strict=True):
            if t > n:
                s = i - (t - n) // 2
                inside += [s >= 0, s < n]
                at.append(clamped(s, n))
            else:
                at.append(i + (n - t) // 2 if t < n else i)
        v = x(tuple(at))
        zero = literal(0, node.outputs[0].dtype)
        return tirx.if_then_else(tirx.all(*inside), v, zero) if inside else v

    return read
