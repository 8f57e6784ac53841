"""Resize and Upsample as weighted sums of a few source elements along each resized axis.

Coordinates are computed in float64 from the output's index (ONNX operator text, versions 10 to 19);
LLVM moves what doesn't depend on the lane out of the loops.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx

from effc.backends.tvm.isa import Isa
from effc.backends.tvm.layout import TensorType
from effc.backends.tvm.ops.contract import Expr, Lazy, OpNode, Refused, rule
from effc.backends.tvm.ops.math import cast, const
from effc.backends.tvm.ops.movement import clamped, data
from effc.backends.tvm.ops.resize_rows import Line, resize_rows
from effc.backends.tvm.ops.strided import evaluate
from effc.backends.tvm.program import Kernel
from effc.backends.tvm.tir import let

Tap = tuple[Expr, Expr | None]  # source coordinate, float32 weight (None: 1)


@dataclass(frozen=True, slots=True)
class _Axis:
    source: int
    target: int
    scale: float
    roi: tuple[float, float]


def _wide(value: float) -> Expr:
    return tirx.const(value, "float64")


def _coordinate(i: Expr, axis: _Axis, mode: str) -> Expr:
    """The place in the source of output coordinate `i`, float64."""
    x = tirx.Cast("float64", i)
    n, t, s = axis.source, axis.target, axis.scale
    if mode == "asymmetric":
        return x / _wide(s)
    if mode == "align_corners":
        return _wide(0) if t == 1 else x * _wide((n - 1) / (t - 1))
    if mode == "pytorch_half_pixel":
        return _wide(0) if t == 1 else _half_pixel(x, s)
    if mode == "tf_half_pixel_for_nn":
        return (x + _wide(0.5)) / _wide(s)
    if mode == "tf_crop_and_resize":
        first, last = axis.roi
        if t == 1:
            return _wide(0.5 * (first + last) * (n - 1))
        return _wide(first * (n - 1)) + x * _wide((last - first) * (n - 1) / (t - 1))
    if mode == "half_pixel_symmetric":
        adjustment = t / (s * n)
        offset = n / 2 * (1 - adjustment)
        return _wide(offset) + _half_pixel(x, s)
    if mode == "half_pixel":
        return _half_pixel(x, s)
    raise Refused(
        f"coordinate_transformation_mode {mode!r} is unknown", "use one of the ONNX modes"
    )


def _half_pixel(x: Expr, scale: float) -> Expr:
    return (x + _wide(0.5)) / _wide(scale) - _wide(0.5)


def _nearest(x: Expr, mode: str) -> Expr:
    if mode == "floor":
        y = tirx.floor(x)
    elif mode == "ceil":
        y = tirx.ceil(x)
    elif mode == "round_prefer_ceil":
        y = tirx.floor(x + _wide(0.5))
    else:
        y = tirx.ceil(x - _wide(0.5))
    return tirx.Cast("int32", y)


def _cubic(d: Expr, a: float) -> Expr:
    """Keys' kernel at distance `d` >= 0."""
    near = ((const(a + 2, d) * d - const(a + 3, d)) * d) * d + const(1, d)
    far = ((const(a, d) * d - const(5 * a, d)) * d + const(8 * a, d)) * d - const(4 * a, d)
    zero = const(0, d)
    return tirx.Select(d <= const(1, d), near, tirx.Select(d < const(2, d), far, zero))


def _taps(i: Expr, axis: _Axis, node: OpNode) -> list[Tap]:
    """The source coordinates and weights that make output coordinate `i`."""
    mode = node.attr("mode", "nearest")
    transform = node.attr("coordinate_transformation_mode", "half_pixel")
    if node.op_type == "Upsample" or not node.newer(11):
        transform = "asymmetric"
    if mode == "nearest":
        nearest = node.attr("nearest_mode", "round_prefer_floor")
        if node.op_type == "Upsample" or not node.newer(11):
            nearest = "floor"
        whole = axis.target // axis.source if axis.source else 0
        simple = axis.target == whole * axis.source and axis.scale == whole
        if simple and transform == "asymmetric" and nearest == "floor":
            return [(i // whole, None)]
        if simple and transform.startswith("half_pixel") and nearest.startswith("round_prefer"):
            return [(i // whole, None)]
        return [(clamped(_nearest(_coordinate(i, axis, transform), nearest), axis.source), None)]
    found: list[Tap] = []
    stretch = min(axis.scale, 1.0) if node.attr("antialias", 0) else 1.0
    reach = (2.0 if mode == "cubic" else 1.0) / stretch
    a = node.attr("cubic_coeff_a", -0.75)

    def place(x: Expr) -> Expr:
        first = tirx.floor(x) - _wide(math.ceil(reach) - 1)

        def gather(first: Expr) -> Expr:
            weights = []
            for k in range(2 * math.ceil(reach)):
                at = first + _wide(k)
                d = tirx.abs(x - at) * _wide(stretch)
                if mode == "cubic":
                    w = let(d, lambda d: _cubic(d, a))
                else:
                    w = let(const(1, d) - d, lambda w: tirx.Select(w > _wide(0), w, _wide(0)))
                if node.attr("exclude_outside", 0):
                    inside = tirx.And(at > _wide(-0.5), at < _wide(axis.source - 0.5))
                    w = tirx.Select(inside, w, _wide(0))
                named: list[Expr] = []
                let(w, lambda w, named=named: named.append(w) or w)  # type: ignore[misc]
                weights.append(named[0])
                found.append((clamped(cast(at, "int32"), axis.source), named[0]))
            if node.attr("exclude_outside", 0) or stretch != 1.0:
                total = weights[0]
                for w in weights[1:]:
                    total = total + w
                sums: list[Expr] = []
                let(total, lambda t: sums.append(t) or t)  # type: ignore[func-returns-value]
                found[:] = [(s, w / sums[0]) for s, w in found]
            return x

        return let(first, gather)

    let(_coordinate(i, axis, transform), place)
    return [(s, cast(w, "float32") if w is not None else None) for s, w in found]


def _axes(node: OpNode) -> list[_Axis]:
    source, target = node.input(0).shape, node.outputs[0].shape
    rank = len(source)
    at = 1 if node.op_type == "Upsample" or not node.newer(11) else 2
    scales = node.const(at, "scales") if at < len(node.inputs) else None
    if scales is None and node.attr("scales") is not None:
        scales = np.asarray(node.attr("scales"), np.float64)
    axes = [a % rank for a in (node.attr("axes") or range(rank))]
    scale = [t / s for s, t in zip(source, target, strict=True)]
    if scales is not None and scales.size:
        for axis, value in zip(axes, scales.reshape(-1), strict=True):
            scale[axis] = float(value)
            whole = abs(source[axis] * scale[axis] - target[axis]) < 1e-3
            if node.attr("coordinate_transformation_mode") == "align_corners" and not whole:
                raise Refused(
                    f"align_corners with scale {float(value)} of {source[axis]} elements: runtimes "
                    "disagree on the length that it means",
                    "give `sizes` instead of `scales`",
                )
    elif node.attr("keep_aspect_ratio_policy", "stretch") != "stretch":
        sizes = node.required(3, "sizes").reshape(-1)
        ratios = [int(s) / source[a] for a, s in zip(axes, sizes, strict=True)]
        policy = node.attr("keep_aspect_ratio_policy")
        common = min(ratios) if policy == "not_larger" else max(ratios)
        for axis in axes:
            scale[axis] = common
    roi = [(0.0, 1.0)] * rank
    if node.attr("coordinate_transformation_mode") == "tf_crop_and_resize":
        box = node.required(1, "roi").reshape(-1)
        for k, axis in enumerate(axes):
            roi[axis] = (float(box[k]), float(box[k + len(axes)]))
    return [_Axis(s, t, f, r) for s, t, f, r in zip(source, target, scale, roi, strict=True)]


@rule("Resize", static=(1, 2, 3), kind="map", cost=12)
def _resize(node: OpNode, inputs: Sequence[Lazy | None]) -> Lazy:
    x, axes = data(inputs), _axes(node)
    crop = node.attr("coordinate_transformation_mode") == "tf_crop_and_resize"
    dtype = node.outputs[0].dtype

    def read(index: tuple[Expr, ...]) -> Expr:
        moved = [k for k, a in enumerate(axes) if a.source != a.target or a.scale != 1.0 or crop]
        taps = {k: _taps(index[k], axes[k], node) for k in moved}

        def total(k: int, at: dict[int, Expr]) -> Expr:
            if k == len(moved):
                v = x(tuple(at.get(a, i) for a, i in enumerate(index)))
                weighted = any(w is not None for t in taps.values() for _, w in t)
                return cast(v, "float32") if weighted else v
            result: Any = None
            for source, weight in taps[moved[k]]:
                v = total(k + 1, {**at, moved[k]: source})
                v = v if weight is None else v * weight
                result = v if result is None else result + v
            return result

        value = total(0, {})
        if crop:
            outside = tirx.const(node.attr("extrapolation_value", 0.0), "float32")
            for k in moved:
                n = axes[k].source
                place = _coordinate(index[k], axes[k], "tf_crop_and_resize")
                value = let(
                    place,
                    lambda p, v=value, n=n: tirx.Select(  # type: ignore[misc]
                        tirx.And(p >= _wide(0), p <= _wide(n - 1)), v, cast(outside, dtype)
                    ),
                )
        if dtype.startswith(("int", "uint")) and value.ty.dtype == "float32":
            value = let(value, lambda v: tirx.floor(v + const(0.5, v)))
        return cast(value, dtype) if dtype != "bfloat16" else value

    return read


def resize_kernel(
    node: OpNode, name: str, isa: Isa, output: TensorType, operand: TensorType
) -> Kernel | None:
    """A kernel of its own for images, where that is faster than the rule."""
    images = len(output.shape) - 2 - 2 * bool(output.layout.block)  # axes but rows and columns
    if node.op_type not in ("Resize", "Upsample") or images < 0:
        return None
    mode = node.attr("mode", "nearest")
    transform = node.attr("coordinate_transformation_mode", "half_pixel")
    special = node.attr("antialias", 0) or node.attr("exclude_outside", 0)
    if special or transform == "tf_crop_and_resize" or mode == "cubic":
        return None
    if mode == "linear" and output.dtype != "float32":
        return None
    axes = _axes(node)
    if any(_moves(a) for a in axes[:-2]) or math.prod(output.shape) == 0:
        return None
    if node.op_type == "Upsample" or not node.newer(11):
        transform = "asymmetric"
    rows, columns = (_line(a, transform, node) for a in axes[-2:])
    return resize_rows(name, isa, output, operand, rows, columns)


def _moves(axis: _Axis) -> bool:
    return axis.source != axis.target or axis.scale != 1.0


def _line(axis: _Axis, transform: str, node: OpNode) -> Line:
    place = None
    if _moves(axis):
        i = tirx.Var("i", "int32")
        steps = np.arange(axis.target, dtype=np.int32)
        x = evaluate(_coordinate(i, axis, transform), [(i, steps)])
        place = np.broadcast_to(np.asarray(x, np.float64), steps.shape)
    return Line(axis.source, axis.target, lambda i: _taps(i, axis, node), place)


@rule("Upsample", static=(1,), kind="map", cost=8)
def _upsample(node: OpNode, inputs: Sequence[Lazy | None]) -> Lazy:
    return _resize(node, inputs)  # type: ignore[return-value]
