"""Sums of products: convolutions and matrix products of integers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from effc.backends.tvm.mcu.layouts import channels_last, row_major
from effc.backends.tvm.mcu.lowering import Lowering, Refusal, static
from effc.backends.tvm.mcu.ops.depthwise import depthwise
from effc.backends.tvm.mcu.ops.geometry import Windows
from effc.backends.tvm.mcu.ops.requantization import Channels, bounds, wanted_int8
from effc.backends.tvm.mcu.program import Argument, Constant, Scratch
from effc.backends.tvm.mcu.templates import template
from effc.core.ir import Array, attr, const


@dataclass(frozen=True, slots=True)
class _Residual:
    """The other branch of a fused addition, as words of the templates."""

    argument: Argument | None

    def numbers(self, node: ir.Node) -> dict[str, int]:
        if self.argument is None:
            return {}
        multiplier, shift = attr(node, "z_multiplier")
        return {"Z_ZERO": attr(node, "z_zero_point"), "Z_M": multiplier, "Z_SHIFT": shift}

    @property
    def given(self) -> bool:
        return self.argument is not None

    def put(self, channels: Channels) -> str:
        """What becomes of the sum `acc` of channel n."""
        if not self.given:
            return "REQUANTIZE(acc, m[n], shift[n])"
        shift = str(channels.shift[0]) if channels.common else "shift[n]"
        return f"effc_requantize_sum(acc, m[n], {shift}, z[n] - Z_ZERO, Z_M, Z_SHIFT, Y_ZERO, LOW, HIGH)"

    def words(self, channels: Channels) -> dict[str, str]:
        rows = "const int8_t *z0 = z + p * OUT_C, *z1 = z0 + second * OUT_C;"
        return {
            "Z_NEXT": "z += OUT_C;" if self.given else "",
            "Z_PARAMETER": "const int8_t *z," if self.given else "",
            "Z_ROWS": rows if self.given else "",
            **channels.words,
        }

    def expand(self, text: str, channels: Channels) -> str:
        """The text of a template with its inner product and its stores."""
        lines = []
        for line in text.replace("    MULTIPLY\n", template("multiply_dsp.c")).splitlines():
            stripped = line.strip()
            if stripped.startswith("PUT("):
                y, z, n, acc, *by = stripped[4:-1].split(", ")
                put = self.put(channels).replace("acc", acc).replace("z[", f"{z}[")
                put = put.replace("m[n]", by[0]) if by else put
                stripped = f"{y}[n] = (int8_t){put};".replace("[n]", f"[{n}]")
                line = line[: len(line) - len(line.lstrip())] + stripped
            lines.append(line)
        return channels.expand("\n".join(lines))


def conv(low: Lowering, node: ir.Node) -> None:
    """effc.integer Conv."""
    value, weight = node.inputs[0], const(node.inputs[1])
    if value is None or weight is None:
        raise Refusal("its weight is computed", "microcontrollers convolve with constants")
    wanted_int8(value)
    shape, (out, dtype) = static(value)[0], static(node.outputs[0])
    windows = Windows.of(node, shape, out, weight.shape[2:])
    groups = attr(node, "group", 1)
    taps = weight.reshape(*weight.shape[:2], windows.kernel_h, windows.kernel_w)
    taps = taps.transpose(0, 2, 3, 1)  # [OC, KH, KW, C/g]
    channels = Channels.of(node, taps, dtype)
    order = channels_last(len(shape))
    x = low.read(value, order)
    if dtype == "float32":
        _to_float(low, node, x, windows, taps, groups, channels)
        return
    residual = _residual(low, node, order)
    if not residual.given:
        channels, taps = channels.constant(node, taps)
    y = low.define(node.outputs[0], order)
    if groups == windows.in_c > 1 and residual.argument is None:
        depthwise(low, node, x, y, windows, taps, channels)
    elif groups == 1 and windows.pointwise:
        _rows(low, node, x, y.name, windows.out_h * windows.out_w, taps, channels, residual)
    else:
        _windows(low, node, x, y.name, windows, taps, groups, channels, residual)


def matmul(low: Lowering, node: ir.Node) -> None:
    """effc.integer MatMul with a constant of two axes."""
    value, weight = node.inputs[0], const(node.inputs[1])
    if value is None or weight is None or weight.ndim != 2:
        raise Refusal(
            "it multiplies two computed tensors", "microcontrollers multiply with constant matrices"
        )
    wanted_int8(value)
    shape, (out, dtype) = static(value)[0], static(node.outputs[0])
    centred = weight.astype(np.int64).T - attr(node, "w_zero_point", 0)
    if np.abs(centred).max(initial=0) > 128 or centred.max(initial=0) > 127:
        raise Refusal("its weights around their zero point are no int8", "quantize them symmetric")
    taps = centred.astype(np.int8)[:, None, None, :]
    channels = Channels.of(node, taps, dtype)
    order = row_major(len(shape))
    x = low.read(value, order)
    rows = int(np.prod(shape[:-1], dtype=np.int64))
    if dtype == "float32":
        flat = Windows(1, rows, shape[-1], 1, rows, out[-1], 1, 1, 1, 1, 0, 0, 1, 1)
        _to_float(low, node, x, flat, taps, 1, channels)
        return
    residual = _residual(low, node, row_major(len(out)))
    if not residual.given:
        channels, taps = channels.constant(node, taps)
    y = low.define(node.outputs[0], row_major(len(out)))
    _rows(low, node, x, y.name, rows, taps, channels, residual)


def conv_transpose(low: Lowering, node: ir.Node) -> None:
    """effc.integer ConvTranspose."""
    value, weight = node.inputs[0], const(node.inputs[1])
    if value is None or weight is None:
        raise Refusal("its weight is computed", "microcontrollers convolve with constants")
    wanted_int8(value)
    shape, (out, dtype) = static(value)[0], static(node.outputs[0])
    if dtype == "float32":
        raise Refusal("its result is real", "quantize its output")
    windows = Windows.of(node, shape, out, weight.shape[2:])
    groups = attr(node, "group", 1)
    depth = shape[1] // groups
    taps = weight.reshape(groups, depth, -1, windows.kernel_h, windows.kernel_w)
    taps = taps.transpose(0, 2, 3, 4, 1).reshape(out[1], windows.kernel_h, windows.kernel_w, depth)
    channels = Channels.of(node, taps, dtype, fold=False)
    order = channels_last(len(shape))
    x = low.read(value, order)
    y = low.define(node.outputs[0], order)
    numbers = {
        **windows.numbers,
        "IN_C": shape[1],
        "OUT_C": out[1],
        "GROUPS": groups,
        "DEPTH": depth,
        "X_ZERO": attr(node, "x_zero_point"),
        **bounds(node),
    }
    text = channels.expand(template("conv_transpose.c"))
    kernel = low.kernels.made(
        text, f"conv_transpose_{windows.text}_{out[1]}", numbers, channels.words
    )
    arguments = (x, low.constant(f"{node.name} w", taps), *channels.arguments(low, node), y.name)
    macs = shape[2] * (shape[3] if len(shape) > 3 else 1) * weight.size
    low.call(kernel, arguments, y.name, nodes=[str(node.name)], op="ConvTranspose", macs=macs)


def _residual(low: Lowering, node: ir.Node, order: tuple[int, ...]) -> _Residual:
    value = node.inputs[4] if len(node.inputs) > 4 else None
    if value is None:
        return _Residual(None)
    wanted_int8(value)
    return _Residual(low.read(value, order))


def _rows(
    low: Lowering,
    node: ir.Node,
    x: str | Constant,
    y: str,
    rows: int,
    taps: Array,
    channels: Channels,
    residual: _Residual,
) -> None:
    depth, out = taps.shape[-1] * taps.shape[1] * taps.shape[2], taps.shape[0]
    numbers = {"ROWS": rows, "TAPS": depth, "OUT_C": out}
    numbers |= bounds(node) | residual.numbers(node)
    flat = Windows(1, rows, depth, 1, rows, out, 1, 1, 1, 1, 0, 0, 1, 1)
    tail = channels.arguments(low, node, residual=residual.given)
    name = f"{rows}_{depth}_{out}"
    if low.core.dsp:
        source = "rows_dsp" if rows > 1 else "dense_dsp"
        text = residual.expand(template(f"{source}.c"), channels)
        kernel = low.kernels.made(text, f"rows_{name}", numbers, residual.words(channels))
        tail = (*tail, Scratch(4 * _quads(depth)))
        weights, ahead = packed(taps.reshape(out, -1)), flat.ahead(2, gathered=True)
    else:
        text = template("rows.c").replace("    MULTIPLY_BYTES\n", template("multiply_bytes.c"))
        text = residual.expand(text, channels)
        kernel = low.kernels.made(text, f"rows_{name}", numbers, residual.words(channels))
        weights, ahead = taps.reshape(out, -1), flat.ahead(1, gathered=False)
    low.call(
        kernel,
        (x, *_given(residual), low.constant(f"{node.name} w", weights), *tail, y),
        y,
        nodes=[str(node.name)],
        op="MatMul" if node.op_type == "MatMul" else "Conv",
        macs=rows * taps.size,
        ahead=_overlaps(x, ahead, residual, rows),
    )


def _windows(
    low: Lowering,
    node: ir.Node,
    x: str | Constant,
    y: str,
    windows: Windows,
    taps: Array,
    groups: int,
    channels: Channels,
    residual: _Residual,
) -> None:
    out = taps.shape[0]
    count = int(np.prod(taps.shape[1:]))
    numbers = {
        **windows.numbers,
        "IN_C": windows.in_c,
        "OUT_C": out,
        "TAPS": count,
        "X_ZERO": attr(node, "x_zero_point"),
        **bounds(node),
        **residual.numbers(node),
    }
    tail = channels.arguments(low, node, residual=residual.given)
    name = f"conv_{windows.text}_{out}"
    if low.core.dsp and groups == 1:
        whole = windows.dilation_h == windows.dilation_w == 1
        numbers |= {"UNDILATED": int(whole), "RUN": windows.kernel_w * windows.in_c}
        text = residual.expand(template("conv_dsp.c"), channels)
        kernel = low.kernels.made(text, name, numbers, residual.words(channels))
        tail = (*tail, Scratch(4 * _quads(count)), Scratch(2 * count))
        weights, ahead = packed(taps.reshape(out, -1)), windows.ahead(2, gathered=True)
    else:
        numbers |= {"GROUPS": groups, "DEPTH": taps.shape[-1]}
        inner = "multiply_bytes.c" if groups == 1 else "multiply_groups.c"
        text = template("conv.c").replace("    MULTIPLY_BYTES\n", template(inner))
        text = residual.expand(text, channels)
        kernel = low.kernels.made(text, name, numbers, residual.words(channels))
        tail = (*tail, Scratch(count * groups))
        weights, ahead = taps.reshape(out, -1), windows.ahead(1, gathered=True)
    low.call(
        kernel,
        (x, *_given(residual), low.constant(f"{node.name} w", weights), *tail, y),
        y,
        nodes=[str(node.name)],
        op="Conv",
        macs=windows.out_h * windows.out_w * taps.size,
        ahead=_overlaps(x, ahead, residual, windows.out_h * windows.out_w),
    )


def _to_float(
    low: Lowering,
    node: ir.Node,
    x: str | Constant,
    windows: Windows,
    taps: Array,
    groups: int,
    channels: Channels,
) -> None:
    rank = len(static(node.outputs[0])[0])
    order = channels_last(rank) if node.op_type == "Conv" else row_major(rank)
    y = low.define(node.outputs[0], order)
    numbers = {
        **windows.numbers,
        "IN_C": windows.in_c,
        "OUT_C": taps.shape[0],
        "GROUPS": groups,
        "DEPTH": taps.shape[-1],
        "X_ZERO": attr(node, "x_zero_point"),
    }
    kernel = low.kernels.make("conv_float", f"conv_float_{windows.text}_{taps.shape[0]}", numbers)
    real = np.broadcast_to(channels.multiplier, taps.shape[:1]).astype(np.float32)
    arguments = (
        x,
        low.constant(f"{node.name} w", taps),
        low.constant(f"{node.name} bias", channels.bias),
        low.constant(f"{node.name} m", real),
        y.name,
    )
    macs = windows.out_h * windows.out_w * taps.size
    low.call(kernel, arguments, y.name, nodes=[str(node.name)], op=node.op_type, macs=macs)


def packed(rows: Array) -> Array:
    """int8 [N, K] as the words that DSP kernels read: two channels in turn, four taps a word.

    uint32 [N * ceil(K / 4)]; an odd last channel follows alone. Missing taps are 0.
    """
    count, depth = rows.shape
    wide = np.zeros((count, _quads(depth)), np.int8)
    wide[:, :depth] = rows
    words = np.ascontiguousarray(wide).view("<u4")
    even = count - count % 2
    pairs = words[:even].reshape(even // 2, 2, -1).transpose(0, 2, 1).reshape(-1)
    return np.concatenate([pairs, words[even:].reshape(-1)]).astype(np.uint32)


def _quads(count: int) -> int:
    return -(-count // 4) * 4


def _given(residual: _Residual) -> tuple[Argument, ...]:
    return () if not residual.given else (residual.argument,)


def _overlaps(x: str | Constant, ahead: int, residual: _Residual, rows: int) -> dict[str, int]:
    """What the output may lie over. Not over a residual of which a row is read twice."""
    found = {}
    if isinstance(residual.argument, str) and rows % 2 == 0 and residual.argument != x:
        found[residual.argument] = 0
    if isinstance(x, str) and residual.argument != x:
        found[x] = ahead
    return found
