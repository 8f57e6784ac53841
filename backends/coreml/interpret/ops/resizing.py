"""Resizing and sampling of images.

Where pixels are picked rather than mixed, Apple's documentation gives no grid. coremltools' TensorFlow
frontend and its tests on macOS fix two: `upsample_nearest_neighbor` takes floor(i * in / out),
`resize_nearest_neighbor` and iOS 17's `resize` with DEFAULT take floor((i + 0.5) * in / out). Other
sampling modes of NEAREST_NEIGHBOR are refused.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from effc.backends.coreml.interpret.ops.registry import Undefined, op
from effc.core.measure import Array


def grid(size: int, out: int, mode: str, extent: float | None = None) -> Array:
    """Positions in [0, size - 1] of `out` samples; `extent` (default size - 1) is the last position."""
    last = float(size - 1) if extent is None else extent
    i = np.arange(out, dtype=np.float64)
    if mode == "ALIGN_CORNERS" and out == 1:
        return np.array([last / 2])
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        return i * (last / (out - 1) if out > 1 else 0.0)
    if mode == "DEFAULT":
        points = i * ((last + 1) / out)
    elif mode == "OFFSET_CORNERS":
        delta = max(1.0, last) / out
        points = 0.5 * delta + i * delta
        if extent is not None:  # of a box: RoI Align's bins, at least one pixel together
            return points
    elif mode == "UNALIGN_CORNERS":
        spacing = (last + 1) / out
        points = i * spacing + 0.5 * spacing - 0.5
    else:
        raise Undefined(f"sampling_mode {mode!r}")
    return points if last < 0 else np.clip(points, 0, last)


def interpolate(x: Array, axis: int, points: Array) -> Array:
    """Linear interpolation of `x` along `axis` at positions within [0, size - 1]."""
    size = x.shape[axis]
    low = np.clip(np.floor(points).astype(np.int64), 0, size - 1)
    high = np.minimum(low + 1, size - 1)
    shape = [1] * x.ndim
    shape[axis] = -1
    weight = (points - low).astype(np.float32).reshape(shape)
    a, b = np.take(x, low, axis=axis), np.take(x, high, axis=axis)
    return (a * (1 - weight) + b * weight).astype(x.dtype)


def _bilinear(x: Array, height: int, width: int, mode: str) -> Array:
    x = interpolate(x, x.ndim - 2, grid(x.shape[-2], height, mode))
    return interpolate(x, x.ndim - 1, grid(x.shape[-1], width, mode))


def _pick(x: Array, axis: int, out: int, half: float) -> Array:
    size = x.shape[axis]
    # exact: (2 i + 2 half) * size // (2 out)
    index = (2 * np.arange(out) + int(2 * half)) * size // (2 * out)
    return np.take(x, np.minimum(index, size - 1), axis=axis)


@op("upsample_nearest_neighbor")
def upsample_nearest_neighbor(
    x: Array, scale_factor_height: Array | float = 1, scale_factor_width: Array | float = 1
) -> Array:
    height = int(np.floor(x.shape[-2] * float(scale_factor_height)))
    width = int(np.floor(x.shape[-1] * float(scale_factor_width)))
    return _pick(_pick(x, -2, height, 0.0), -1, width, 0.0)


@op("resize_nearest_neighbor")
def resize_nearest_neighbor(x: Array, target_size_height: Array, target_size_width: Array) -> Array:
    return _pick(_pick(x, -2, int(target_size_height), 0.5), -1, int(target_size_width), 0.5)


@op("upsample_bilinear")
def upsample_bilinear(
    x: Array,
    scale_factor_height: Array | float = 1,
    scale_factor_width: Array | float = 1,
    align_corners: Array | bool = True,
    half_pixel_centers: Array | bool | None = None,
) -> Array:
    """The scale is recomputed from the output's size (PyTorch's recompute_scale_factor=True)."""
    height = int(np.floor(x.shape[-2] * float(scale_factor_height)))
    width = int(np.floor(x.shape[-1] * float(scale_factor_width)))
    half = not align_corners if half_pixel_centers is None else bool(half_pixel_centers)
    if align_corners and half:
        raise Undefined("align_corners together with half_pixel_centers")
    if align_corners:
        return _bilinear(x, height, width, "STRICT_ALIGN_CORNERS")
    return _bilinear(x, height, width, "UNALIGN_CORNERS" if half else "DEFAULT")


@op("resize_bilinear")
def resize_bilinear(
    x: Array,
    target_size_height: Array | int = 1,
    target_size_width: Array | int = 1,
    sampling_mode: str = "DEFAULT",
) -> Array:
    return _bilinear(x, int(target_size_height), int(target_size_width), sampling_mode)


@op("resize", since=17)
def resize(
    x: Array,
    shape: Array,
    resized_dims: Array,
    interpolation_mode: str = "LINEAR",
    sampling_mode: str = "DEFAULT",
) -> Array:
    """The last `resized_dims` entries of `shape` are the new sizes; 0 keeps a size."""
    count = int(resized_dims)
    if count > len(shape) or len(shape) > x.ndim:
        raise Undefined(f"{count} of {len(shape)} sizes for rank {x.ndim}")
    kind = x.dtype
    for axis in range(x.ndim - count, x.ndim):
        out = int(shape[axis - x.ndim]) or x.shape[axis]
        if interpolation_mode == "NEAREST_NEIGHBOR":
            if sampling_mode != "DEFAULT":
                raise Undefined(f"NEAREST_NEIGHBOR with sampling_mode {sampling_mode!r}")
            x = _pick(x, axis, out, 0.5)
        elif interpolation_mode == "LINEAR":
            if kind.kind != "f" and out != x.shape[axis]:
                raise Undefined("LINEAR of integers: no rounding is documented")
            x = interpolate(x, axis, grid(x.shape[axis], out, sampling_mode))
        else:
            raise Undefined(f"interpolation_mode {interpolation_mode!r}")
    return x


@op("crop")
def crop(x: Array, crop_height: Array, crop_width: Array) -> Array:
    top, bottom = (int(v) for v in crop_height)
    left, right = (int(v) for v in crop_width)
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


def _corners(box: Array, mode: str) -> tuple[float, float, float, float]:
    """Rows from, to, columns from, to."""
    a, b, c, d = (float(v) for v in box)
    if mode.endswith("WIDTH_FIRST"):
        a, b, c, d = b, a, d, c
    if mode.startswith("CENTER_SIZE"):
        return a - c / 2, a + c / 2, b - d / 2, b + d / 2
    if not mode.startswith("CORNERS"):
        raise Undefined(f"box_coordinate_mode {mode!r}")
    return a, c, b, d


def _crops(
    images: list[Array],
    boxes: Array,
    target: tuple[int, int],
    normalized: bool,
    scale: float,
    box_mode: str,
    sampling_mode: str,
    pad_value: float | None,
) -> list[Array]:
    """images[i] [*, h, w] cut at boxes[i] and resized; without `pad_value` the border goes on."""
    results = []
    for image, box in zip(images, boxes, strict=True):
        top, bottom, left, right = (v * scale for v in _corners(box, box_mode))
        for axis, first, last, out in ((-2, top, bottom, target[0]), (-1, left, right, target[1])):
            size = image.shape[axis]
            if normalized:
                first, last = first * (size - 1), last * (size - 1)
            points = first + grid(size, out, sampling_mode, last - first)
            outside = (points < 0) | (points > size - 1)
            image = interpolate(image, image.ndim + axis, np.clip(points, 0, size - 1))
            if pad_value is not None and outside.any():
                where = outside[:, None] if axis == -2 else outside
                image = np.where(where, np.float32(pad_value), image)
        results.append(image)
    return results


@op("crop_resize")
def crop_resize(
    x: Array,
    roi: Array,
    target_height: Array | int = 1,
    target_width: Array | int = 1,
    normalized_coordinates: Array | bool = False,
    spatial_scale: Array | float = 1.0,
    box_coordinate_mode: str = "CORNERS_HEIGHT_FIRST",
    sampling_mode: str = "DEFAULT",
    pad_value: Array | float | None = None,
) -> Array:
    """roi [n, 1, 4, 1, 1]: each box of each image; [n, 1, 5, 1, 1]: image index first."""
    boxes = roi.reshape(roi.shape[0], roi.shape[2])
    target = (int(target_height), int(target_width))
    options = (
        bool(normalized_coordinates),
        float(spatial_scale),
        box_coordinate_mode,
        sampling_mode,
        None if pad_value is None else float(pad_value),
    )
    if boxes.shape[1] == 4:
        return np.stack(_crops([x] * len(boxes), boxes, target, *options))
    images = [x[_index(b[0], x.shape[0])][None] for b in boxes]
    return np.stack(_crops(images, boxes[:, 1:], target, *options))


@op("crop_resize", since=16)
def crop_resize_padded(x: Array, roi: Array, **options: Any) -> Array:
    return crop_resize(x, roi, **{"pad_value": 0.0, **options})


@op("crop_resize", since=17)
def crop_resize_boxes(
    x: Array,
    boxes: Array,
    box_indices: Array | None = None,
    target_height: Array | int = 1,
    target_width: Array | int = 1,
    normalized_coordinates: Array | bool = False,
    spatial_scale: Array | float = 1.0,
    box_coordinate_mode: str = "CORNERS_HEIGHT_FIRST",
    sampling_mode: str = "DEFAULT",
    pad_value: Array | float = 0.0,
) -> Array:
    """boxes [n, 4], box_indices [n] -> [n, c, target_height, target_width]."""
    indices = range(len(boxes)) if box_indices is None else box_indices
    return np.stack(
        _crops(
            [x[_index(i, x.shape[0])] for i in indices],
            boxes,
            (int(target_height), int(target_width)),
            bool(normalized_coordinates),
            float(spatial_scale),
            box_coordinate_mode,
            sampling_mode,
            float(pad_value),
        )
    )


def _index(value: Any, size: int) -> int:
    if not 0 <= int(value) < size:
        raise Undefined(f"image {int(value)} of {size}")
    return int(value)


def _reflected(index: Array, size: int, mode: str) -> Array:
    """Where an index beyond the borders falls back into [0, size)."""
    if mode == "border":
        return np.clip(index, 0, size - 1)
    if mode == "symmetric":
        period = index % (2 * size)
        return np.where(period < size, period, 2 * size - 1 - period)
    if mode == "reflection":
        if size == 1:
            return np.zeros_like(index)
        period = index % (2 * size - 2)
        return np.where(period < size, period, 2 * size - 2 - period)
    raise Undefined(f"padding_mode {mode!r}")


def sample(x: Array, px: Array, py: Array, nearest: bool, mode: str, value: float) -> Array:
    """x [b, c, h, w] at unnormalized positions px, py [b, h2, w2], as if padded endlessly by `mode`."""
    height, width = x.shape[-2:]

    def pixel(ix: Array, iy: Array) -> Array:
        if mode == "constant":
            inside = (ix >= 0) & (ix < width) & (iy >= 0) & (iy < height)
            rows, columns = np.clip(iy, 0, height - 1), np.clip(ix, 0, width - 1)
        else:
            inside = None
            rows, columns = _reflected(iy, height, mode), _reflected(ix, width, mode)
        images = np.arange(x.shape[0])[:, None, None]
        found = x[images, :, rows, columns]  # [b, h2, w2, c]
        if inside is not None:
            found = np.where(inside[..., None], found, np.float32(value))
        return found.transpose(0, 3, 1, 2)

    if nearest:
        return pixel(np.rint(px).astype(np.int64), np.rint(py).astype(np.int64))
    left, top = np.floor(px).astype(np.int64), np.floor(py).astype(np.int64)
    wx = (px - left).astype(np.float32)[:, None]
    wy = (py - top).astype(np.float32)[:, None]
    upper = pixel(left, top) * (1 - wx) + pixel(left + 1, top) * wx
    lower = pixel(left, top + 1) * (1 - wx) + pixel(left + 1, top + 1) * wx
    return (upper * (1 - wy) + lower * wy).astype(x.dtype)


def _position(c: Array, size: int, mode: str, align_corners: bool) -> Array:
    c = c.astype(np.float64)
    if mode == "unnormalized":
        return c
    if mode == "normalized_minus_one_to_one":
        c = (c + 1) / 2
    elif mode != "normalized_zero_to_one":
        raise Undefined(f"coordinates_mode {mode!r}")
    return c * (size - 1) if align_corners else c * size - 0.5


@op("resample")
def resample(
    x: Array,
    coordinates: Array,
    sampling_mode: str,
    padding_mode: str,
    padding_value: Array,
    coordinates_mode: str,
    align_corners: Array,
) -> Array:
    """x [b, c, h, w], coordinates [b, h2, w2, 2] as (x, y)."""
    if sampling_mode not in ("bilinear", "nearest"):
        raise Undefined(f"sampling_mode {sampling_mode!r}")
    px = _position(coordinates[..., 0], x.shape[3], coordinates_mode, bool(align_corners))
    py = _position(coordinates[..., 1], x.shape[2], coordinates_mode, bool(align_corners))
    nearest = sampling_mode == "nearest"
    return sample(x, px, py, nearest, padding_mode, float(padding_value))


@op("affine")
def affine(
    x: Array,
    transform_matrix: Array,
    output_height: Array,
    output_width: Array,
    sampling_mode: str,
    padding_mode: str,
    padding_value: Array,
    coordinates_mode: str,
    align_corners: Array,
) -> Array:
    """x [b, c, h, w]; transform_matrix [b or 1, 6] as a0 a1 a2 b0 b1 b2 over coordinates in [-1, 1]."""
    if (sampling_mode, padding_mode) != ("bilinear", "constant") or not align_corners:
        raise Undefined(
            "only bilinear sampling, constant padding and aligned corners are documented"
        )
    if coordinates_mode != "normalized_minus_one_to_one" or float(padding_value) != 0:
        raise Undefined("only coordinates in [-1, 1] and zero padding are documented")
    height, width = int(output_height), int(output_width)
    u = np.linspace(-1, 1, width)[None, None, :]
    v = np.linspace(-1, 1, height)[None, :, None]
    m = np.broadcast_to(transform_matrix, (x.shape[0], 6)).astype(np.float64)[:, :, None, None]
    px = _position(m[:, 0] * u + m[:, 1] * v + m[:, 2], x.shape[3], coordinates_mode, True)
    py = _position(m[:, 3] * u + m[:, 4] * v + m[:, 5], x.shape[2], coordinates_mode, True)
    return sample(x, px, py, False, "constant", 0.0)
