"""Gather and scatter. From iOS 17 on indices are not negative, so negative ones are moved up here."""

from __future__ import annotations

import numpy as np

from effc.backends.coreml.convert.call import Call, Refusal, Var
from effc.backends.coreml.convert.table import op


def upward(c: Call, index: int, extent: int | np.ndarray) -> Var:
    """The indices of an input, negative ones counted from the end."""
    array = c.const(index)
    if array is not None:
        moved = np.where(array < 0, array.astype(np.int64) + extent, array)
        if np.any(moved < 0) or np.any(moved >= extent):
            raise Refusal("an index lies outside of its axis", "correct the constant indices")
        return c.constant(moved)
    indices = c.x(index)
    size = np.asarray(extent, np.int32)
    below = c.mb.cast(x=c.mb.less(x=indices, y=np.int32(0)), dtype="int32")
    return c.mb.add(x=indices, y=c.mb.mul(x=below, y=size if size.ndim else np.int32(size)))


@op("Gather")
def gather(c: Call) -> Var:
    """A scalar index picks a slice, and its axis goes."""
    axis = c.axis(c.attr("axis", 0))
    scalar = c.rank(1) == 0
    indices = c.at_least_1d(upward(c, 1, c.shape()[axis]))
    if c.rank() + c.rank(1) - 1 > 5:
        raise Refusal(
            f"its result has rank {c.rank() + c.rank(1) - 1}, and Core ML takes at most 5"
        )
    several = len(indices.shape) > 1
    shape = c.out_shape()

    def pick(x: Var) -> Var:
        flat = c.reshaped(indices, (int(np.prod(indices.shape)),)) if several else indices
        return c.mb.gather(x=x, indices=flat, axis=axis)

    result = c.as_int(c.x(), pick)
    return c.reshaped(result, shape) if several or scalar else result


@op("GatherElements")
def gather_elements(c: Call) -> Var:
    """MIL wants indices as large as the data but for the axis; the rest of the data is cut off."""
    axis = c.axis(c.attr("axis", 0))
    shape, wanted = c.shape(), c.shape(1)
    indices = upward(c, 1, shape[axis])
    x = c.x()
    end = [d if i == axis else w for i, (d, w) in enumerate(zip(shape, wanted, strict=True))]
    if tuple(end) != shape:
        x = c.mb.slice_by_index(x=x, begin=[0] * len(end), end=end, stride=[1] * len(end))
    return c.as_int(x, lambda v: c.mb.gather_along_axis(x=v, indices=indices, axis=axis))


@op("GatherND")
def gather_nd(c: Call) -> Var:
    batch = c.attr("batch_dims", 0)
    depth = c.shape(1)[-1]
    extent = np.array(c.shape()[batch : batch + depth], np.int64)
    indices = upward(c, 1, extent)
    result = c.as_int(c.x(), lambda v: c.mb.gather_nd(x=v, indices=indices, batch_dims=batch))
    return c.reshaped(result, c.out_shape())


_MODES = {"none": "update", "add": "add", "mul": "mul", "max": "max", "min": "min"}


def _mode(c: Call) -> str:
    if (
        c.attr("reduction") is not None
        and c.text("reduction") != "none"
        and c.dtype().name == "BOOL"
    ):
        raise Refusal("it combines booleans")
    c_mode = c.text("reduction", "none")
    if c_mode not in ("none", "max", "min"):
        c.no_wrap()
    return _MODES[c_mode]


@op("ScatterElements")
def scatter_elements(c: Call) -> Var:
    """MIL wants updates as large as the data but for the axis: others are written through ScatterND."""
    axis = c.axis(c.attr("axis", 0))
    shape, part = c.shape(), c.shape(1)
    mode, indices = _mode(c), upward(c, 1, shape[axis])
    same = all(d == p for i, (d, p) in enumerate(zip(shape, part, strict=True)) if i != axis)
    if same:
        return c.as_pair(
            lambda x, u: c.mb.scatter_along_axis(
                data=x, indices=indices, updates=u, axis=axis, mode=mode
            )
        )
    grid = np.stack(np.meshgrid(*(np.arange(p) for p in part), indexing="ij"), -1).astype(np.int32)
    columns = [
        c.mb.expand_dims(x=indices, axes=[len(part)])
        if i == axis
        else c.constant(grid[..., i : i + 1])
        for i in range(len(part))
    ]
    if len(part) + 1 > 5:
        raise Refusal(f"its indices get rank {len(part) + 1}, and Core ML takes at most 5")
    full = c.mb.concat(values=columns, axis=len(part)) if len(columns) > 1 else columns[0]
    return c.as_pair(lambda x, u: c.mb.scatter_nd(data=x, indices=full, updates=u, mode=mode))


@op("ScatterND")
def scatter_nd(c: Call) -> Var:
    depth = c.shape(1)[-1]
    indices = upward(c, 1, np.array(c.shape()[:depth], np.int64))
    mode = _mode(c)
    return c.as_pair(lambda x, u: c.mb.scatter_nd(data=x, indices=indices, updates=u, mode=mode))


@op("TensorScatter")
def tensor_scatter(c: Call) -> Var:
    raise Refusal("it updates a cache in place", "use ScatterND")


@op("OneHot")
def one_hot(c: Call) -> Var:
    """Indices out of range give only the off value, negative ones count from the end."""
    depth = int(c.need(1, "depth").reshape(()))
    off, on = c.need(2, "values").reshape(-1)
    rank = c.rank() + 1
    if rank > 5:
        raise Refusal(f"its result has rank {rank}, and Core ML takes at most 5")
    axis = c.attr("axis", -1)
    axis = axis + rank if axis < 0 else axis
    indices = c.cast(c.x(), "int32")
    indices = c.mb.add(
        x=indices,
        y=c.mb.mul(x=c.cast(c.mb.less(x=indices, y=np.int32(0)), "int32"), y=np.int32(depth)),
    )
    place = [1] * rank
    place[axis] = depth
    classes = np.arange(depth, dtype=np.int32).reshape(place)
    hit = c.mb.equal(x=c.mb.expand_dims(x=indices, axes=[axis]), y=classes)
    kind = c.carrier(2)
    if kind == "bool":
        hit = c.cast(hit, "int32")
        picked = c.mb.add(x=c.mb.mul(x=hit, y=np.int32(int(on) - int(off))), y=np.int32(int(off)))
        return c.cast(picked, "bool")
    shape = c.out_shape()
    a, b = (c.constant(np.full(shape, v), kind) for v in (on, off))
    return c.mb.select(cond=hit, a=a, b=b)


@op("NonZero")
def non_zero(c: Call) -> Var:
    """[K, rank] in MIL, [rank, K] in ONNX; K is known only when it runs."""
    raise Refusal(
        "how many elements it finds is known only at run time, and an artifact has static shapes",
        "cut the model before it",
    )
