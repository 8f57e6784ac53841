"""Resize by index and weight: every mode of ONNX, axis by axis; and sampling on a grid."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from effc.core.torch_module.op import Function, Op, axis_of


def _resize(
    op: Op,
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    if op.opset < 11 and roi is not None:  # Resize-10 is (x, scales)
        roi, scales = None, roi
    axes = [axis_of(a, x.ndim) for a in op.get("axes") or range(x.ndim)]
    if scales is not None and scales.numel() == 0:
        scales = None
    if sizes is not None and sizes.numel() == 0:
        sizes = None
    wanted = _extents(op, x, axes, scales, sizes)
    whole = _crops(op, x.ndim, axes, roi)
    outside: dict[int, Any] = {}
    y = x
    for axis, (size, scale) in wanted.items():
        crop = whole.get(axis, (0.0, 1.0))
        if size == x.shape[axis] and scale == 1 and crop == (0.0, 1.0):
            continue
        positions = _positions(op, size, x.shape[axis], scale, crop)
        if op.get("coordinate_transformation_mode") == "tf_crop_and_resize":
            outside[axis] = (positions < 0) | (positions > x.shape[axis] - 1)
        index, weight = _taps(op, positions, x.shape[axis], scale)
        y = _combine(y, axis, index, weight)
    for axis, hidden in outside.items():
        shape = [1] * y.ndim
        shape[axis] = -1
        mask = torch.from_numpy(hidden).reshape(shape)
        y = y.masked_fill(mask, op.get("extrapolation_value", 0.0))
    return y


def _extents(
    op: Op, x: Tensor, axes: list[int], scales: Tensor | None, sizes: Tensor | None
) -> dict[int, tuple[int, float]]:
    """An axis -> its new extent and its scale."""
    if sizes is None:
        factors = [float(s) for s in (scales.tolist() if scales is not None else op.get("scales"))]
        return {a: (math.floor(x.shape[a] * s), s) for a, s in zip(axes, factors, strict=True)}
    wanted = [int(n) for n in sizes.tolist()]
    policy = op.get("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return {a: (n, n / x.shape[a]) for a, n in zip(axes, wanted, strict=True)}
    choose = min if policy == "not_larger" else max
    scale = choose(n / x.shape[a] for a, n in zip(axes, wanted, strict=True))
    return {a: (math.floor(scale * x.shape[a] + 0.5), scale) for a in axes}


def _crops(
    op: Op, rank: int, axes: list[int], roi: Tensor | None
) -> dict[int, tuple[float, float]]:
    if op.get("coordinate_transformation_mode") != "tf_crop_and_resize" or roi is None:
        return {}
    numbers = [float(v) for v in roi.tolist()]
    half = len(numbers) // 2
    places = axes if half == len(axes) else list(range(rank))
    return {a: (numbers[i], numbers[i + half]) for i, a in enumerate(places)}


def _positions(op: Op, size: int, old: int, scale: float, crop: tuple[float, float]) -> Any:
    """Where in the input each output element lies."""
    default = "half_pixel" if op.opset >= 11 else "asymmetric"
    mode = op.get("coordinate_transformation_mode", default)
    at = np.arange(size, dtype=np.float64)
    if mode == "half_pixel":
        return (at + 0.5) / scale - 0.5
    if mode == "half_pixel_symmetric":
        adjust = size / (scale * old)
        return old / 2 * (1 - adjust) + (at + 0.5) / scale - 0.5
    if mode == "pytorch_half_pixel":
        return (at + 0.5) / scale - 0.5 if size > 1 else at * 0
    if mode == "align_corners":
        return at * ((old - 1) / (size - 1)) if size > 1 else at * 0
    if mode == "asymmetric":
        return at / scale
    begin, end = crop  # tf_crop_and_resize
    if size > 1:
        return begin * (old - 1) + at * ((end - begin) * (old - 1) / (size - 1))
    return at * 0 + 0.5 * (begin + end) * (old - 1)


def _taps(op: Op, positions: Any, old: int, scale: float) -> tuple[Any, Any]:
    """Which input elements each output element weighs, and by how much: [size, taps] each."""
    mode = op.get("mode", "nearest")
    if mode == "nearest":
        default = "round_prefer_floor" if op.opset >= 11 else "floor"
        choices: dict[str, Callable[[Any], Any]] = {
            "round_prefer_floor": lambda p: np.ceil(p - 0.5),
            "round_prefer_ceil": lambda p: np.floor(p + 0.5),
            "floor": np.floor,
            "ceil": np.ceil,
        }
        rounding = choices[op.get("nearest_mode", default)]
        # thirds of pixels are not exact: a hair off a half must not choose the other neighbour
        index = rounding(np.round(positions, 9)).astype(np.int64)
        return index.clip(0, old - 1)[:, None], np.ones((len(positions), 1))
    shrink = min(scale, 1.0) if op.get("antialias", 0) else 1.0
    reach = (1 if mode in ("linear", "bilinear") else 2) / shrink
    first = np.floor(positions - reach).astype(np.int64) + 1
    index = first[:, None] + np.arange(math.ceil(2 * reach))[None, :]
    distance = np.abs(index - positions[:, None]) * shrink
    if mode in ("linear", "bilinear"):
        weight = np.clip(1 - distance, 0, None)
    else:
        weight = _cubic(distance, op.get("cubic_coeff_a", -0.75))
    if op.get("exclude_outside", 0):
        weight = weight * ((index >= 0) & (index < old))
    weight = weight / weight.sum(1, keepdims=True)
    return index.clip(0, old - 1), weight


def _cubic(d: Any, a: float) -> Any:
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def _combine(x: Tensor, axis: int, index: Any, weight: Any) -> Tensor:
    total: Tensor | None = None
    shape = [1] * x.ndim
    shape[axis] = -1
    for tap in range(index.shape[1]):
        part = x.index_select(axis, torch.from_numpy(index[:, tap].copy()))
        if index.shape[1] > 1:
            part = part * torch.from_numpy(weight[:, tap].copy()).to(x.dtype).reshape(shape)
        total = part if total is None else total + part
    assert total is not None
    return total


def _grid_sample(op: Op, x: Tensor, grid: Tensor) -> Tensor:
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(op.get("mode", "linear"), op.get("mode"))
    return F.grid_sample(
        x,
        grid,
        mode=mode or "bilinear",
        padding_mode=op.get("padding_mode", "zeros"),
        align_corners=bool(op.get("align_corners", 0)),
    )


def _affine_grid(op: Op, theta: Tensor, size: Tensor) -> Tensor:
    return F.affine_grid(
        theta, [int(v) for v in size.tolist()], align_corners=bool(op.get("align_corners", 0))
    )


TABLE: dict[str, Function] = {
    "Resize": _resize,
    "Upsample": lambda op, x, scales=None: _resize(op, x, None, scales),
    "GridSample": _grid_sample,
    "AffineGrid": _affine_grid,
}
