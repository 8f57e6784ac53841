"""Averages and maxima of windows."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from effc.backends.tvm.mcu.layouts import channels_last
from effc.backends.tvm.mcu.lowering import Lowering, Refusal, static
from effc.backends.tvm.mcu.ops.geometry import Windows
from effc.backends.tvm.mcu.ops.requantization import bounds, wanted_fixed, wanted_int8
from effc.backends.tvm.mcu.program import C_TYPES
from effc.core.ir import attr


def average_pool(low: Lowering, node: ir.Node) -> None:
    """effc.integer AveragePool and GlobalAveragePool."""
    value = node.inputs[0]
    assert value is not None
    wanted_int8(value)
    wanted_fixed(node)
    shape, out = static(value)[0], static(node.outputs[0])[0]
    spatial = shape[2:]
    order = channels_last(len(shape))
    multiplier, shift = attr(node, "multiplier")
    numbers = {"X_ZERO": attr(node, "x_zero_point"), "SHIFT": shift, **bounds(node)}
    x = low.read(value, order)
    y = low.define(node.outputs[0], order)
    kernel_shape = attr(node, "kernel_shape", spatial)
    unpadded = not any(attr(node, "pads", (0,)))
    if shape[0] == 1 and kernel_shape == spatial and unpadded and set(out[2:]) <= {1}:
        count = int(np.prod(spatial, dtype=np.int64))
        numbers |= {
            "CHANNELS": shape[1],
            "POSITIONS": count,
            "M": (multiplier + count // 2) // count,
        }
        name = f"global_average_pool_{count}x{shape[1]}"
        kernel = low.kernels.make("global_average_pool", name, numbers)
        over = {x: 0} if isinstance(x, str) else {}
        low.call(kernel, (x, y.name), y.name, nodes=[str(node.name)], op=node.op_type, ahead=over)
        return
    windows = Windows.of(node, shape, out, kernel_shape)
    counts = _counts(node, windows, bool(attr(node, "count_include_pad", 0)))
    m = (multiplier + counts // 2) // counts
    same = bool((m == m.flat[0]).all())
    numbers |= {**windows.numbers, "CHANNELS": shape[1], "COUNTED": int(not same)}
    kernel = low.kernels.make("average_pool", f"average_pool_{windows.text}", numbers)
    constant = low.constant(
        f"{node.name} m", (m.flat[:1] if same else m.reshape(-1)).astype(np.int32)
    )
    low.call(
        kernel,
        (x, constant, y.name),
        y.name,
        nodes=[str(node.name)],
        op=node.op_type,
        ahead={x: windows.ahead(1, gathered=False)} if isinstance(x, str) else {},
    )


def _counts(
    node: ir.Node, windows: Windows, include_pad: bool
) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """How many elements every window averages, int64 [OUT_H, OUT_W]."""
    rank = 1 if windows.in_h == 1 and len(attr(node, "kernel_shape")) == 1 else 2
    pads = tuple(attr(node, "pads", (0,) * 2 * rank))
    behind = (0, pads[1]) if rank == 1 else (pads[2], pads[3])
    axes = []
    w = windows
    for out, stride, before, after, taps, dilation, size in (
        (w.out_h, w.stride_h, w.pad_top, behind[0], w.kernel_h, w.dilation_h, w.in_h),
        (w.out_w, w.stride_w, w.pad_left, behind[1], w.kernel_w, w.dilation_w, w.in_w),
    ):
        least, most = (-before, size + after) if include_pad else (0, size)
        at = np.arange(out)[:, None] * stride - before + np.arange(taps) * dilation
        axes.append(((at >= least) & (at < most)).sum(1))
    counts = np.multiply.outer(axes[0], axes[1]).astype(np.int64)
    if not counts.all():
        raise Refusal("a window lies outside its input", "make its pads smaller")
    return np.asarray(counts)


def max_pool(low: Lowering, node: ir.Node) -> None:
    """MaxPool of stored integers."""
    value = node.inputs[0]
    assert value is not None
    if len([o for o in node.outputs if o.name != "" and o.uses()]) > 1:
        raise Refusal("its indices are used", "use values only")
    if attr(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise Refusal("its padding is automatic", "write its pads")
    shape, dtype = static(value)
    if dtype == "float32":
        raise Refusal("it computes reals", "build with --precision int8")
    windows = Windows.of(node, shape, static(node.outputs[0])[0], attr(node, "kernel_shape"))
    order = channels_last(len(shape))
    x = low.read(value, order)
    y = low.define(node.outputs[0], order)
    numbers = {**windows.numbers, "CHANNELS": shape[1], "LEAST": int(np.iinfo(dtype).min)}
    words = {"TYPE": C_TYPES[dtype]}
    kernel = low.kernels.make("max_pool", f"max_pool_{windows.text}", numbers, words)
    low.call(
        kernel,
        (x, y.name),
        y.name,
        nodes=[str(node.name)],
        op="MaxPool",
        ahead={x: windows.ahead(1, gathered=False)} if isinstance(x, str) else {},
    )
