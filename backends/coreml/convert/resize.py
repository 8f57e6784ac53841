"""Resize, exactly: every mode and coordinate transformation is a map along each axis.

Nearest picks elements; linear, cubic and antialiased are a matrix [out, in] along each axis. Where a MIL
operator does the same (integer upsampling; bilinear with the sampling modes whose grid is ONNX's), it is
used, because it runs on the Neural Engine; everything else is a gather or a multiplication by that matrix.
Source: ONNX's specification of Resize (opset 19), and the documentation of MIL's resize_bilinear.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from effc.backends.coreml.convert.call import MAX_RANK, Call, Refusal, Var, kind_of
from effc.backends.coreml.convert.table import op

Floats = npt.NDArray[np.float64]

_BILINEAR = {
    "half_pixel": "UNALIGN_CORNERS", "pytorch_half_pixel": "UNALIGN_CORNERS",
    "half_pixel_symmetric": "UNALIGN_CORNERS", "asymmetric": "DEFAULT",
    "align_corners": "STRICT_ALIGN_CORNERS",
}  # fmt: skip


@dataclass(frozen=True)
class Axis:
    """How one axis is resized."""

    extent: int
    out: int
    scale: float
    roi: tuple[float, float] = (0.0, 1.0)


@op("Resize")
def resize(c: Call) -> Var:
    axes = _axes(c)
    mode = c.text("mode", "nearest")
    x = c.x()
    changed = [i for i, a in enumerate(axes) if not _same(c, a)]
    if not changed:
        return c.mb.identity(x=x)
    if mode == "nearest":
        return _nearest(c, x, axes, changed)
    if mode not in ("linear", "cubic"):
        raise Refusal(f"its mode {mode!r} is unknown")
    c.only_float()
    if c.open(c.value(0)):
        return _upsampled(c, x, axes)
    native = _bilinear(c, x, axes, changed) if mode == "linear" else None
    if native is not None:
        return native
    transform = c.text("coordinate_transformation_mode", "half_pixel")
    if transform == "tf_crop_and_resize":
        return _cropped(c, x, axes, changed)
    for i in changed:
        x = along(c, x, i, weights(c, axes[i]).astype(c.numpy()))
    return x


def _same(c: Call, axis: Axis) -> bool:
    """Whether an axis stays as it is."""
    if c.text("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return axis.extent == axis.out and axis.roi == (0.0, 1.0)
    return axis.extent == axis.out and axis.scale == 1.0


def _axes(c: Call) -> list[Axis]:
    rank, shape, out = c.rank(), c.shape(), c.out_shape()
    chosen = [c.axis(a) for a in c.attr("axes", tuple(range(rank)))]
    scales = [1.0] * rank
    if c.has(2) and c.need(2, "scales").size:
        for a, s in zip(chosen, c.need(2, "scales").reshape(-1), strict=True):
            scales[a] = float(s)
            whole = (float(s) * shape[a]).is_integer()
            if not whole and c.text("coordinate_transformation_mode") == "align_corners":
                raise Refusal(
                    f"align_corners with scale {float(s)} of {shape[a]} elements: runtimes disagree about "
                    "where the last one lies",
                    "give sizes instead of scales",
                )
    else:
        for a in chosen:
            scales[a] = out[a] / shape[a]
        policy = c.text("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            sizes = c.ints(3, "sizes")
            pick = min if policy == "not_larger" else max
            common = pick(s / shape[a] for a, s in zip(chosen, sizes, strict=True))
            for a in chosen:
                scales[a] = common
    roi = [(0.0, 1.0)] * rank
    if c.text("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        numbers = c.need(1, "roi").reshape(-1)
        half = len(numbers) // 2
        for a, s, e in zip(chosen, numbers[:half], numbers[half:], strict=True):
            roi[a] = (float(s), float(e))
    return [Axis(shape[i], out[i], scales[i], roi[i]) for i in range(rank)]


def coordinates(c: Call, axis: Axis) -> Floats:
    """Where each output position lies on the input axis."""
    mode = c.text("coordinate_transformation_mode", "half_pixel")
    at = np.arange(axis.out, dtype=np.float64)
    scale, size = axis.scale, axis.extent
    if mode == "align_corners":
        return at * (size - 1) / (axis.out - 1) if axis.out > 1 else np.zeros(axis.out)
    if mode == "asymmetric":
        return at / scale
    if mode == "pytorch_half_pixel":
        return (at + 0.5) / scale - 0.5 if axis.out > 1 else np.zeros(axis.out)
    if mode == "half_pixel_symmetric":
        adjustment = axis.out / (scale * size)
        centre = size / 2
        return centre * (1 - adjustment) + (at + 0.5) / scale - 0.5
    if mode == "tf_crop_and_resize":
        start, end = axis.roi
        if axis.out > 1:
            return start * (size - 1) + at * (end - start) * (size - 1) / (axis.out - 1)
        return np.full(axis.out, 0.5 * (start + end) * (size - 1))
    if mode == "half_pixel":
        return (at + 0.5) / scale - 0.5
    raise Refusal(f"its coordinate transformation {mode!r} is unknown")


def nearest_index(c: Call, axis: Axis) -> npt.NDArray[np.int32]:
    at = coordinates(c, axis)
    mode = c.text("nearest_mode", "round_prefer_floor")
    if mode == "round_prefer_floor":
        rounded = np.ceil(at - 0.5)
    elif mode == "round_prefer_ceil":
        rounded = np.floor(at + 0.5)
    else:
        rounded = np.floor(at) if mode == "floor" else np.ceil(at)
    index: npt.NDArray[np.int32] = np.clip(rounded, 0, axis.extent - 1).astype(np.int32)
    return index


def _nearest(c: Call, x: Var, axes: list[Axis], changed: list[int]) -> Var:
    if c.text("coordinate_transformation_mode") == "tf_crop_and_resize":
        value = c.attr("extrapolation_value", 0.0)
        for i in changed:
            at = coordinates(c, axes[i])
            if np.any((at < 0) | (at > axes[i].extent - 1)):
                raise Refusal(f"it crops beyond the input, where it would write {value}")
    index = {i: nearest_index(c, axes[i]) for i in changed}
    if set(changed) <= {2, 3} and len(axes) == 4 and kind_of(x) != "int32" and kind_of(x) != "bool":
        factors = [axes[i].out // axes[i].extent for i in (2, 3)]
        if all(axes[i].out == f * axes[i].extent for i, f in zip((2, 3), factors, strict=True)):
            plain = [np.arange(axes[i].out) // f for i, f in zip((2, 3), factors, strict=True)]
            if all(np.array_equal(plain[i - 2], index[i]) for i in changed):
                return c.mb.upsample_nearest_neighbor(
                    x=x, scale_factor_height=factors[0], scale_factor_width=factors[1]
                )

    def pick(v: Var) -> Var:
        for i in changed:
            v = c.mb.gather(x=v, indices=index[i], axis=i)
        return v

    return c.as_int(x, pick)


def _bilinear(c: Call, x: Var, axes: list[Axis], changed: list[int]) -> Var | None:
    """resize_bilinear where its grid is ONNX's on both axes; None elsewhere."""
    if c.attr("antialias", 0) or c.attr("exclude_outside", 0):
        return None
    mode = _BILINEAR.get(c.text("coordinate_transformation_mode", "half_pixel"))
    if mode is None or len(axes) not in (3, 4) or min(changed) < len(axes) - 2:
        return None
    last = axes[-2:]
    for axis in last:
        clamped = np.clip(coordinates(c, axis), 0, axis.extent - 1)
        if axis.out == 1 or not np.allclose(clamped, _grid(mode, axis), rtol=0, atol=1e-9):
            return None
    return c.mb.resize_bilinear(
        x=x, target_size_height=last[0].out, target_size_width=last[1].out, sampling_mode=mode
    )


def _upsampled(c: Call, x: Var, axes: list[Axis]) -> Var:
    """Bilinear by whole factors, which fit an input of any size."""
    transform = c.text("coordinate_transformation_mode", "half_pixel")
    half = transform in ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric")
    factors = [a.out // a.extent for a in axes]
    fits = (
        c.text("mode") == "linear" and len(axes) == 4 and factors[:2] == [1, 1]
        and all(f * a.extent == a.out for f, a in zip(factors, axes, strict=True))
        and not c.attr("antialias", 0) and not c.attr("exclude_outside", 0)
        and (half or transform == "align_corners")
    )  # fmt: skip
    if not fits:
        raise Refusal(
            f"it resizes ({c.text('mode')}, {transform}) {[a.extent for a in axes]} to "
            f"{[a.out for a in axes]}, which Core ML has for one size only",
            "leave sizes out, and build one function for each size",
        )
    return c.mb.upsample_bilinear(
        x=x, scale_factor_height=np.float32(factors[2]), scale_factor_width=np.float32(factors[3]),
        align_corners=not half, half_pixel_centers=half,
    )  # fmt: skip


def _grid(mode: str, axis: Axis) -> Floats:
    """The grid of MIL's sampling modes, for more than one output position."""
    at, size, out = np.arange(axis.out, dtype=np.float64), axis.extent, axis.out
    if mode == "UNALIGN_CORNERS":
        grid = (at + 0.5) * size / out - 0.5
    elif mode == "DEFAULT":
        grid = at * (size - size / out) / (out - 1)
    else:
        grid = at * (size - 1) / (out - 1)
    return np.clip(grid, 0, size - 1)


def weights(c: Call, axis: Axis) -> Floats:
    """The matrix [out, in] of linear or cubic interpolation along one axis."""
    cubic = c.text("mode") == "cubic"
    a = float(c.attr("cubic_coeff_a", -0.75))
    stretch = min(1.0, axis.scale) if c.attr("antialias", 0) else 1.0
    support = (2.0 if cubic else 1.0) / stretch
    matrix = np.zeros((axis.out, axis.extent))
    for row, centre in enumerate(coordinates(c, axis)):
        low = int(np.floor(centre - support)) + 1
        taps = np.arange(low, low + int(np.ceil(2 * support)) + 1)
        distance = np.abs(taps - centre) * stretch
        weight = _cubic(distance, a) if cubic else np.maximum(0.0, 1.0 - distance)
        if c.attr("exclude_outside", 0):
            weight = np.where((taps < 0) | (taps >= axis.extent), 0.0, weight)
        if c.attr("antialias", 0) or c.attr("exclude_outside", 0):
            weight = weight / weight.sum()
        np.add.at(matrix[row], np.clip(taps, 0, axis.extent - 1), weight)
    return matrix


def _cubic(d: Floats, a: float) -> Floats:
    """Keys, Cubic convolution interpolation for digital image processing, 1981."""
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def _cropped(c: Call, x: Var, axes: list[Axis], changed: list[int]) -> Var:
    """tf_crop_and_resize: what lies outside the input is the extrapolation value."""
    outside = np.zeros((), bool)
    for i, axis in enumerate(axes):
        at = coordinates(c, axis) if i in changed else np.zeros(axis.out)
        out = (at < 0) | (at > axis.extent - 1)
        outside = outside[..., None] | out
    for i in changed:
        x = along(c, x, i, weights(c, axes[i]).astype(c.numpy()))
    if not outside.any():
        return x
    value = c.constant(np.full(outside.shape, c.attr("extrapolation_value", 0.0)), kind_of(x))
    return c.mb.select(cond=outside, a=value, b=x)


def along(c: Call, x: Var, axis: int, matrix: np.ndarray) -> Var:
    """x times `matrix` [out, in] along one axis."""
    rank = len(x.shape)
    if rank > MAX_RANK:
        raise Refusal(f"its input has rank {rank}, and Core ML takes at most {MAX_RANK}")
    if axis == rank - 1:
        return c.mb.linear(x=x, weight=matrix) if rank > 1 else _vector(c, x, matrix)
    if axis == rank - 2:
        return c.mb.matmul(x=c.constant(matrix[(None,) * (rank - 2)]), y=x)
    perm = [i for i in range(rank) if i != axis] + [axis]
    y = c.mb.linear(x=c.mb.transpose(x=x, perm=perm), weight=matrix)
    return c.mb.transpose(x=y, perm=list(np.argsort(perm)))


def _vector(c: Call, x: Var, matrix: np.ndarray) -> Var:
    y = c.mb.linear(x=c.mb.expand_dims(x=x, axes=[0]), weight=matrix)
    return c.mb.squeeze(x=y, axes=[0])


@op("Upsample")
def upsample(c: Call) -> Var:
    """The old form, in models that were not brought to a new opset."""
    raise Refusal("Upsample is deprecated", "convert the model to opset 10 or newer")
