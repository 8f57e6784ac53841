"""U-Net: down, up again, and the fine features joined on the way."""

from __future__ import annotations

import onnx_ir as ir

from effc.zoo.builder import Builder
from effc.zoo.member import Member, batch_size


def build(seed: int = 0, batch: int = 1) -> ir.Model:
    net = Builder("tiny-unet", seed)
    x = net.input("image", (batch_size(batch), 3, 32, 32))
    fine = _double(net, x, 8)
    middle = _double(net, net.max_pool(fine, 2, 2), 16)
    coarse = _double(net, net.max_pool(middle, 2, 2), 24)
    y = net.concat(net.conv_transpose(coarse, 16, 2, 2), middle)
    y = _double(net, y, 16)
    y = net.concat(net.upsample(y, 2, "linear"), fine)
    y = _double(net, y, 8)
    net.output(net.op("Sigmoid", net.conv(y, 2, 1, bias=True)), "mask")
    return net.model()


def _double(net: Builder, x: ir.Value, channels: int) -> ir.Value:
    x = net.relu(net.batch_norm(net.conv(x, channels, 3)))
    return net.relu(net.batch_norm(net.conv(x, channels, 3)))


UNET = Member(
    "tiny-unet", "segmentation: transposed convolution, bilinear resize, skip concatenations",
    (1, 3, 32, 32), 24254, "Ronneberger et al., 2015, arXiv:1505.04597", build,
)  # fmt: skip
