"""DenseNet: every layer reads all features before it, normalized before they are used."""

from __future__ import annotations

import onnx_ir as ir

from effc.zoo.builder import Builder, extent
from effc.zoo.member import Member, batch_size


def build(seed: int = 0, batch: int = 1) -> ir.Model:
    net = Builder("tiny-densenet", seed)
    x = net.input("image", (batch_size(batch), 3, 32, 32))
    x = net.conv(x, 16, 3, stride=2)
    for block in range(2):
        features = [x]
        for _ in range(3):
            seen = net.concat(*features) if len(features) > 1 else features[0]
            y = net.conv(net.relu(net.batch_norm(seen)), 16, 1)
            features.append(net.conv(net.relu(net.batch_norm(y)), 8, 3))
        x = net.concat(*features)
        if block == 0:
            x = net.conv(net.relu(net.batch_norm(x)), extent(x, 1) // 2, 1)
            x = net.average_pool(x, 2, 2)
    x = net.relu(net.batch_norm(x))
    net.output(net.linear(net.flatten(net.global_average_pool(x)), 10), "logits")
    return net.model()


DENSENET = Member(
    "tiny-densenet", "dense concatenations, batch norm before the convolution", (1, 3, 32, 32), 12434,
    "Huang et al., 2017, arXiv:1608.06993", build,
)  # fmt: skip
