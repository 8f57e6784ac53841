"""ConvNeXt: depthwise 7x7 convolutions, layer norms over channels, layer scale."""

from __future__ import annotations

import onnx_ir as ir

from effc.zoo.builder import Builder, extent
from effc.zoo.member import Member, batch_size


def build(seed: int = 0, batch: int = 1) -> ir.Model:
    net = Builder("tiny-convnext", seed)
    x = net.input("image", (batch_size(batch), 3, 32, 32))
    x = _norm(net, net.conv(x, 12, 4, stride=4, bias=True, pads=0))
    x = _block(net, x)
    x = net.conv(_norm(net, x), 24, 2, stride=2, bias=True, pads=0)
    x = _block(net, x)
    x = net.layer_norm(net.flatten(net.global_average_pool(x)))
    net.output(net.linear(x, 10), "logits")
    return net.model()


def _norm(net: Builder, x: ir.Value) -> ir.Value:
    return net.transpose(net.layer_norm(net.transpose(x, 0, 2, 3, 1)), 0, 3, 1, 2)


def _block(net: Builder, x: ir.Value) -> ir.Value:
    channels = extent(x, 1)
    y = net.conv(x, channels, 7, group=channels, bias=True)
    y = net.layer_norm(net.transpose(y, 0, 2, 3, 1))
    y = net.linear(net.gelu(net.linear(y, 4 * channels)), channels)
    y = net.op("Mul", y, net.uniform((channels,), 0.2, 0.8, "layer_scale"))
    found: ir.Value = net.op("Add", x, net.transpose(y, 0, 3, 1, 2))
    return found


CONVNEXT = Member(
    "tiny-convnext", "7x7 depthwise convolutions, channels-last layer norm and MLP",
    (1, 3, 32, 32), 9958, "Liu et al., 2022, arXiv:2201.03545", build,
)  # fmt: skip
