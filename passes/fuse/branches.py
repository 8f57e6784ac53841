"""Convolutions as taps on one input, so that several can be laid over each other in one kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import onnx_ir as ir

from effc.core.ir import Array, add_const, attr, is_op, shape_of
from effc.passes.fuse.linear import Linear, cast, regroup


@dataclass(frozen=True, eq=False)
class Branch:
    """y = conv(x) with weight [O, I/groups, k...] (float64); one entry a spatial axis in the tuples.

    Tap t of the kernel reads x at `stride * y - begin + dilation * t`, zero outside of x. The output
    has floor((extent + slack) / stride) + 1 elements, slack = begin + end - dilation * (k - 1) - 1.
    """

    weight: Array
    bias: Array | None
    groups: int
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]
    macs: int  # per output pixel; 0 for what is no convolution in the model

    @classmethod
    def of_conv(cls, conv: ir.Node) -> Self | None:
        """The branch that a Conv with constant weights is; None where its padding is not static."""
        linear = Linear.read(conv)
        if linear is None or not is_op(conv, "Conv"):
            return None
        kernel = linear.shape[2:]
        ones = (1,) * len(kernel)
        strides, dilations = attr(conv, "strides", ones), attr(conv, "dilations", ones)
        pads = _pads(conv, kernel, strides, dilations)
        if pads is None:
            return None
        weight = linear.weight
        return cls(weight, linear.bias, linear.groups, strides, dilations, *pads, weight.size)

    @classmethod
    def identity(cls, channels: int, spatial: int) -> Self:
        """x itself, as a depthwise 1x1 convolution."""
        zeros, ones = (0,) * spatial, (1,) * spatial
        weight = np.ones((channels, 1, *ones))
        return cls(weight, None, channels, ones, ones, zeros, zeros, 0)

    @classmethod
    def of_average_pool(cls, pool: ir.Node, channels: int) -> Self | None:
        """An AveragePool as a depthwise convolution; None where it does not count its padding."""
        kernel = attr(pool, "kernel_shape")
        ones = (1,) * len(kernel)
        strides, dilations = attr(pool, "strides", ones), attr(pool, "dilations", ones)
        pads = _pads(pool, kernel, strides, dilations)
        if pads is None or attr(pool, "ceil_mode", 0):
            return None
        if any(pads[0] + pads[1]) and not attr(pool, "count_include_pad", 0):
            return None
        weight = np.full((channels, 1, *kernel), 1 / math.prod(kernel))
        return cls(weight, None, channels, strides, dilations, *pads, 0)

    @property
    def kernel(self) -> tuple[int, ...]:
        return self.weight.shape[2:]

    @property
    def inputs(self) -> int:
        return int(self.weight.shape[1]) * self.groups

    @property
    def outputs(self) -> int:
        return int(self.weight.shape[0])

    @property
    def slack(self) -> tuple[int, ...]:
        return tuple(
            b + e - d * (k - 1) - 1
            for b, e, d, k in zip(self.begins, self.ends, self.dilations, self.kernel, strict=True)
        )

    @property
    def last(self) -> tuple[int, ...]:
        """The offset of the last tap from `stride * y`."""
        return tuple(
            d * (k - 1) - b
            for b, d, k in zip(self.begins, self.dilations, self.kernel, strict=True)
        )

    def aligned(self, other: Branch, extents: Sequence[int] | None) -> bool:
        """Whether both put outputs of the same size at the same places of x (`extents`, if static).

        The numbers of output channels may differ.
        """
        if (self.strides, self.inputs) != (other.strides, other.inputs):
            return False
        if self.slack == other.slack:
            return True
        return extents is not None and all(
            (x + a) // s == (x + b) // s
            for x, a, b, s in zip(extents, self.slack, other.slack, self.strides, strict=True)
        )


def overlay(branches: Sequence[Branch], scales: Sequence[Array]) -> Branch:
    """sum_i scale_i * branch_i as one branch; all aligned, scales of shape [1] or [O]."""
    grid = _Grid.of(branches)
    groups = math.gcd(*(b.groups for b in branches))
    outputs, inputs = branches[0].outputs, branches[0].inputs
    weight = np.zeros((outputs, inputs // groups, *grid.kernel))
    bias: Array | None = None
    for branch, scale in zip(branches, scales, strict=True):
        wide = regroup(branch.weight, branch.groups, groups)
        weight[(slice(None), slice(None), *grid.places(branch))] += wide * scale.reshape(
            -1, *[1] * (wide.ndim - 1)
        )
        if branch.bias is not None:
            bias = (0 if bias is None else bias) + scale * branch.bias
    slack = tuple(max(each) for each in zip(*(b.slack for b in branches), strict=True))
    ends = tuple(s + 1 + h for s, h in zip(slack, grid.high, strict=True))
    return Branch(
        weight, bias, groups, branches[0].strides, grid.dilations,
        tuple(-low for low in grid.low), ends, weight.size,
    )  # fmt: skip


def stack(branches: Sequence[Branch]) -> Branch:
    """The outputs of dense branches (groups 1) one behind the other on the channel axis."""
    grid = _Grid.of(branches)
    outputs = sum(b.outputs for b in branches)
    weight = np.zeros((outputs, branches[0].inputs, *grid.kernel))
    bias, at = np.zeros(outputs), 0
    for branch in branches:
        rows = slice(at, at + branch.outputs)
        weight[(rows, slice(None), *grid.places(branch))] = branch.weight
        if branch.bias is not None:
            bias[rows] = branch.bias
        at += branch.outputs
    slack = tuple(max(each) for each in zip(*(b.slack for b in branches), strict=True))
    ends = tuple(s + 1 + h for s, h in zip(slack, grid.high, strict=True))
    held = bias if any(b.bias is not None for b in branches) else None
    return Branch(
        weight, held, 1, branches[0].strides, grid.dilations,
        tuple(-low for low in grid.low), ends, weight.size,
    )  # fmt: skip


def merged_macs(branches: Sequence[Branch], stacked: bool = False) -> int:
    """The multiply-accumulates per output pixel of `overlay` (or `stack`), without making it."""
    kernel = math.prod(_Grid.of(branches).kernel)
    if stacked:
        return sum(b.outputs for b in branches) * branches[0].inputs * kernel
    groups = math.gcd(*(b.groups for b in branches))
    return branches[0].outputs * (branches[0].inputs // groups) * kernel


@dataclass(frozen=True)
class _Grid:
    """The smallest dilated kernel that has a place for every tap of some branches."""

    low: tuple[int, ...]
    high: tuple[int, ...]
    dilations: tuple[int, ...]

    @classmethod
    def of(cls, branches: Sequence[Branch]) -> Self:
        low, high, dilations = [], [], []
        for axis in range(len(branches[0].kernel)):
            firsts = [-b.begins[axis] for b in branches]
            # a kernel that begins right of the origin would need negative padding
            start = min(*firsts, 0)
            steps = [f - start for f in firsts]
            steps += [b.dilations[axis] for b in branches if b.kernel[axis] > 1]
            low.append(start)
            high.append(max(*(b.last[axis] for b in branches), start))
            dilations.append(math.gcd(*steps) or 1)
        return cls(tuple(low), tuple(high), tuple(dilations))

    @property
    def kernel(self) -> tuple[int, ...]:
        return tuple(
            (h - lo) // d + 1 for lo, h, d in zip(self.low, self.high, self.dilations, strict=True)
        )

    def places(self, branch: Branch) -> tuple[slice, ...]:
        """Where the taps of `branch` lie in the kernel."""
        slices = []
        for axis, k in enumerate(branch.kernel):
            start = (-branch.begins[axis] - self.low[axis]) // self.dilations[axis]
            step = branch.dilations[axis] // self.dilations[axis] if k > 1 else 1
            slices.append(slice(start, start + step * (k - 1) + 1, step))
        return tuple(slices)


def _pads(
    node: ir.Node, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Padding before and behind each spatial axis, with auto_pad resolved where x is static."""
    n = len(kernel)
    mode = attr(node, "auto_pad", "NOTSET")
    if mode == "NOTSET":
        pads = attr(node, "pads", (0,) * (2 * n))
        return pads[:n], pads[n:]
    if mode == "VALID":
        return (0,) * n, (0,) * n
    shape = shape_of(node.inputs[0])
    if shape is None:
        return None
    total = [
        max((-(-x // s) - 1) * s + d * (k - 1) + 1 - x, 0)
        for x, k, s, d in zip(shape[2:], kernel, strides, dilations, strict=True)
    ]
    less, more = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
    return (less, more) if mode == "SAME_UPPER" else (more, less)


def make_conv(
    graph: ir.Graph,
    name: str,
    x: ir.Value,
    branch: Branch,
    bias: Array | None,
    dtype: np.dtype[np.generic],
) -> ir.Node | None:
    """A Conv node (in no graph yet) that computes `branch` of `x`; None if a weight overflows."""
    weight = cast(branch.weight, dtype)
    held = None if bias is None else cast(bias, dtype)
    if weight is None or (bias is not None and held is None):
        return None
    inputs = [x, add_const(graph, f"{name}.weight", weight)]
    if held is not None:
        inputs.append(add_const(graph, f"{name}.bias", held))
    return ir.node(
        "Conv",
        inputs,
        {
            "group": branch.groups,
            "kernel_shape": list(branch.kernel),
            "strides": list(branch.strides),
            "dilations": list(branch.dilations),
            "pads": [*branch.begins, *branch.ends],
        },
        name=name,
    )
