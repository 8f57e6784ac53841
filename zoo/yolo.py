"""A one-stage detector: two scales, a top-down path, a decoupled head, boxes in one tensor."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from effc.zoo.builder import Builder, extent
from effc.zoo.member import Member, batch_size

_CLASSES = 4


def build(seed: int = 0, batch: int = 1) -> ir.Model:
    """Output `boxes` [N, 80, 4 + classes]: centre, size in pixels, class scores in 0..1."""
    net = Builder("tiny-yolo", seed)
    image = net.input("image", (batch_size(batch), 3, 64, 64))
    x = _unit(net, image, 8, 2)
    x = _unit(net, x, 16, 2)
    fine = _csp(net, _unit(net, x, 24, 2))
    coarse = _csp(net, _unit(net, fine, 32, 2))
    up = net.upsample(_unit(net, coarse, 24, 1, kernel=1), 2)
    fine = _csp(net, net.concat(up, fine))
    levels = [_head(net, fine, 8), _head(net, coarse, 16)]
    net.output(net.concat(*levels), "boxes")
    return net.model()


def _unit(net: Builder, x: ir.Value, channels: int, stride: int, kernel: int = 3) -> ir.Value:
    return net.silu(net.batch_norm(net.conv(x, channels, kernel, stride)))


def _csp(net: Builder, x: ir.Value) -> ir.Value:
    """Half of the channels go through a bottleneck (Wang et al., arXiv:1911.11929)."""
    channels = extent(x, 1)
    half = channels // 2
    left, right = net.split(_unit(net, x, half * 2, 1, kernel=1), half, half)
    inner = net.op("Add", right, _unit(net, _unit(net, right, half, 1), half, 1))
    return _unit(net, net.concat(left, right, inner), half * 2, 1, kernel=1)


def _head(net: Builder, x: ir.Value, stride: int) -> ir.Value:
    size = extent(x, 2)
    raw = net.conv(_unit(net, x, 16, 1), 4 + _CLASSES, 1, bias=True)
    flat = net.transpose(net.reshape(raw, 0, 4 + _CLASSES, size * size), 0, 2, 1)
    centre, extents, scores = net.split(net.op("Sigmoid", flat), 2, 2, _CLASSES, axis=2)
    rows, columns = np.mgrid[:size, :size]
    grid = np.stack([columns, rows], -1).reshape(1, -1, 2).astype(np.float32)
    centre = net.op("Add", net.op("Mul", centre, net.scalar(2)), net.constant(grid - 0.5, "grid"))
    centre = net.op("Mul", centre, net.scalar(stride))
    extents = net.op("Pow", net.op("Mul", extents, net.scalar(2)), net.scalar(2))
    extents = net.op("Mul", extents, net.scalar(stride * 4))
    return net.concat(centre, extents, scores, axis=2)


YOLO = Member(
    "tiny-yolo", "detector with two scales, a resize, and box decoding in the graph",
    (1, 3, 64, 64), 53580, "Redmon et al., 2016, arXiv:1506.02640; Ge et al., arXiv:2107.08430", build,
)  # fmt: skip
