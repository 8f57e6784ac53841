"""Operators that move elements: reshape, transpose, slice, concat, split, tile, depth to space, ..."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from effc.backends.coreml.convert.call import MAX_RANK, Call, Refusal, Var, kind_of, saturate
from effc.backends.coreml.convert.elementwise import broadcast
from effc.backends.coreml.convert.table import op


@op("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(c: Call) -> Var:
    """All of them are the same elements in another static shape."""
    x = c.plain(c.raw())
    if c.open(c.node.outputs[0]):
        return _reshape_open(c, x)
    result = c.reshaped(x, c.out_shape())
    return c.mb.identity(x=x) if result is x else result


def _reshape_open(c: Call, x: Var) -> Var:
    """To a shape some of whose extents are known at run time: one is what is left (-1), others are those
    of `x` at the same place, counted from the right (0; before iOS 17 only between equal ranks)."""
    flags, out, source = c.open(c.node.outputs[0]), c.out_shape(), c.shape()
    before = c.open(c.value(0))
    if max(len(out), len(source)) > MAX_RANK:
        raise Refusal(f"its rank is over {MAX_RANK}, and its shape is not the same at all sizes")
    shift = len(source) - len(out)
    target = [-1 if depends else d for d, depends in zip(out, flags, strict=True)]
    for i, d in enumerate(out):
        same = 0 <= i + shift and before and before[i + shift] and source[i + shift] == d
        if flags[i] and target.count(-1) > 1 and same and (c.ios >= 17 or not shift):
            target[i] = 0
    if target.count(-1) > 1:
        raise Refusal(
            f"two extents of its result {list(out)} depend on the size of the input",
            "leave sizes out, and build one function for each size",
        )
    return c.mb.reshape(x=x, shape=np.array(target, np.int32))


@op("Identity", "Dropout")
def identity(c: Call) -> Var | tuple[Var | None, ...]:
    if c.wanted(1):
        raise Refusal("its mask is used", "export the model for inference")
    if c.has(2) and c.node.op_type == "Dropout" and bool(c.need(2, "training_mode")):
        raise Refusal("it is in training mode", "export the model for inference")
    return c.mb.identity(x=c.raw())


@op("Transpose")
def transpose(c: Call) -> Var:
    shape = c.shape()
    perm = list(c.attr("perm", tuple(reversed(range(len(shape))))))
    if len(shape) == 0:
        return c.mb.identity(x=c.x())
    return transposed(c, c.plain(c.raw()), shape, perm)


def transposed(c: Call, var: Var, shape: Sequence[int], perm: Sequence[int]) -> Var:
    """Elements of `shape` (flat where its rank is over 5) permuted.

    Over rank 5, extents of 1 are left out and axes that stay neighbours are merged; what then is still
    too much is done in steps, each of which swaps two neighbouring blocks of axes.
    """
    out = [shape[p] for p in perm]
    if len(shape) <= MAX_RANK:
        if list(perm) == list(range(len(perm))):
            return c.mb.identity(x=var)
        return c.mb.transpose(x=var, perm=list(perm))
    order = [p for p in perm if shape[p] != 1]
    blocks: list[list[int]] = []
    for p in order:
        if blocks and _next(shape, blocks[-1][-1]) == p:
            blocks[-1].append(p)
        else:
            blocks.append([p])
    source = sorted(blocks, key=lambda b: b[0])
    extents = [math.prod(shape[i] for i in b) for b in source]
    wanted = [source.index(b) for b in blocks]
    if len(extents) <= MAX_RANK:
        if len(extents) > 1:
            var = c.mb.transpose(x=c.reshaped(var, extents), perm=wanted)
        return c.reshaped(var, out)
    current = list(range(len(extents)))
    for place, block in enumerate(wanted):
        at = current.index(block)
        if at == place:
            continue
        sizes = [math.prod(extents[i] for i in part) for part in
                 (current[:place], current[place:at], [block], current[at + 1 :])]  # fmt: skip
        var = c.mb.transpose(x=c.reshaped(var, sizes), perm=[0, 2, 1, 3])
        current = [*current[:place], block, *current[place:at], *current[at + 1 :]]
    return c.reshaped(var, out)


def _next(shape: Sequence[int], axis: int) -> int:
    """The next axis whose extent is not 1."""
    axis += 1
    while axis < len(shape) and shape[axis] == 1:
        axis += 1
    return axis


@op("Expand")
def expand(c: Call) -> Var:
    out = c.out_shape()
    if len(out) > MAX_RANK:
        raise Refusal(f"its result has rank {len(out)}, and Core ML takes at most {MAX_RANK}")
    x = c.x()
    result = broadcast(c, x, out)
    return c.mb.identity(x=x) if result is x else result


@op("Tile")
def tile(c: Call) -> Var:
    if 0 in c.out_shape():
        raise Refusal("it makes an empty tensor, which Core ML does not have")
    return c.mb.tile(x=c.x(), reps=saturate(c.need(1, "repeats")))


@op("Concat")
def concat(c: Call) -> Var:
    axis = c.axis(c.attr("axis"))
    parts = [c.x(i) for i in range(len(c.node.inputs)) if 0 not in c.shape(i)]
    if not parts:
        raise Refusal("it makes an empty tensor, which Core ML does not have")
    if len(parts) == 1:
        return c.mb.identity(x=parts[0])
    if kind_of(parts[0]) == "bool":
        joined = c.mb.concat(values=[c.cast(p, "int32") for p in parts], axis=axis)
        return c.cast(joined, "bool")
    return c.mb.concat(values=parts, axis=axis)


@op("Split")
def split(c: Call) -> list[Var]:
    axis = c.axis(c.attr("axis", 0))
    sizes = [c.static(v)[axis] for v in c.node.outputs]
    if 0 in sizes:
        raise Refusal("it makes an empty tensor, which Core ML does not have")
    if len(sizes) == 1:
        return [c.mb.identity(x=c.x())]
    parts = c.mb.split(x=c.x(), split_sizes=np.array(sizes, np.int32), axis=axis)
    return list(parts)


@op("Slice")
def slice_(c: Call) -> Var:
    """Starts and ends are clamped to the axis here: int32 holds no INT64_MAX, and -1 means another thing."""
    shape, rank = c.shape(), c.rank()
    starts, ends = c.ints(1, "starts"), c.ints(2, "ends")
    axes = c.ints(3, "axes") if c.has(3) else list(range(len(starts)))
    steps = c.ints(4, "steps") if c.has(4) else [1] * len(starts)
    begin, end, stride = [0] * rank, list(shape), [1] * rank
    reverse = []
    for a, s, e, step in zip((c.axis(a) for a in axes), starts, ends, steps, strict=True):
        picked = range(*slice(s, e, step).indices(shape[a]))
        if not picked:
            raise Refusal("it makes an empty tensor, which Core ML does not have")
        low, high = min(picked), max(picked)
        begin[a], end[a], stride[a] = low, high + 1, abs(step)
        if step < 0:
            reverse.append(a)
    x = c.x()
    whole = begin == [0] * rank and end == list(shape) and stride == [1] * rank
    flags = c.open(c.value(0)) or (False,) * rank
    # to the end, wherever that is
    masks = [f and e == d for f, e, d in zip(flags, end, shape, strict=True)]
    if not whole:
        given = {"end_mask": np.array(masks)} if any(masks) else {}
        x = c.mb.slice_by_index(
            x=x, begin=np.array(begin, np.int32),
            end=np.array([0 if m else e for m, e in zip(masks, end, strict=True)], np.int32),
            stride=np.array(stride, np.int32), **given,
        )  # fmt: skip
    if reverse:
        return c.mb.reverse(x=x, axes=np.array(reverse, np.int32))
    return c.mb.identity(x=x) if whole else x


@op("DepthToSpace")
def depth_to_space(c: Call) -> Var:
    """DCR takes the block from the slow part of the channels, CRD (pixel shuffle) from the fast one."""
    n, channels, h, w = c.shape()
    b = c.attr("blocksize")
    x = c.x()
    if c.text("mode", "DCR") == "CRD" and c.is_float():
        return c.mb.pixel_shuffle(x=x, upscale_factor=b)
    inner = channels // (b * b)
    if c.text("mode", "DCR") == "DCR":
        shape, perm = (n, b, b, inner, h, w), (0, 3, 4, 1, 5, 2)
    else:
        shape, perm = (n, inner, b, b, h, w), (0, 1, 4, 2, 5, 3)
    return transposed_to(c, x, shape, perm)


@op("SpaceToDepth")
def space_to_depth(c: Call) -> Var:
    n, channels, h, w = c.shape()
    b = c.attr("blocksize")
    first = c.text("mode", "DCR") == "DCR"  # of opset 28; before it there is no other
    shape, perm = (n, channels, h // b, b, w // b, b), (0, 3, 5, 1, 2, 4)
    if not first:
        perm = (0, 1, 3, 5, 2, 4)
    return transposed_to(c, c.x(), shape, perm)


def transposed_to(c: Call, x: Var, shape: Sequence[int], perm: Sequence[int]) -> Var:
    """`x` seen as `shape` (rank 6), permuted, in the shape of the output."""
    flat = c.reshaped(x, shape)
    return c.reshaped(transposed(c, flat, shape, perm), c.out_shape())


@op("Col2Im")
def col2im(c: Call) -> Var:
    """The sum of overlapping blocks: a transposed convolution with one-hot weights."""
    c.only_float()
    image, block = c.ints(1, "image_shape"), c.ints(2, "block_shape")
    n = len(block)
    if n > 2:
        raise Refusal(
            f"it has {n} spatial dimensions; Core ML's transposed convolution has 1 or 2 here"
        )
    strides = list(c.attr("strides", (1,) * n))
    dilations = list(c.attr("dilations", (1,) * n))
    pads = c.attr("pads", (0,) * 2 * n)
    size = math.prod(block)
    batch, rows, _ = c.shape()
    channels = rows // size
    steps = [
        (image[i] + pads[i] + pads[n + i] - dilations[i] * (block[i] - 1) - 1) // strides[i] + 1
        for i in range(n)
    ]
    x = c.reshaped(c.x(), (batch * channels, size, *steps))
    weight = np.eye(size, dtype=c.numpy()).reshape(size, 1, *block)
    full = [(steps[i] - 1) * strides[i] + (block[i] - 1) * dilations[i] + 1 for i in range(n)]
    y = c.mb.conv_transpose(
        x=x, weight=weight, strides=strides, dilations=dilations, pad_type="valid"
    )
    grow = [max(0, pads[i] + image[i] - full[i]) for i in range(n)]
    if any(grow):
        spread = np.array([v for g in grow for v in (0, g)], np.int32)
        y = c.mb.pad(x=y, pad=spread, constant_val=c.like(0, y))
    y = c.mb.slice_by_index(
        x=y, begin=[0, 0, *pads[:n]],
        end=[batch * channels, 1, *(pads[i] + image[i] for i in range(n))], stride=[1] * (n + 2),
    )  # fmt: skip
    return c.reshaped(y, (batch, channels, *image))


@op("ReverseSequence")
def reverse_sequence(c: Call) -> Var:
    lengths = c.need(1, "sequence lengths").reshape(-1)
    time, batch = c.attr("time_axis", 0), c.attr("batch_axis", 1)
    shape = c.shape()
    steps = np.tile(np.arange(shape[time])[None], (shape[batch], 1))
    for b, length in enumerate(lengths):
        steps[b, : int(length)] = steps[b, : int(length)][::-1]
    if time < batch:
        steps = steps.T
    rest = [1] * len(shape)
    rest[time], rest[batch] = shape[time], shape[batch]
    index = np.broadcast_to(steps.reshape(rest), shape).astype(np.int32)
    return c.as_int(
        c.x(), lambda v: c.mb.gather_along_axis(x=v, indices=np.ascontiguousarray(index), axis=time)
    )


@op("Trilu")
def trilu(c: Call) -> Var:
    """A constant mask: band_part has no diagonal that lies outside the band."""
    k = int(c.need(1, "diagonal").reshape(())) if c.has(1) else 0
    shape = c.shape()
    k = max(min(k, shape[-1] + 1), -shape[-2] - 1)
    mask = np.ones(shape[-2:], bool)
    mask = np.triu(mask, k) if c.attr("upper", 1) else np.tril(mask, k)
    x = c.x()
    if kind_of(x) == "bool":
        return c.mb.logical_and(x=x, y=mask)
    if kind_of(x) == "int32":
        return c.mb.mul(x=x, y=mask.astype(np.int32))
    full = np.ascontiguousarray(np.broadcast_to(mask, shape))
    return c.mb.select(cond=full, a=x, b=c.constant(np.zeros(shape, c.numpy())))


@op("CenterCropPad")
def center_crop_pad(c: Call) -> Var:
    from effc.backends.coreml.convert.padding import padded

    wanted = c.ints(1, "shape")
    axes = [c.axis(a) for a in c.attr("axes", tuple(range(c.rank())))]
    pads = [(0, 0)] * c.rank()
    for a, extent in zip(axes, wanted, strict=True):
        more = extent - c.shape()[a]
        if more >= 0:
            pads[a] = (more // 2, more - more // 2)
        else:
            cut = -more
            pads[a] = (-(cut // 2), -(cut - cut // 2))
    return padded(c, c.x(), pads, "constant", 0.0)


@op("Shape", "Size")
def shape(c: Call) -> Var:
    """Static here, so a constant."""
    found = c.shape()
    if c.node.op_type == "Size":
        return c.constant(np.array(math.prod(found), np.int64))
    start, end = c.attr("start", 0), c.attr("end", len(found))
    return c.constant(np.array(found[slice(start, end)], np.int64))


@op("EyeLike")
def eye_like(c: Call) -> Var:
    rows, columns = c.shape()
    from effc.backends.coreml.convert.call import carrier

    return c.constant(np.eye(rows, columns, c.attr("k", 0)), carrier(c.node.outputs[0]))


@op("ConstantOfShape")
def constant_of_shape(c: Call) -> Var:
    from effc.backends.coreml.convert.call import carrier

    value = c.attr("value")
    number = np.zeros((), np.float32) if value is None else value.numpy().reshape(())
    return c.constant(np.full(c.out_shape(), number), carrier(c.node.outputs[0]))


@op("Range")
def range_(c: Call) -> Var:
    from effc.backends.coreml.convert.call import carrier

    start, limit, delta = (c.need(i, "range").reshape(()).item() for i in range(3))
    return c.constant(np.arange(start, limit, delta), carrier(c.node.outputs[0]))
