"""ShuffleNet V2: half of the channels pass by, and the channels are shuffled after every unit."""

from __future__ import annotations

import onnx_ir as ir

from effc.zoo.builder import Builder, extent
from effc.zoo.member import Member, batch_size


def build(seed: int = 0, batch: int = 1) -> ir.Model:
    net = Builder("tiny-shufflenet", seed)
    x = net.input("image", (batch_size(batch), 3, 32, 32))
    x = net.relu(net.batch_norm(net.conv(x, 12, 3, stride=2)))
    x = net.max_pool(x, 3, 2, pads=1)
    x = _down(net, x, 24)
    x = _unit(net, x)
    x = _unit(net, x)
    x = net.relu(net.batch_norm(net.conv(x, 48, 1)))
    net.output(net.linear(net.flatten(net.op("ReduceMean", x, net.ints(2, 3))), 10), "logits")
    return net.model()


def _branch(net: Builder, x: ir.Value, channels: int, stride: int) -> ir.Value:
    y = net.relu(net.batch_norm(net.conv(x, channels, 1)))
    y = net.batch_norm(net.depthwise(y, 3, stride))
    return net.relu(net.batch_norm(net.conv(y, channels, 1)))


def _unit(net: Builder, x: ir.Value) -> ir.Value:
    half = extent(x, 1) // 2
    kept, worked = net.split(x, half, half)
    return _shuffle(net, net.concat(kept, _branch(net, worked, half, 1)))


def _down(net: Builder, x: ir.Value, channels: int) -> ir.Value:
    half = channels // 2
    side = net.batch_norm(net.depthwise(x, 3, 2))
    side = net.relu(net.batch_norm(net.conv(side, half, 1)))
    return _shuffle(net, net.concat(side, _branch(net, x, half, 2)))


def _shuffle(net: Builder, x: ir.Value) -> ir.Value:
    channels, height, width = extent(x, 1), extent(x, 2), extent(x, 3)
    x = net.reshape(x, 0, 2, channels // 2, height, width)
    return net.reshape(net.transpose(x, 0, 2, 1, 3, 4), 0, channels, height, width)


SHUFFLENET = Member(
    "tiny-shufflenet", "channel split and shuffle (reshape, transpose, reshape)",
    (1, 3, 32, 32), 4174, "Ma et al., 2018, arXiv:1807.11164", build,
)  # fmt: skip
