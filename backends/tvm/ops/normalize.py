"""The normalizations: statistics of a row, then the row again while it is in cache."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import tirx

from effc.backends.tvm import tir
from effc.backends.tvm.isa import Isa
from effc.backends.tvm.kernels.epilogue import Epilogue
from effc.backends.tvm.layout import PLAIN, Layout, TensorType
from effc.backends.tvm.ops import math as m
from effc.backends.tvm.ops.contract import (
    Expr,
    OpNode,
    Refused,
    Wanted,
    kernel,
    loaded,
    operands,
    stored,
)
from effc.backends.tvm.ops.injective import nothing, parameter
from effc.backends.tvm.ops.math import cast, const
from effc.backends.tvm.ops.rows import Axis, Point, Stat, View, Walk, axes_of
from effc.backends.tvm.program import Kernel

Stmt = Any


class Rows:
    """The parameters of a kernel that normalizes input 0 into output 0."""

    def __init__(self, node: OpNode, name: str) -> None:
        self.node, self.name = node, name
        self.x, self.out = node.input(0), node.outputs[0]
        self.dtype = "float64" if self.x.dtype == "float64" else "float32"
        ins = [node.input(i) for i in operands(node)]
        self.params = (*node.outputs, *ins)
        self.buffers = [parameter(f"p{i}", t) for i, t in enumerate(self.params)]
        self.outs = self.buffers[: len(node.outputs)]
        self.ins = dict(zip(operands(node), self.buffers[len(node.outputs) :], strict=True))

    def read(self, i: int, offset: Expr) -> Expr:
        """Element `offset` of input `i`, widened."""
        tensor = self.node.input(i)
        return cast(loaded(tirx.BufferLoad(self.ins[i], [offset]), tensor.dtype), self.dtype)

    def at(self, point: Point) -> Expr:
        """The element of input 0 at a point."""
        return self.read(0, point.offset)

    def write(self, offset: Expr, value: Expr, i: int = 0) -> Stmt:
        """Store `value` to output `i`."""
        tensor: TensorType = self.node.outputs[i]
        if tensor.dtype != "bfloat16":
            value = cast(value, tensor.dtype)
        return tirx.BufferStore(self.outs[i], stored(value, tensor.dtype), [offset])

    def kernel(self, walk: Walk, body: Callable[[View], None]) -> Kernel:
        """The kernel that runs `body` for every row."""
        if self.x.elements == 0:
            return nothing(self.name, self.params, len(self.outs))
        func = tir.prim_func(self.name, self.buffers, lambda b, e: walk.run(b, e, body))
        return Kernel(self.name, func, walk.tasks, self.params, len(self.outs))

    def total(self, view: View, value: Callable[[Point], Expr]) -> Stat:
        """The sum of `value` over the row."""
        return view.reduce(self.dtype, 0, lambda a, b: a + b, value)

    def moments(self, view: View, count: int) -> tuple[Stat, Stat]:
        """Mean and (biased) variance of the row, the variance around the mean."""
        share = 1.0 / count
        sums = self.total(view, self.at)
        mean = view.scalar(self.dtype, lambda lane: sums(lane) * const(share, self.dtype))

        def square(p: Point) -> Expr:
            return m.let(self.at(p) - mean(p.lane), lambda d: d * d)

        squares = self.total(view, square)
        return mean, view.scalar(self.dtype, lambda k: squares(k) * const(share, self.dtype))


def _scale_index(rows: Rows, i: int, count: int) -> Callable[[Expr], Expr]:
    """The element of a scale or bias that belongs to position `flat` of the normalized axes."""
    elements = rows.node.input(i).elements
    if elements == count:
        return lambda flat: flat
    if elements == 1:
        return lambda flat: tirx.const(0, "int32")
    raise Refused(
        f"input {i} has {elements} elements for {count} normalized ones",
        "give scale and bias in the shape of the normalized axes",
    )


@kernel("LayerNormalization", "RMSNormalization")
def layer_normalization(node: OpNode, name: str, isa: Isa, epilogue: Epilogue) -> Kernel:
    """(x - mean) / sqrt(var + eps) * scale + bias over the axes from `axis` on; RMS: no mean."""
    rows = Rows(node, name)
    dtype, shape = rows.dtype, rows.x.shape
    axis = node.attr("axis", -1) % len(shape)
    count = math.prod(shape[axis:])
    epsilon = node.attr("epsilon", 1e-5)
    stride = count
    walk = Walk([Axis(False, math.prod(shape[:axis]), stride), Axis(True, count, 1)], isa.lanes)
    scale_at = _scale_index(rows, 1, count)
    bias_at = _scale_index(rows, 2, count) if node.has(2) else None

    def body(view: View) -> None:
        mean: Stat
        if node.op_type == "RMSNormalization":
            squares = rows.total(view, lambda p: m.let(rows.at(p), lambda v: v * v))
            mean = lambda lane: const(0, dtype)  # noqa: E731
            var = view.scalar(dtype, lambda k: squares(k) * const(1.0 / count, dtype))
        else:
            mean, var = rows.moments(view, count)
        inverse = view.scalar(
            dtype, lambda k: const(1.0, dtype) / tirx.sqrt(var(k) + const(epsilon, dtype))
        )
        for k, stat in enumerate((mean, inverse)):
            if len(rows.outs) > k + 1:
                view.finish(
                    lambda lane, k=k, stat=stat: rows.write(  # type: ignore[misc]
                        view.kept_flat(lane), stat(lane), k + 1
                    )
                )

        def normal(p: Point) -> Stmt:
            v = (rows.at(p) - mean(p.lane)) * inverse(p.lane)
            v = v * rows.read(1, scale_at(p.reduced[-1]))
            if bias_at is not None:
                v = v + rows.read(2, bias_at(p.reduced[-1]))
            return rows.write(p.offset, v)

        view.each(normal)

    return rows.kernel(walk, body)


def instance_layouts(node: OpNode, block: int) -> Wanted:
    """Input and output blocked where there are spatial axes; scale and bias plain."""
    blocked = Layout(block) if block and len(node.input(0).shape) >= 3 else PLAIN
    return Wanted((blocked, PLAIN, PLAIN), (blocked,))


@kernel("InstanceNormalization", wants=instance_layouts)
def instance_normalization(node: OpNode, name: str, isa: Isa, epilogue: Epilogue) -> Kernel:
    """Every channel of every image normalized by itself."""
    rows = Rows(node, name)
    dtype, block, channels = rows.dtype, rows.x.layout.block, rows.x.shape[1]
    shape = rows.x.layout.physical_shape(rows.x.shape)
    spatial = math.prod(rows.x.shape[2:])
    if block:
        axes = [
            Axis(False, shape[0] * shape[1], spatial * block),
            Axis(True, spatial, block),
            Axis(False, block, 1),
        ]
    else:
        axes = [Axis(False, shape[0] * shape[1], spatial), Axis(True, spatial, 1)]
    walk = Walk(axes, isa.lanes)
    epsilon = node.attr("epsilon", 1e-5)

    def body(view: View) -> None:
        mean, var = rows.moments(view, spatial)

        def channel(lane: Expr) -> Expr:
            if not block:
                return view.kept(lane)[0] % channels
            return (view.kept(lane)[0] % shape[1]) * block + view.kept(lane)[1]

        def factor(lane: Expr) -> Expr:
            root = tirx.sqrt(var(lane) + const(epsilon, dtype))
            value = rows.read(1, tirx.min(channel(lane), channels - 1)) / root
            return tirx.Select(channel(lane) < channels, value, const(0, dtype))

        def shift(lane: Expr) -> Expr:
            value = rows.read(2, tirx.min(channel(lane), channels - 1)) - mean(lane) * a(lane)
            return tirx.Select(channel(lane) < channels, value, const(0, dtype))

        a = view.scalar(dtype, factor)
        b = view.scalar(dtype, shift)
        view.each(lambda p: rows.write(p.offset, rows.at(p) * a(p.lane) + b(p.lane)))

    return rows.kernel(walk, body)


@kernel("GroupNormalization")
def group_normalization(node: OpNode, name: str, isa: Isa, epilogue: Epilogue) -> Kernel:
    """Groups of channels normalized together; scale and bias by channel (by group before opset 21)."""
    rows = Rows(node, name)
    dtype, (batch, channels, *rest) = rows.dtype, rows.x.shape
    groups, spatial = node.attr("num_groups"), math.prod(rest)
    size = channels // groups
    walk = Walk(
        [
            Axis(False, batch * groups, size * spatial),
            Axis(True, size, spatial),
            Axis(True, spatial, 1),
        ],
        isa.lanes,
    )
    by_channel = node.input(1).elements == channels
    epsilon = node.attr("epsilon", 1e-5)

    def body(view: View) -> None:
        mean, var = rows.moments(view, size * spatial)
        inverse = view.scalar(
            dtype, lambda k: const(1.0, dtype) / tirx.sqrt(var(k) + const(epsilon, dtype))
        )
        group = view.kept(0)[0] % groups

        def normal(p: Point) -> Stmt:
            at = group * size + p.reduced[0] if by_channel else group
            v = (rows.at(p) - mean(p.lane)) * inverse(p.lane)
            return rows.write(p.offset, v * rows.read(1, at) + rows.read(2, at))

        view.each(normal)

    return rows.kernel(walk, body)


@kernel("MeanVarianceNormalization")
def mean_variance_normalization(node: OpNode, name: str, isa: Isa, epilogue: Epilogue) -> Kernel:
    """(x - mean) / (standard deviation + 1e-9) over `axes`."""
    rows = Rows(node, name)
    axes = [a % len(rows.x.shape) for a in (node.attr("axes") or (0, 2, 3))]
    count = math.prod(rows.x.shape[a] for a in axes)
    walk = Walk(axes_of(rows.x.shape, axes), isa.lanes)

    def body(view: View) -> None:
        mean, var = rows.moments(view, count)
        inverse = view.scalar(
            rows.dtype,
            lambda k: const(1.0, rows.dtype) / (tirx.sqrt(var(k)) + const(1e-9, rows.dtype)),
        )
        view.each(lambda p: rows.write(p.offset, (rows.at(p) - mean(p.lane)) * inverse(p.lane)))

    return rows.kernel(walk, body)


@kernel("LpNormalization")
def lp_normalization(node: OpNode, name: str, isa: Isa, epilogue: Epilogue) -> Kernel:
    """x / its L1 or L2 norm along an axis; a zero norm gives zeros."""
    rows = Rows(node, name)
    dtype, p_norm = rows.dtype, node.attr("p", 2)
    walk = Walk(axes_of(rows.x.shape, [node.attr("axis", -1) % len(rows.x.shape)]), isa.lanes)

    def body(view: View) -> None:
        def measure(p: Point) -> Expr:
            return m.let(rows.at(p), lambda v: v * v if p_norm == 2 else tirx.abs(v))

        total = rows.total(view, measure)

        def inverted(k: Expr) -> Expr:
            norm = tirx.sqrt(total(k)) if p_norm == 2 else total(k)
            zero = tirx.EQ(total(k), const(0, dtype))
            return tirx.Select(zero, const(0, dtype), const(1.0, dtype) / norm)

        inverse = view.scalar(dtype, inverted)
        view.each(lambda p: rows.write(p.offset, rows.at(p) * inverse(p.lane)))

    return rows.kernel(walk, body)
