"""Convolutions, poolings and other operators that slide a window."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from effc.core.torch_module.op import Function, Op

_CONV = (F.conv1d, F.conv2d, F.conv3d)
_CONV_TRANSPOSE = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
_MAX_POOL = (F.max_pool1d, F.max_pool2d, F.max_pool3d)


def paddings(
    op: Op,
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> tuple[list[int], list[int]]:
    """Padding before and after each spatial axis, `auto_pad` worked out."""
    rank = len(size)
    auto = op.get("auto_pad", "NOTSET")
    if auto == "NOTSET":
        pads = list(op.get("pads") or [0] * (2 * rank))
        return pads[:rank], pads[rank:]
    if auto == "VALID":
        return [0] * rank, [0] * rank
    begin, end = [], []
    for n, k, s, d in zip(size, kernel, strides, dilations, strict=True):
        total = max(0, (math.ceil(n / s) - 1) * s + (k - 1) * d + 1 - n)
        small, large = total // 2, total - total // 2
        begin.append(small if auto == "SAME_UPPER" else large)
        end.append(large if auto == "SAME_UPPER" else small)
    return begin, end


def _geometry(op: Op, rank: int) -> tuple[list[int], list[int]]:
    return list(op.get("strides") or [1] * rank), list(op.get("dilations") or [1] * rank)


def pad_last(x: Tensor, begin: Sequence[int], end: Sequence[int], value: float = 0.0) -> Tensor:
    """Pad the last axes of `x` with a constant."""
    if not any(begin) and not any(end):
        return x
    flat = [p for pair in zip(reversed(begin), reversed(end), strict=True) for p in pair]
    return F.pad(x, flat, value=value)


def _conv(op: Op, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    rank = x.ndim - 2
    if rank not in (1, 2, 3):
        raise NotImplementedError(f"torch has convolutions of 1 to 3 spatial axes, not {rank}")
    strides, dilations = _geometry(op, rank)
    begin, end = paddings(op, x.shape[2:], w.shape[2:], strides, dilations)
    padding: list[int] = [0] * rank
    if begin == end:
        padding = begin
    else:
        x = pad_last(x, begin, end)
    groups = op.get("group", 1)
    return _CONV[rank - 1](x, w, b, strides, padding, dilations, groups)


def _conv_transpose(op: Op, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """Computed without padding, then cut (or padded) to the output that pads or output_shape ask for."""
    rank = x.ndim - 2
    if rank not in (1, 2, 3):
        raise NotImplementedError(f"torch has convolutions of 1 to 3 spatial axes, not {rank}")
    strides, dilations = _geometry(op, rank)
    extra = list(op.get("output_padding") or [0] * rank)
    whole = _CONV_TRANSPOSE[rank - 1](x, w, None, strides, 0, 0, op.get("group", 1), dilations)
    spans = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations, strict=True)]
    auto, wanted = op.get("auto_pad", "NOTSET"), op.get("output_shape")
    full = [
        (n - 1) * s + e + k for n, s, e, k in zip(x.shape[2:], strides, extra, spans, strict=True)
    ]
    if wanted is None and auto in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
    if wanted is not None:
        total = [f - int(n) for f, n in zip(full, wanted[-rank:], strict=True)]
        half = [t // 2 for t in total]
        rest = [t - h for t, h in zip(total, half, strict=True)]
        begin, end = (half, rest) if auto == "SAME_UPPER" else (rest, half)
    elif auto == "VALID":
        begin, end = [0] * rank, [0] * rank
    else:
        pads = list(op.get("pads") or [0] * (2 * rank))
        begin, end = pads[:rank], pads[rank:]
    y = pad_last(
        whole,
        [-p for p in begin],
        [f - p - n for f, p, n in zip(full, end, whole.shape[2:], strict=True)],
    )
    return y if b is None else y + b.reshape([1, -1] + [1] * rank)


def _pool_geometry(op: Op, x: Tensor) -> tuple[Any, ...]:
    """Kernel, strides, dilations, padding before, padding after, extents of the output."""
    kernel = list(op.get("kernel_shape"))
    strides, dilations = _geometry(op, len(kernel))
    size = x.shape[2:]
    begin, end = paddings(op, size, kernel, strides, dilations)
    out = []
    for i, n in enumerate(size):
        span = (kernel[i] - 1) * dilations[i] + 1
        room = n + begin[i] + end[i] - span
        if op.get("ceil_mode", 0):
            steps = -(-room // strides[i]) + 1
            if (steps - 1) * strides[i] >= n + begin[i]:  # the last window would see padding alone
                steps -= 1
        else:
            steps = room // strides[i] + 1
        out.append(steps)
    return kernel, strides, dilations, begin, end, out


def _reach(n: int, steps: int, stride: int, span: int, begin: int) -> int:
    """Padding after an axis that exactly `steps` windows need (negative: elements none of them sees)."""
    return (steps - 1) * stride + span - n - begin


def _cover(x: Tensor, geometry: tuple[Any, ...], value: float) -> Tensor:
    """`x` padded with `value` to what the windows see."""
    kernel, strides, dilations, begin, _, out = geometry
    end = [
        _reach(n, o, s, (k - 1) * d + 1, b)
        for n, o, s, k, d, b in zip(
            x.shape[2:], out, strides, kernel, dilations, begin, strict=True
        )
    ]
    return pad_last(x, begin, end, value)


def _max_pool(op: Op, x: Tensor) -> Any:
    geometry = _pool_geometry(op, x)
    kernel, strides, dilations, begin, _, _ = geometry
    lowest = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    floats = x if x.is_floating_point() else x.to(torch.float64)
    padded = _cover(floats, geometry, float(lowest))
    rank = len(kernel)
    if rank not in (1, 2, 3):
        raise NotImplementedError(f"torch pools 1 to 3 spatial axes, not {rank}")
    if len(op.wanted) < 2:
        y: Tensor = _MAX_POOL[rank - 1](padded, kernel, strides, 0, dilations)
        return y.to(x.dtype)
    y, where = _MAX_POOL[rank - 1](padded, kernel, strides, 0, dilations, return_indices=True)
    return y.to(x.dtype), _indices(op, where, x.shape, padded.shape[2:], begin)


def _indices(
    op: Op, where: Tensor, shape: Sequence[int], padded: Sequence[int], begin: Sequence[int]
) -> Tensor:
    """Positions in a padded plane -> positions in the whole unpadded tensor, as ONNX counts them."""
    size = list(shape[2:])
    coordinates = []
    for extent, before in zip(reversed(padded), reversed(begin), strict=True):
        coordinates.append(where % extent - before)
        where = where // extent
    coordinates.reverse()
    strides = [math.prod(size[i + 1 :]) for i in range(len(size))]
    if op.get("storage_order", 0):
        strides = [math.prod(size[:i]) for i in range(len(size))]
    flat = sum(c * s for c, s in zip(coordinates, strides, strict=True))
    planes = torch.arange(shape[0] * shape[1]) * math.prod(size)
    return planes.reshape([shape[0], shape[1]] + [1] * len(size)) + flat


def _window_sums(x: Tensor, geometry: tuple[Any, ...]) -> Tensor:
    """The sum of every window of the padded `x`: strided slices added up, any rank, dilation and overlap."""
    kernel, strides, dilations, _, _, out = geometry
    total: Tensor | None = None
    for offsets in itertools.product(*(range(k) for k in kernel)):
        part = x
        for i, (o, d, s, n) in enumerate(zip(offsets, dilations, strides, out, strict=True)):
            part = part.narrow(i + 2, o * d, (n - 1) * s + 1)[
                (slice(None),) * (i + 2) + (slice(None, None, s),)
            ]
        total = part if total is None else total + part
    assert total is not None
    return total


def _average_pool(op: Op, x: Tensor) -> Tensor:
    geometry = _pool_geometry(op, x)
    kernel, strides, dilations, begin, end, out = geometry
    plain = len(kernel) == 2 and dilations == [1, 1] and not any(begin) and not any(end)
    if plain and not op.get("ceil_mode", 0):
        return F.avg_pool2d(x, kernel, strides)
    ones = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype)
    if op.get("count_include_pad", 0):
        ones = pad_last(ones, begin, end, 1.0)  # padding counts, but not what rounding up adds
        reach = [
            _reach(n, o, s, (k - 1) * d + 1, 0)
            for n, o, s, k, d in zip(ones.shape[2:], out, strides, kernel, dilations, strict=True)
        ]
        counted = pad_last(ones, [0] * len(reach), reach)
    else:
        counted = _cover(ones, geometry, 0.0)
    return _window_sums(_cover(x, geometry, 0.0), geometry) / _window_sums(counted, geometry)


def _lp_pool(op: Op, x: Tensor) -> Tensor:
    geometry = _pool_geometry(op, x)
    p = op.get("p", 2)
    powers = torch.abs(_cover(x, geometry, 0.0)) ** p
    sums: Tensor = _window_sums(powers, geometry) ** (1.0 / p)
    return sums


def _spatial(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


def _global_lp(op: Op, x: Tensor) -> Tensor:
    p = op.get("p", 2)
    y: Tensor = (x.abs() ** p).sum(_spatial(x), keepdim=True) ** (1.0 / p)
    return y


def _lrn(op: Op, x: Tensor) -> Tensor:
    size = op.get("size")
    before = (size - 1) // 2
    squares = F.pad((x * x).transpose(1, -1), (before, size - 1 - before)).transpose(
        1, -1
    )  # pads channels
    sums = squares.unfold(1, size, 1).sum(-1)
    scale = op.get("bias", 1.0) + op.get("alpha", 1e-4) / size * sums
    y: Tensor = x / scale ** op.get("beta", 0.75)
    return y


def _max_unpool(op: Op, x: Tensor, where: Tensor, shape: Tensor | None = None) -> Tensor:
    kernel = list(op.get("kernel_shape"))
    strides, _ = _geometry(op, len(kernel))
    pads = list(op.get("pads") or [0] * (2 * len(kernel)))
    size = [
        (n - 1) * s - pads[i] - pads[i + len(kernel)] + k
        for i, (n, s, k) in enumerate(zip(x.shape[2:], strides, kernel, strict=True))
    ]
    whole = [*x.shape[:2], *size] if shape is None else [int(v) for v in shape.tolist()]
    flat = torch.zeros(math.prod(whole), dtype=x.dtype)
    return flat.index_put((where.reshape(-1),), x.reshape(-1)).reshape(whole)


def _col2im(op: Op, x: Tensor, image: Tensor, block: Tensor) -> Tensor:
    size = [int(v) for v in image.tolist()]
    kernel = [int(v) for v in block.tolist()]
    rank = len(size)
    if rank != 2:
        raise NotImplementedError(f"torch folds 2 spatial axes, not {rank}")
    strides, dilations = _geometry(op, rank)
    pads = list(op.get("pads") or [0] * (2 * rank))
    grown = [n + pads[i] + pads[i + rank] for i, n in enumerate(size)]
    y = F.fold(x, tuple(grown), tuple(kernel), tuple(dilations), 0, tuple(strides))
    return pad_last(y, [-p for p in pads[:rank]], [-p for p in pads[rank:]])


TABLE: dict[str, Function] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "LpPool": _lp_pool,
    "GlobalAveragePool": lambda op, x: x.mean(_spatial(x), keepdim=True),
    "GlobalMaxPool": lambda op, x: x.amax(_spatial(x), keepdim=True),
    "GlobalLpPool": _global_lp,
    "LRN": _lrn,
    "MaxUnpool": _max_unpool,
    "Col2Im": _col2im,
}
