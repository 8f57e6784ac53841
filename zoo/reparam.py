"""Networks of parallel linear branches that can be merged after training; here they are kept."""

from __future__ import annotations

import onnx_ir as ir

from effc.zoo.builder import Builder, extent
from effc.zoo.member import Member, batch_size


def build_repvgg(seed: int = 0, batch: int = 1) -> ir.Model:
    net = Builder("tiny-repvgg", seed)
    x = net.input("image", (batch_size(batch), 3, 32, 32))
    for channels, stride in ((16, 2), (16, 1), (32, 2), (32, 1)):
        y = net.op(
            "Add",
            net.batch_norm(net.conv(x, channels, 3, stride)),
            net.batch_norm(net.conv(x, channels, 1, stride)),
        )
        if stride == 1:
            y = net.op("Add", y, net.batch_norm(x))
        x = net.relu(y)
    net.output(net.linear(net.flatten(net.global_average_pool(x)), 10), "logits")
    return net.model()


def build_mobileone(seed: int = 0, batch: int = 1) -> ir.Model:
    net = Builder("tiny-mobileone", seed)
    x = net.input("image", (batch_size(batch), 3, 32, 32))
    x = net.relu(_branches(net, x, 16, 3, 2, 1, 2))
    for channels, stride in ((16, 1), (32, 2)):
        x = net.relu(_branches(net, x, extent(x, 1), 3, stride, extent(x, 1), 3))
        x = net.relu(_branches(net, x, channels, 1, 1, 1, 3))
    net.output(net.linear(net.flatten(net.global_average_pool(x)), 10), "logits")
    return net.model()


def _branches(
    net: Builder, x: ir.Value, channels: int, kernel: int, stride: int, group: int, count: int
) -> ir.Value:
    """`count` convolutions of one input, a 1x1 one for depth, and the identity where it fits."""
    parts = [
        net.batch_norm(net.conv(x, channels, kernel, stride, group=group)) for _ in range(count)
    ]
    if kernel > 1:
        parts.append(net.batch_norm(net.conv(x, channels, 1, stride, group=group)))
    if stride == 1 and channels == extent(x, 1):
        parts.append(net.batch_norm(x))
    total = parts[0]
    for part in parts[1:]:
        total = net.op("Add", total, part)
    return total


REPVGG = Member(
    "tiny-repvgg", "3x3, 1x1 and identity branches before merging", (1, 3, 32, 32), 19690,
    "Ding et al., 2021, arXiv:2101.03697", build_repvgg,
)  # fmt: skip
MOBILEONE = Member(
    "tiny-mobileone", "over-parametrized depthwise and pointwise branches before merging",
    (1, 3, 32, 32), 5850, "Vasu et al., 2023, arXiv:2206.04040", build_mobileone,
)  # fmt: skip
