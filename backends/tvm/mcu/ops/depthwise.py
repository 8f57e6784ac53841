"""Depthwise convolutions, in place: one channel's plane at a time."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from effc.backends.tvm.mcu.lowering import Lowering
from effc.backends.tvm.mcu.ops.geometry import Windows
from effc.backends.tvm.mcu.ops.requantization import Channels
from effc.backends.tvm.mcu.program import Constant, Scratch, Tensor
from effc.core.ir import Array, attr


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
        **channels.numbers(node),
    }
    weights = low.constant(f"{node.name} w", np.ascontiguousarray(taps[..., 0]))
    kernel = low.kernels.make("depthwise", f"depthwise_{windows.text}x{multiplier}", numbers)
    low.call(
        kernel,
        (x, weights, *channels.arguments(low, node), Scratch(numbers["PLANE"]), y.name),
        y.name,
        nodes=[str(node.name)],
        op="Conv",
        macs=windows.out_h * windows.out_w * taps.size,
        ahead={x: 0} if multiplier == 1 and isinstance(x, str) else {},
    )
