"""Conv and ConvTranspose."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from effc.backends.coreml.convert.call import Call, Refusal, Var
from effc.backends.coreml.convert.compressed import is_compressed
from effc.backends.coreml.convert.compressed import weight as stored_weight
from effc.backends.coreml.convert.table import op


def pads_of(
    c: Call, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[tuple[int, int]]:
    """The padding before and after each spatial dimension, `auto_pad` resolved."""
    n = len(kernel)
    auto = c.text("auto_pad", "NOTSET")
    if auto == "VALID":
        return [(0, 0)] * n
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        found = []
        for extent, k, s, d in zip(c.shape()[2:], kernel, strides, dilations, strict=True):
            total = max((-(-extent // s) - 1) * s + (k - 1) * d + 1 - extent, 0)
            small, big = total // 2, total - total // 2
            found.append((small, big) if auto == "SAME_UPPER" else (big, small))
        return found
    pads = c.attr("pads", (0,) * 2 * n)
    return list(zip(pads[:n], pads[n:], strict=True))


def spatial(c: Call, kernel: Sequence[int]) -> tuple[list[int], list[int]]:
    """Strides and dilations."""
    n = len(kernel)
    return list(c.attr("strides", (1,) * n)), list(c.attr("dilations", (1,) * n))


def bias_of(c: Call, index: int = 2) -> tuple[Var | None, Var | None]:
    """The bias as MIL's constant parameter, or as a value to add afterwards."""
    if not c.has(index):
        return None, None
    array = c.const(index)
    if array is not None:
        return array.astype(c.numpy()), None
    value = c.x(index)
    if is_compressed(value):
        return value, None
    return None, value


def plus_bias(c: Call, y: Var, bias: Var | None) -> Var:
    if bias is None:
        return y
    shape = (1, int(bias.shape[0])) + (1,) * (len(y.shape) - 2)
    return c.mb.add(x=y, y=c.reshaped(bias, shape))


@op("Conv")
def conv(c: Call) -> Var:
    c.only_float()
    kernel = c.shape(1)[2:]
    if not 1 <= len(kernel) <= 3:
        raise Refusal(f"it has {len(kernel)} spatial dimensions; Core ML has 1 to 3")
    strides, dilations = spatial(c, kernel)
    array = c.const(1)
    weight = c.raw(1) if array is None else stored_weight(c, array.astype(c.numpy()))
    if array is None and set(dilations) != {1} and not is_compressed(weight):
        raise Refusal(
            "its weights are computed at run time and dilated", "make the weights constant"
        )
    pads = [p for pair in pads_of(c, kernel, strides, dilations) for p in pair]
    if min(pads, default=0) < 0:
        raise Refusal("it has negative padding", "slice the input instead")
    bias, later = bias_of(c)
    y = c.mb.conv(
        x=c.x(0), weight=weight, strides=strides, dilations=dilations, groups=c.attr("group", 1),
        pad_type="custom", pad=pads, **({} if bias is None else {"bias": bias}),
    )  # fmt: skip
    return plus_bias(c, y, later)


@op("ConvTranspose")
def conv_transpose(c: Call) -> Var:
    """The padding crops what MIL's `valid` form makes; `output_padding` and `output_shape` follow from it.

    Where ONNX's result is larger than the full one, zeros stand at its end (no input reaches there).
    """
    c.only_float()
    weight = c.const(1)
    source = c.raw(1) if weight is None else stored_weight(c, weight.astype(c.numpy()))
    if weight is None and not is_compressed(source):
        raise Refusal("its weights are computed at run time", "make the weights constant")
    kernel = c.shape(1)[2:]
    if not 1 <= len(kernel) <= 3:
        raise Refusal(f"it has {len(kernel)} spatial dimensions; Core ML has 1 to 3")
    strides, dilations = spatial(c, kernel)
    wanted = c.out_shape()[2:]
    full = [
        (i - 1) * s + (k - 1) * d + 1
        for i, s, k, d in zip(c.shape()[2:], strides, kernel, dilations, strict=True)
    ]
    before = _begin(c, kernel, strides, dilations, wanted)
    pad, grow = [], []
    for f, b, w in zip(full, before, wanted, strict=True):
        after = f - b - w
        pad += [max(b, 0), max(after, 0)]
        grow += [max(-b, 0), max(-after, 0)]
    bias, later = bias_of(c)
    if any(grow):  # zeros come before the bias, which stands there, too
        later, bias = (c.constant(bias) if bias is not None else later), None
    y = c.mb.conv_transpose(
        x=c.x(0), weight=source, strides=strides, dilations=dilations, groups=c.attr("group", 1),
        pad_type="custom", pad=pad, **({} if bias is None else {"bias": bias}),
    )  # fmt: skip
    if any(grow):
        y = c.mb.pad(x=y, pad=np.array(grow, np.int32), constant_val=c.like(0, y))
    return plus_bias(c, y, later)


def _begin(
    c: Call,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    wanted: Sequence[int],
) -> list[int]:
    """How much of the full result is cut off before each spatial dimension."""
    n = len(kernel)
    auto = c.text("auto_pad", "NOTSET")
    if auto == "VALID":
        return [0] * n
    if auto == "NOTSET" and c.attr("output_shape") is None:
        return list(c.attr("pads", (0,) * 2 * n)[:n])
    extra = c.attr("output_padding", (0,) * n)
    found = []
    for i in range(n):
        total = (
            strides[i] * (c.shape()[2 + i] - 1)
            + extra[i]
            + (kernel[i] - 1) * dilations[i]
            + 1
            - wanted[i]
        )
        # ONNX: SAME_UPPER puts the odd one at the end, and everything else at the begin
        found.append(total // 2 if auto == "SAME_UPPER" else total - total // 2)
    return found
