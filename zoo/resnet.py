"""Residual networks."""

from __future__ import annotations

import onnx_ir as ir

from effc.zoo.builder import Builder, extent
from effc.zoo.member import Member, batch_size


def build(seed: int = 0, batch: int = 1) -> ir.Model:
    net = Builder("tiny-resnet", seed)
    x = net.input("image", (batch_size(batch), 3, 32, 32))
    x = net.relu(net.batch_norm(net.conv(x, 16, 3)))
    for channels, stride in ((16, 1), (32, 2), (64, 2)):
        x = _block(net, x, channels, stride)
    net.output(net.linear(net.flatten(net.global_average_pool(x)), 10), "logits")
    return net.model()


def _block(net: Builder, x: ir.Value, channels: int, stride: int) -> ir.Value:
    y = net.relu(net.batch_norm(net.conv(x, channels, 3, stride)))
    y = net.batch_norm(net.conv(y, channels, 3))
    if stride != 1 or extent(x, 1) != channels:
        x = net.batch_norm(net.conv(x, channels, 1, stride))
    return net.relu(net.op("Add", y, x))


RESNET = Member(
    "tiny-resnet", "residual blocks, two of them with a projected shortcut", (1, 3, 32, 32), 78714,
    "He et al., 2016, arXiv:1512.03385", build,
)  # fmt: skip
