"""Heads of detectors: TopK, NonMaxSuppression, RoiAlign, GridSample."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from effc.backends.coreml.convert.call import Call, Refusal, Var
from effc.backends.coreml.convert.table import op


@op("TopK")
def topk(c: Call) -> tuple[Var, Var]:
    """Of equals ONNX takes the lower index first, as MIL's sort does."""
    k = int(c.need(1, "k").reshape(()))
    axis = c.axis(c.attr("axis", -1))
    if k == 0:
        raise Refusal("it takes nothing: k is 0")
    if c.dtype() in (ir.DataType.UINT64, ir.DataType.UINT32):
        c.no_wrap()
    values, indices = c.mb.topk(x=c.x(), k=k, axis=axis, ascending=not c.attr("largest", 1))
    return values, indices


@op("NonMaxSuppression")
def non_max_suppression(c: Call) -> Var:
    raise Refusal(
        "how many boxes it keeps is known only at run time, and Core ML's own operator pads to a fixed "
        "number",
        "cut the model before it and suppress in the application, which Vision does in a few lines",
    )


@op("GridSample")
def grid_sample(c: Call) -> Var:
    """MIL's resample takes the grid in ONNX's normalized coordinates (x, y in -1..1)."""
    c.only_float()
    if c.rank() != 4:
        raise Refusal(f"it has {c.rank() - 2} spatial dimensions; Core ML has 2")
    mode = {"linear": "bilinear", "bilinear": "bilinear", "nearest": "nearest"}.get(
        c.text("mode", "linear")
    )
    if mode is None:
        raise Refusal("it interpolates with cubics; Core ML has bilinear and nearest")
    align = bool(c.attr("align_corners", 0))
    padding = {"zeros": "constant", "border": "border", "reflection": "reflection"}[
        c.text("padding_mode", "zeros")
    ]
    if padding == "reflection" and not align:
        padding = "symmetric"
    x = c.x()
    return c.mb.resample(
        x=x, coordinates=c.x(1), sampling_mode=mode, padding_mode=padding,
        padding_value=c.like(0, x), coordinates_mode="normalized_minus_one_to_one",
        align_corners=align,
    )  # fmt: skip


@op("AffineGrid")
def affine_grid(c: Call) -> Var:
    """theta [N, 2, 3] times the grid of (x, y, 1)."""
    c.only_float()
    size = c.ints(1, "size")
    if len(size) != 4:
        raise Refusal("it is of volumes; only pictures are spelled out")
    n, _, h, w = size

    def line(extent: int) -> np.ndarray:
        if c.attr("align_corners", 0):
            return np.linspace(-1, 1, extent) if extent > 1 else np.zeros(1)
        return (np.arange(extent) * 2 + 1) / extent - 1

    ys, xs = np.meshgrid(line(h), line(w), indexing="ij")
    grid = np.stack([xs, ys, np.ones_like(xs)], -1).reshape(1, h * w, 3).astype(c.numpy())
    y = c.mb.matmul(x=np.repeat(grid, n, 0), y=c.x(), transpose_y=True)
    return c.reshaped(y, (n, h, w, 2))
