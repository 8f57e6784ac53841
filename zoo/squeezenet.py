"""SqueezeNet: fire modules without batch norms, and a convolution as classifier."""

from __future__ import annotations

import onnx_ir as ir

from effc.zoo.builder import Builder
from effc.zoo.member import Member, batch_size


def build(seed: int = 0, batch: int = 1) -> ir.Model:
    net = Builder("tiny-squeezenet", seed)
    x = net.input("image", (batch_size(batch), 3, 32, 32))
    x = net.relu(net.conv(x, 16, 3, stride=2, bias=True, pads=0))
    x = net.max_pool(x, 3, 2, pads=(0, 0, 1, 1))
    for squeeze, expand in ((4, 8), (4, 8), (8, 16)):
        s = net.relu(net.conv(x, squeeze, 1, bias=True))
        one = net.relu(net.conv(s, expand, 1, bias=True))
        three = net.relu(net.conv(s, expand, 3, bias=True))
        x = net.concat(one, three)
    x = net.relu(net.conv(net.op("Dropout", x), 10, 1, bias=True))
    net.output(net.op("Softmax", net.flatten(net.global_average_pool(x)), axis=1), "probabilities")
    return net.model()


SQUEEZENET = Member(
    "tiny-squeezenet", "fire modules (1x1 and 3x3, concatenated), asymmetric pooling",
    (1, 3, 32, 32), 3034, "Iandola et al., 2016, arXiv:1602.07360", build,
)  # fmt: skip
