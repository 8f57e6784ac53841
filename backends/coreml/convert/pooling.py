"""Pooling. Ceil mode, dilation and asymmetric padding are resolved here, so that MIL sees plain windows."""

from __future__ import annotations

import itertools
import math

import numpy as np

from effc.backends.coreml.convert.call import Call, Refusal, Var
from effc.backends.coreml.convert.convolution import pads_of, spatial
from effc.backends.coreml.convert.table import op

MAX_WINDOW = 128  # elements of a dilated window, each of which becomes a slice


class Window:
    """The window of a pooling node: its padding includes what ceil mode looks at beyond the end."""

    def __init__(self, c: Call) -> None:
        self.kernel = tuple(c.attr("kernel_shape"))
        if not 1 <= len(self.kernel) <= 3:
            raise Refusal(f"it has {len(self.kernel)} spatial dimensions; Core ML has 1 to 3")
        self.strides, self.dilations = spatial(c, self.kernel)
        self.pads = pads_of(c, self.kernel, self.strides, self.dilations)
        self.out = c.out_shape()[2:]
        self.beyond = [
            max(0, (o - 1) * s + (k - 1) * d + 1 - (i + sum(p)))
            for o, s, k, d, i, p in zip(
                self.out, self.strides, self.kernel, self.dilations, c.shape()[2:], self.pads,
                strict=True,
            )
        ]  # fmt: skip
        if c.text("auto_pad", "NOTSET") == "VALID":
            self.beyond = [0] * len(self.kernel)

    def flat(self, *, beyond: bool = True) -> list[int]:
        """before, after, before, after, ..."""
        extra = self.beyond if beyond else [0] * len(self.kernel)
        return [v for (b, e), x in zip(self.pads, extra, strict=True) for v in (b, e + x)]

    @property
    def dilated(self) -> bool:
        return set(self.dilations) != {1}

    def slices(self, c: Call, x: Var) -> list[Var]:
        """One strided slice of the padded `x` for each element of the window."""
        if math.prod(self.kernel) > MAX_WINDOW:
            raise Refusal(
                f"its dilated window has {math.prod(self.kernel)} elements, more than {MAX_WINDOW}"
            )
        rank, found = len(x.shape), []
        for offset in itertools.product(*(range(k) for k in self.kernel)):
            begin = [o * d for o, d in zip(offset, self.dilations, strict=True)]
            end = [
                b + (o - 1) * s + 1 for b, o, s in zip(begin, self.out, self.strides, strict=True)
            ]
            lead = rank - len(begin)
            found.append(
                c.mb.slice_by_index(
                    x=x,
                    begin=np.array([0] * lead + begin, np.int32),
                    end=np.array([*(int(d) for d in x.shape[:lead]), *end], np.int32),
                    stride=np.array([1] * lead + self.strides, np.int32),
                )
            )
        return found


@op("MaxPool")
def max_pool(c: Call) -> Var:
    if c.wanted(1):
        raise Refusal("its second output, the indices, is used", "compute them with ArgMax")
    window = Window(c)
    if not c.is_float():
        raise Refusal("it pools integers", "cast to float before and back after it")
    if window.dilated:
        x = c.mb.pad(
            x=c.x(), pad=np.array(window.flat(), np.int32), constant_val=c.numpy()(-np.inf)
        )
        parts = window.slices(c, x)
        result = parts[0]
        for part in parts[1:]:
            result = c.mb.maximum(x=result, y=part)
        return result
    return c.mb.max_pool(
        x=c.x(), kernel_sizes=window.kernel, strides=window.strides, pad_type="custom",
        pad=window.flat(),
    )  # fmt: skip


@op("AveragePool")
def average_pool(c: Call) -> Var:
    """What ceil mode sees beyond the padding is never counted, padding itself if ONNX says so."""
    c.only_float()
    window, count = Window(c), bool(c.attr("count_include_pad", 0))
    x = c.x()
    if window.dilated:
        return _dilated_average(c, x, window, count)
    if count and any(window.beyond):
        pad = np.array(window.flat(beyond=False), np.int32)
        x = c.mb.pad(x=x, pad=pad, constant_val=c.like(0, x))
        pads = [v for extra in window.beyond for v in (0, extra)]
    else:
        pads = window.flat()
    return c.mb.avg_pool(
        x=x, kernel_sizes=window.kernel, strides=window.strides, pad_type="custom", pad=pads,
        exclude_padding_from_average=not count or any(window.beyond),
    )  # fmt: skip


def _dilated_average(c: Call, x: Var, window: Window, count: bool) -> Var:
    zeros = c.mb.pad(x=x, pad=np.array(window.flat(), np.int32), constant_val=c.like(0, x))
    parts = window.slices(c, zeros)
    total = parts[0]
    for part in parts[1:]:
        total = c.mb.add(x=total, y=part)
    counts = _counts(c.shape()[2:], window, count).astype(c.numpy())
    return c.mb.real_div(x=total, y=counts[None, None])


def _counts(extents: tuple[int, ...], window: Window, count: bool) -> np.ndarray:
    """How many elements each window has."""
    result = np.ones((), np.float64)
    for i, extent in enumerate(extents):
        before, after = window.pads[i]
        low, high = (0, before + extent + after) if count else (before, before + extent)
        at = np.arange(window.out[i])[:, None] * window.strides[i]
        at = at + np.arange(window.kernel[i]) * window.dilations[i]
        inside = ((at >= low) & (at < high)).sum(1).astype(np.float64)
        result = result[..., None] * inside
    return result


@op("LpPool")
def lp_pool(c: Call) -> Var:
    """(sum |x|^p)^(1/p), from an average that counts its padding."""
    c.only_float()
    window, p = Window(c), c.attr("p", 2)
    x = c.mb.abs(x=c.x())
    x = c.mb.mul(x=x, y=x) if p == 2 else c.mb.pow(x=x, y=c.like(p, x))
    if window.dilated:
        padded = c.mb.pad(x=x, pad=np.array(window.flat(), np.int32), constant_val=c.like(0, x))
        parts = window.slices(c, padded)
        total = parts[0]
        for part in parts[1:]:
            total = c.mb.add(x=total, y=part)
    else:
        padded = c.mb.pad(x=x, pad=np.array(window.flat(), np.int32), constant_val=c.like(0, x))
        mean = c.mb.avg_pool(
            x=padded, kernel_sizes=window.kernel, strides=window.strides, pad_type="valid"
        )
        total = c.mb.mul(x=mean, y=c.like(math.prod(window.kernel), mean))
    if p == 2:
        return c.mb.sqrt(x=total)
    return total if p == 1 else c.mb.pow(x=total, y=c.like(1 / p, total))


@op("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def global_pool(c: Call) -> Var:
    c.only_float()
    x, axes = c.x(), list(range(2, c.rank()))
    if c.node.op_type == "GlobalAveragePool":
        return c.mb.reduce_mean(x=x, axes=axes, keep_dims=True)
    if c.node.op_type == "GlobalMaxPool":
        return c.mb.reduce_max(x=x, axes=axes, keep_dims=True)
    p = c.attr("p", 2)
    if p == 2:
        return c.mb.reduce_l2_norm(x=x, axes=axes, keep_dims=True)
    total = c.mb.reduce_sum(x=c.mb.pow(x=c.mb.abs(x=x), y=c.like(p, x)), axes=axes, keep_dims=True)
    return c.mb.pow(x=total, y=c.like(1 / p, total))
