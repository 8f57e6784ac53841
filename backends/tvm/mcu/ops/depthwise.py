"""Depthwise convolutions, in place: one channel's plane at a time."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from effc.backends.tvm.mcu.lowering import Lowering
from effc.backends.tvm.mcu.ops.depthwise_dsp import PairedRows
from effc.backends.tvm.mcu.ops.geometry import Windows
from effc.backends.tvm.mcu.ops.requantization import Channels, bounds
from effc.backends.tvm.mcu.program import Constant, Scratch, Tensor
from effc.backends.tvm.mcu.templates import template
from effc.core.ir import Array, attr

_MOST_TAPS = 49  # unrolled: larger windows go through loops


def depthwise(
    low: Lowering,
    node: ir.Node,
    x: str | Constant,
    y: Tensor,
    windows: Windows,
    taps: Array,
    channels: Channels,
) -> None:
    """A convolution of every channel by itself; `taps` int8 [OC, KH, KW, 1]."""
    multiplier = windows.out_c // windows.in_c
    rows = (windows.out_h - 1) * windows.stride_h + (windows.kernel_h - 1) * windows.dilation_h + 1
    row = (windows.out_w - 1) * windows.stride_w + (windows.kernel_w - 1) * windows.dilation_w + 1
    numbers = {
        **windows.numbers,
        "CHANNELS": windows.in_c,
        "MULTIPLIER": multiplier,
        "X_ZERO": attr(node, "x_zero_point"),
        "ROW": row,
        "PLANE": rows * row,
        "COPY_H": min(windows.in_h, rows - windows.pad_top),
        "COPY_W": min(windows.in_w, row - windows.pad_left),
        **bounds(node),
    }
    paired = (
        low.core.dsp
        and multiplier == 1
        and windows.dilation_h == windows.dilation_w == 1
        and windows.stride_w <= 2
        and windows.kernel_h * windows.kernel_w <= _MOST_TAPS
    )
    if paired:
        _paired(low, node, x, y, windows, taps, channels, numbers)
        return
    weights = low.constant(f"{node.name} w", np.ascontiguousarray(taps[..., 0]))
    text = channels.expand(template("depthwise.c"))
    name = f"depthwise_{windows.text}x{multiplier}"
    kernel = low.kernels.made(text, name, numbers, channels.words)
    low.call(
        kernel,
        (x, weights, *channels.arguments(low, node), Scratch(numbers["PLANE"]), y.name),
        y.name,
        nodes=[str(node.name)],
        op="Conv",
        macs=windows.out_h * windows.out_w * taps.size,
        ahead={x: 0} if multiplier == 1 and isinstance(x, str) else {},
    )


def _paired(
    low: Lowering,
    node: ir.Node,
    x: str | Constant,
    y: Tensor,
    windows: Windows,
    taps: Array,
    channels: Channels,
    numbers: dict[str, int],
) -> None:
    """With ARM's products of halves, two outputs at a time."""
    inner = PairedRows.of(windows)
    rows = (windows.out_h - 1) * windows.stride_h + windows.kernel_h
    # the second output of the last pair may lie behind the row, its bytes in the next one
    last = (windows.out_w - 1) // 2 * 2 * windows.stride_w + inner.reach
    plane = (rows - 1) * numbers["ROW"] + max(numbers["ROW"], last)
    numbers = {**numbers, "PLANE": plane, "WORDS": len(inner.halves)}
    del numbers["MULTIPLIER"], numbers["DILATION_H"], numbers["DILATION_W"]
    words = {"WEIGHTS": inner.declarations, "PRODUCTS": inner.text, **channels.words}
    text = channels.expand(template("depthwise_dsp.c"))
    kernel = low.kernels.made(text, f"depthwise_{windows.text}", numbers, words)
    weights = low.constant(f"{node.name} w", inner.packed(taps[..., 0]))
    low.call(
        kernel,
        (x, weights, *channels.arguments(low, node), Scratch(plane), y.name),
        y.name,
        nodes=[str(node.name)],
        op="Conv",
        macs=windows.out_h * windows.out_w * taps.size,
        ahead={x: 0} if isinstance(x, str) else {},
    )
