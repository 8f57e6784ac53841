"""GhostNet: half of the features are computed, the other half are cheap copies of them."""

from __future__ import annotations

import onnx_ir as ir

from effc.zoo.builder import Builder, extent
from effc.zoo.member import Member, batch_size


def build(seed: int = 0, batch: int = 1) -> ir.Model:
    net = Builder("tiny-ghostnet", seed)
    x = net.input("image", (batch_size(batch), 3, 32, 32))
    x = net.relu(net.batch_norm(net.conv(x, 8, 3, stride=2)))
    for hidden, channels, stride in ((16, 8, 1), (24, 12, 2), (36, 12, 1)):
        y = _ghost(net, x, hidden, act=True)
        if stride > 1:
            y = net.batch_norm(net.depthwise(y, 3, stride))
            y = net.squeeze_excite(y, 8)
        y = _ghost(net, y, channels, act=False)
        if stride > 1:
            x = net.batch_norm(net.depthwise(x, 3, stride))
            x = net.batch_norm(net.conv(x, channels, 1))
        x = net.op("Add", x, y)
    net.output(net.linear(net.flatten(net.global_average_pool(x)), 10), "logits")
    return net.model()


def _ghost(net: Builder, x: ir.Value, channels: int, *, act: bool) -> ir.Value:
    first = net.batch_norm(net.conv(x, -(-channels // 2), 1))
    first = net.relu(first) if act else first
    cheap = net.batch_norm(net.depthwise(first, 3))
    cheap = net.relu(cheap) if act else cheap
    both = net.concat(first, cheap)
    return both if extent(both, 1) == channels else net.slice(both, 0, channels, 1)


GHOSTNET = Member(
    "tiny-ghostnet", "ghost modules: pointwise and depthwise halves, concatenated",
    (1, 3, 32, 32), 3072, "Han et al., 2020, arXiv:1911.11907", build,
)  # fmt: skip
