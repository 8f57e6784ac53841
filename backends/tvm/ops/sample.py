"""Rules that gather a neighbourhood of each element: LRN, GridSample, AffineGrid, Col2Im, RoPE."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from tvm import tirx

from effc.backends.tvm.ops import math as m
from effc.backends.tvm.ops.contract import Expr, Lazy, OpNode, Refused, rule
from effc.backends.tvm.ops.math import cast, const
from effc.backends.tvm.ops.movement import clamped, data
from effc.backends.tvm.ops.power import power
from effc.backends.tvm.ops.resize import _cubic
from effc.backends.tvm.tir import let

Inputs = Sequence[Lazy | None]
Index = tuple[Expr, ...]


@rule("LRN", cost=90)
def _lrn(node: OpNode, inputs: Inputs) -> Lazy:
    x, channels, size = data(inputs), node.input(0).shape[1], node.attr("size")
    alpha, beta, bias = node.attr("alpha", 1e-4), node.attr("beta", 0.75), node.attr("bias", 1.0)
    before = (size - 1) // 2

    def read(index: Index) -> Expr:
        n, c, *rest = index
        total: Expr = tirx.const(0.0, "float32")
        for k in range(-before, size - before):
            near = cast(x((n, clamped(c + k, channels) if k else c, *rest)), "float32")
            inside = tirx.all(c + k >= 0, c + k < channels)
            square = let(near, lambda v: v * v)
            total = total + tirx.Select(inside, square, tirx.const(0.0, "float32"))
        base = total * const(alpha / size, total) + const(bias, total)
        y = cast(x(index), "float32") * power(base, const(-beta, "float32"))
        dtype = node.outputs[0].dtype
        return y if dtype == "bfloat16" else cast(y, dtype)

    return read


def _named(value: Expr) -> Expr:
    """`value` computed once, here."""
    held: list[Expr] = []
    let(value, lambda v: (held.append(v), v)[1])
    return held[0]


def _reflected(x: Expr, low: float, high: float) -> Expr:
    """`x` folded back into [low, high]."""
    span = high - low
    if span <= 0:
        return const(low, x)
    d = _named(tirx.abs(x - const(low, x)))
    turns = _named(tirx.floor(d / const(span, d)))
    extra = _named(d - turns * const(span, d))
    odd = turns - tirx.floor(turns * const(0.5, d)) * const(2.0, d)
    return tirx.Select(odd > const(0.5, d), const(high, d) - extra, const(low, d) + extra)


@rule("GridSample", kind="map", cost=40)
def _grid_sample(node: OpNode, inputs: Inputs) -> Lazy:
    x, grid, shape = data(inputs), data(inputs, 1), node.input(0).shape[2:]
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(m_ := node.attr("mode", "linear"), m_)
    padding, corners = node.attr("padding_mode", "zeros"), node.attr("align_corners", 0)

    def place(g: Expr, extent: int) -> Expr:
        if corners:
            p = (g + const(1.0, g)) * const((extent - 1) / 2, g)
        else:
            p = ((g + const(1.0, g)) * const(extent, g) - const(1.0, g)) * const(0.5, g)
        if padding == "border" and mode != "cubic":
            p = m.minimum(m.maximum(p, 0.0), extent - 1.0)
        elif padding == "reflection":
            low, high = (0.0, extent - 1.0) if corners else (-0.5, extent - 0.5)
            p = _reflected(p, low, high)
            if mode != "cubic":
                p = m.minimum(m.maximum(p, 0.0), extent - 1.0)
        return _named(m.minimum(m.maximum(p, -1e6), 1e6))

    def source(at: Expr, extent: int) -> tuple[Expr, Expr]:
        """Integer coordinate inside the source, and whether `at` was inside."""
        if padding == "reflection":
            low, high = (0.0, extent - 1.0) if corners else (-0.5, extent - 0.5)
            at = m.minimum(m.maximum(_reflected(at, low, high), 0.0), extent - 1.0)
        i = _named(cast(at, "int32"))
        return clamped(i, extent), tirx.And(i >= 0, i < extent)

    def taps(p: Expr, extent: int) -> list[tuple[Expr, Expr, Expr]]:
        if mode == "nearest":
            i, inside = source(m.nearbyint(p), extent)
            return [(i, inside, const(1.0, p))]
        first, reach = _named(tirx.floor(p)), 2 if mode == "cubic" else 1
        found = []
        for k in range(1 - reach, reach + 1):
            at = first + const(k, p)
            d = _named(tirx.abs(p - at))
            w = _named(_cubic(d, -0.75) if mode == "cubic" else const(1.0, d) - d)
            i, inside = source(at, extent)
            found.append((i, inside, w))
        return found

    def read(index: Index) -> Expr:
        n, c, *out = index
        dims = len(shape)
        axes = [
            taps(place(cast(grid((n, *out, dims - 1 - k)), "float32"), e), e)
            for k, e in enumerate(shape)
        ]
        total: Any = None
        for corner in itertools.product(*axes):
            v = cast(x((n, c, *(i for i, _, _ in corner))), "float32")
            if padding == "zeros":
                inside = tirx.all(*(ok for _, ok, _ in corner))
                v = tirx.Select(inside, v, const(0.0, "float32"))
            for _, _, w in corner:
                v = v * w if mode != "nearest" else v
            total = v if total is None else total + v
        dtype = node.outputs[0].dtype
        return total if dtype == "bfloat16" else cast(total, dtype)

    return read


@rule("AffineGrid", static=(1,), kind="map", cost=12)
def _affine_grid(node: OpNode, inputs: Inputs) -> Lazy:
    theta, size = data(inputs), [int(v) for v in node.required(1, "size").reshape(-1)][2:]
    corners = node.attr("align_corners", 0)
    dtype = node.outputs[0].dtype

    def read(index: Index) -> Expr:
        n, *at, row = index
        total = cast(theta((n, row, len(size))), dtype)
        for k, (i, extent) in enumerate(zip(reversed(at), reversed(size), strict=True)):
            p = tirx.Cast(dtype, i)
            if corners:
                p = p * const(2.0 / max(extent - 1, 1), dtype) - const(1.0, dtype)
                p = p if extent > 1 else const(0.0, dtype)
            else:
                p = (p * const(2.0, dtype) + const(1.0, dtype)) / const(extent, dtype)
                p = p - const(1.0, dtype)
            total = total + cast(theta((n, row, k)), dtype) * p
        return total

    return read


@rule("Col2Im", static=(1, 2), kind="map", cost=20)
def _col2im(node: OpNode, inputs: Inputs) -> Lazy:
    x, shape = data(inputs), [int(v) for v in node.required(1, "image_shape").reshape(-1)]
    block = [int(v) for v in node.required(2, "block_shape").reshape(-1)]
    rank = len(shape)
    strides = node.attr("strides") or (1,) * rank
    dilations = node.attr("dilations") or (1,) * rank
    pads = node.attr("pads") or (0,) * (2 * rank)
    steps = [
        (s + pads[k] + pads[k + rank] - dilations[k] * (block[k] - 1) - 1) // strides[k] + 1
        for k, s in enumerate(shape)
    ]
    if math.prod(block) > 64:
        raise Refused(f"Col2Im of blocks of {math.prod(block)} elements", "use up to 64")

    def read(index: Index) -> Expr:
        n, c, *at = index
        total: Any = None
        for number, cell in enumerate(itertools.product(*(range(b) for b in block))):
            column: Expr = 0
            inside = []
            for k, i in enumerate(at):
                place = i + pads[k] - cell[k] * dilations[k]
                step = tirx.floordiv(place, strides[k])
                inside += [
                    tirx.EQ(tirx.floormod(place, strides[k]), 0),
                    step >= 0,
                    step < steps[k],
                ]
                column = column * steps[k] + clamped(step, steps[k])
            v = x((n, c * math.prod(block) + number, column))
            v = tirx.Select(tirx.all(*inside), v, const(0, v))
            total = v if total is None else total + v
        return total

    return read


@rule("RotaryEmbedding", kind="map", cost=6)
def _rotary_embedding(node: OpNode, inputs: Inputs) -> Lazy:
    x, cosine, sine = data(inputs), data(inputs, 1), data(inputs, 2)
    where = inputs[3] if len(inputs) > 3 else None
    shape = node.input(0).shape
    flat = len(shape) == 3
    size = shape[2] // node.attr("num_heads") if flat else shape[3]
    rotary = node.attr("rotary_embedding_dim", 0) or size
    half = rotary // 2

    def read(index: Index) -> Expr:
        batch = index[0]
        position, d = (index[1], index[2] % size) if flat else (index[2], index[3])
        inside = clamped(d, rotary)
        if node.attr("interleaved", 0):
            k, first = inside // 2, tirx.EQ(inside % 2, 0)
            shift = tirx.Select(first, 1, -1)
        else:
            k, first = inside % half, inside < half
            shift = tirx.Select(first, half, -half)
        shift = tirx.Select(d < rotary, shift, 0)
        partner = x((*index[:-1], index[-1] + shift))
        row: Index
        if where is not None:
            p = clamped(cast(where((batch, position)), "int32"), node.input(1).shape[0])
            row = (p, k)
        else:
            row = (batch, position, k)
        c, s = cast(cosine(row), "float32"), cast(sine(row), "float32")
        v, w = cast(x(index), "float32"), cast(partner, "float32")
        turned = v * c + tirx.Select(first, -w, w) * s
        dtype = node.outputs[0].dtype
        y = tirx.Select(d < rotary, turned, v)
        return y if dtype == "bfloat16" else cast(y, dtype)

    return read
