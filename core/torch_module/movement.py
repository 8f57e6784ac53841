"""Operators that move, choose or make elements."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from effc.core.torch_module.op import Function, Op, axis_of


def _reshape(op: Op, x: Tensor, shape: Tensor | None = None) -> Tensor:
    target = list(op.ints("shape", shape) or ())
    if not op.get("allowzero", 0):
        target = [x.shape[i] if n == 0 else n for i, n in enumerate(target)]
    times = op.run.times
    if times > 1 and target and target[0] > 0 and x.ndim and x.shape[0] == times * target[0]:
        target[0] = x.shape[0]  # the model's own batch, written into a constant
    return x.reshape(target)


def _squeeze(op: Op, x: Tensor, axes: Tensor | None = None) -> Tensor:
    chosen = op.ints("axes", axes)
    if chosen is None:
        return x.squeeze()
    return x.squeeze(tuple(axis_of(a, x.ndim) for a in chosen))


def _unsqueeze(op: Op, x: Tensor, axes: Tensor | None = None) -> Tensor:
    chosen = op.ints("axes", axes) or ()
    rank = x.ndim + len(chosen)
    for axis in sorted(axis_of(a, rank) for a in chosen):
        x = x.unsqueeze(axis)
    return x


def _flatten(op: Op, x: Tensor) -> Tensor:
    axis = axis_of(op.get("axis", 1), x.ndim)
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _transpose(op: Op, x: Tensor) -> Tensor:
    return x.permute(op.get("perm") or tuple(reversed(range(x.ndim))))


def _concat(op: Op, *xs: Tensor) -> Tensor:
    axis = axis_of(op.get("axis", 1), xs[0].ndim)
    if axis > 0 and op.run.times > 1:  # a constant beside a batch
        most = max(x.shape[0] for x in xs)
        xs = tuple(x.expand(most, *x.shape[1:]) if x.shape[0] == 1 else x for x in xs)
    return torch.cat(xs, axis)


def _split(op: Op, x: Tensor, split: Tensor | None = None) -> Any:
    axis = op.get("axis", 0)
    sizes = op.ints("split", split)
    if sizes is None:
        count = op.get("num_outputs") or len(op.wanted)
        each = -(-x.shape[axis] // count)
        sizes = tuple(min(each, x.shape[axis] - i * each) for i in range(count))
    return tuple(torch.split(x, list(sizes), axis))


def _slice(
    op: Op,
    x: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    first, last = op.ints("starts", starts) or (), op.ints("ends", ends) or ()
    where = op.ints("axes", axes) or tuple(range(len(first)))
    strides = op.ints("steps", steps) or (1,) * len(first)
    for begin, end, axis, step in zip(first, last, where, strides, strict=True):
        indices = range(*slice(begin, max(end, -(1 << 62)), step).indices(x.shape[axis]))
        if step > 0:
            part = slice(indices.start, max(indices.stop, indices.start), step)
            x = x[(slice(None),) * axis_of(axis, x.ndim) + (part,)]
        else:
            x = x.index_select(axis, torch.tensor(list(indices), dtype=torch.long))
    return x


def _gather(op: Op, x: Tensor, at: Tensor) -> Tensor:
    axis = axis_of(op.get("axis", 0), x.ndim)
    index = at.long()
    index = torch.where(index < 0, index + x.shape[axis], index)
    picked = x.index_select(axis, index.reshape(-1))
    return picked.reshape([*x.shape[:axis], *at.shape, *x.shape[axis + 1 :]])


def _positive(at: Tensor, extent: int) -> Tensor:
    at = at.long()
    return torch.where(at < 0, at + extent, at)


def _gather_elements(op: Op, x: Tensor, at: Tensor) -> Tensor:
    axis = axis_of(op.get("axis", 0), x.ndim)
    return torch.gather(x, axis, _positive(at, x.shape[axis]))


def _gather_nd(op: Op, x: Tensor, at: Tensor) -> Tensor:
    shared = op.get("batch_dims", 0)
    deep = at.shape[-1]
    lead = math.prod(x.shape[:shared])
    data = x.reshape(lead, *x.shape[shared:])
    index = at.reshape(lead, -1, deep)
    chosen = [_positive(index[..., i], data.shape[i + 1]) for i in range(deep)]
    rows = torch.arange(lead).reshape(-1, 1).expand(lead, index.shape[1])
    y = data[(rows, *chosen)]
    return y.reshape([*at.shape[:-1], *x.shape[shared + deep :]])


_REDUCE = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _scatter_elements(op: Op, x: Tensor, at: Tensor, updates: Tensor) -> Tensor:
    axis = axis_of(op.get("axis", 0), x.ndim)
    index = _positive(at, x.shape[axis])
    kind = op.get("reduction", "none")
    if kind == "none":
        return x.scatter(axis, index, updates)
    return x.scatter_reduce(axis, index, updates, _REDUCE[kind], include_self=True)


def _scatter_nd(op: Op, x: Tensor, at: Tensor, updates: Tensor) -> Tensor:
    deep = at.shape[-1]
    inner = math.prod(x.shape[deep:])
    strides = [math.prod(x.shape[i + 1 : deep]) for i in range(deep)]
    rows = torch.zeros(at.shape[:-1], dtype=torch.long)
    for i in range(deep):
        rows = rows + _positive(at[..., i], x.shape[i]) * strides[i]
    flat = x.reshape(-1, inner)
    index = rows.reshape(-1, 1).expand(-1, inner)
    new = updates.reshape(-1, inner)
    kind = op.get("reduction", "none")
    if kind == "none":
        return flat.scatter(0, index, new).reshape(x.shape)
    return flat.scatter_reduce(0, index, new, _REDUCE[kind], include_self=True).reshape(x.shape)


def _pad(
    op: Op,
    x: Tensor,
    pads: Tensor | None = None,
    value: Tensor | None = None,
    axes: Tensor | None = None,
) -> Tensor:
    """Each axis by itself: constant by F.pad, the others by the indices of what they repeat."""
    amounts = op.ints("pads", pads) or ()
    where = [axis_of(a, x.ndim) for a in op.ints("axes", axes) or range(x.ndim)]
    mode = op.get("mode", "constant")
    filling = op.get("value", 0.0) if value is None else value.reshape(()).item()
    for i, axis in enumerate(where):
        before, after = amounts[i], amounts[i + len(where)]
        if not before and not after:
            continue
        if mode == "constant":
            flat = [0] * (2 * (x.ndim - 1 - axis)) + [before, after]
            x = F.pad(x, flat, value=filling)
            continue
        n = x.shape[axis]
        index = torch.arange(-before, n + after)
        if mode == "edge":
            index = index.clamp(0, n - 1)
        elif mode == "wrap":
            index = index % n
        else:  # reflect
            period = max(1, 2 * (n - 1))
            index = index % period
            index = torch.minimum(index, period - index) if n > 1 else index * 0
        x = x.index_select(axis, index)
    return x


def _expand(op: Op, x: Tensor, shape: Tensor) -> Tensor:
    target = [int(v) for v in shape.tolist()]
    if op.run.times > 1 and len(target) == x.ndim > 0 and target[0] == 1:
        target[0] = x.shape[0]
    full: Any = torch.broadcast_shapes(x.shape, target)  # type: ignore[no-untyped-call]
    return x.expand(full)


def _tile(op: Op, x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat([int(v) for v in repeats.tolist()])


def _depth_to_space(op: Op, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    b = op.get("blocksize")
    if op.get("mode", "DCR") == "DCR":
        y = x.reshape(n, b, b, c // (b * b), h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(n, c // (b * b), b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return y.reshape(n, c // (b * b), h * b, w * b)


def _space_to_depth(op: Op, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    b = op.get("blocksize")
    order = (0, 3, 5, 1, 2, 4) if op.get("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    y = x.reshape(n, c, h // b, b, w // b, b).permute(order)
    return y.reshape(n, c * b * b, h // b, w // b)


def _shape(op: Op, x: Tensor) -> Tensor:
    return torch.tensor(list(x.shape)[op.get("start", 0) : op.get("end")], dtype=torch.int64)


def _constant_of_shape(op: Op, shape: Tensor) -> Tensor:
    value = op.get("value")
    size = [int(v) for v in shape.tolist()]
    if value is None:
        return torch.zeros(size)
    return torch.full(size, value.numpy().reshape(()).item(), dtype=op.dtype(int(value.dtype)))


def _range(op: Op, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    begin, end, step = start.item(), limit.item(), delta.item()
    count = max(0, math.ceil((end - begin) / step))
    return (start.reshape(()) + torch.arange(count).to(start.dtype) * delta.reshape(())).to(
        start.dtype
    )


def _one_hot(op: Op, at: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    count = int(depth.reshape(()))
    axis = axis_of(op.get("axis", -1), at.ndim + 1)
    index = at.long()
    index = torch.where(index < 0, index + count, index).unsqueeze(axis)
    shape = [1] * (at.ndim + 1)
    shape[axis] = count
    return torch.where(index == torch.arange(count).reshape(shape), values[1], values[0])


def _trilu(op: Op, x: Tensor, k: Tensor | None = None) -> Tensor:
    shift = 0 if k is None else int(k.reshape(()))
    return torch.triu(x, shift) if op.get("upper", 1) else torch.tril(x, shift)


def _eye_like(op: Op, x: Tensor) -> Tensor:
    dtype = op.dtype(op.get("dtype")) if op.get("dtype") else x.dtype
    rows, columns = torch.arange(x.shape[0]).unsqueeze(1), torch.arange(x.shape[1])
    found: Tensor = columns - rows == op.get("k", 0)
    return found.to(dtype)


def _reverse_sequence(op: Op, x: Tensor, lengths: Tensor) -> Tensor:
    time, batch = op.get("time_axis", 0), op.get("batch_axis", 1)
    y = x if (batch, time) == (0, 1) else x.transpose(0, 1)
    steps = torch.arange(y.shape[1]).expand(y.shape[0], -1)
    ends = lengths.long().reshape(-1, 1)
    index = torch.where(steps < ends, ends - 1 - steps, steps)
    y = y[torch.arange(y.shape[0]).reshape(-1, 1), index]
    return y if (batch, time) == (0, 1) else y.transpose(0, 1)


def _compress(op: Op, x: Tensor, condition: Tensor) -> Tensor:
    axis = op.get("axis")
    x = x.reshape(-1) if axis is None else x
    return x.index_select(axis or 0, condition.nonzero().reshape(-1))


def _center_crop_pad(op: Op, x: Tensor, shape: Tensor) -> Tensor:
    for axis, wanted in zip(op.get("axes") or range(x.ndim), shape.tolist(), strict=True):
        axis, gap = axis_of(axis, x.ndim), int(wanted) - x.shape[axis]
        if gap < 0:
            x = x.narrow(axis, -gap // 2, int(wanted))
        elif gap > 0:
            x = F.pad(x, [0] * (2 * (x.ndim - 1 - axis)) + [gap // 2, gap - gap // 2])
    return x


TABLE: dict[str, Function] = {
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "ScatterElements": _scatter_elements,
    "Scatter": _scatter_elements,
    "ScatterND": _scatter_nd,
    "Pad": _pad,
    "Expand": _expand,
    "Tile": _tile,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Shape": _shape,
    "Size": lambda op, x: torch.tensor(x.numel()),
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "OneHot": _one_hot,
    "NonZero": lambda op, x: x.nonzero().T,
    "Trilu": _trilu,
    "EyeLike": _eye_like,
    "ReverseSequence": _reverse_sequence,
    "Compress": _compress,
    "CenterCropPad": _center_crop_pad,
}
