"""MobileNets: inverted residuals with depthwise convolutions."""

from __future__ import annotations

import onnx_ir as ir

from effc.zoo.builder import Builder, extent
from effc.zoo.member import Member, batch_size


def build_v2(seed: int = 0, batch: int = 1) -> ir.Model:
    net = Builder("tiny-mobilenetv2", seed)
    x = net.input("image", (batch_size(batch), 3, 32, 32))
    x = net.relu6(net.batch_norm(net.conv(x, 8, 3, stride=2)))
    for expand, channels, stride in ((1, 8, 1), (6, 16, 2), (6, 16, 1), (6, 24, 2)):
        hidden = extent(x, 1) * expand
        y = x if expand == 1 else net.relu6(net.batch_norm(net.conv(x, hidden, 1)))
        y = net.relu6(net.batch_norm(net.depthwise(y, 3, stride)))
        y = net.batch_norm(net.conv(y, channels, 1))
        x = net.op("Add", x, y) if stride == 1 and extent(x, 1) == channels else y
    x = net.relu6(net.batch_norm(net.conv(x, 64, 1)))
    net.output(net.linear(net.flatten(net.global_average_pool(x)), 10), "logits")
    return net.model()


def build_v3(seed: int = 0, batch: int = 1) -> ir.Model:
    net = Builder("tiny-mobilenetv3", seed)
    x = net.input("image", (batch_size(batch), 3, 32, 32))
    x = _hard_swish(net, net.batch_norm(net.conv(x, 8, 3, stride=2)))
    for hidden, channels, kernel, stride, gated, swish in (
        (16, 8, 3, 1, True, False),
        (40, 16, 5, 2, False, True),
        (64, 16, 5, 1, True, True),
    ):
        act = (lambda v: _hard_swish(net, v)) if swish else net.relu
        y = act(net.batch_norm(net.conv(x, hidden, 1)))
        y = act(net.batch_norm(net.depthwise(y, kernel, stride)))
        if gated:
            y = net.squeeze_excite(y, max(8, hidden // 4))
        y = net.batch_norm(net.conv(y, channels, 1))
        x = net.op("Add", x, y) if stride == 1 and extent(x, 1) == channels else y
    x = net.op("HardSwish", net.batch_norm(net.conv(x, 64, 1)))
    x = net.global_average_pool(x)
    x = net.op("HardSwish", net.conv(x, 48, 1, bias=True))
    net.output(net.linear(net.flatten(x), 10), "logits")
    return net.model()


def _hard_swish(net: Builder, x: ir.Value) -> ir.Value:
    """x * relu6(x + 3) / 6, written out as exporters do before opset 14."""
    gate: ir.Value = net.relu6(net.op("Add", x, net.scalar(3)))
    found: ir.Value = net.op("Div", net.op("Mul", x, gate), net.scalar(6))
    return found


V2 = Member(
    "tiny-mobilenetv2", "inverted residuals with relu6", (1, 3, 32, 32), 15258,
    "Sandler et al., 2018, arXiv:1801.04381", build_v2,
)  # fmt: skip
V3 = Member(
    "tiny-mobilenetv3", "squeeze-and-excitation, hard-swish whole and written out",
    (1, 3, 32, 32), 14674, "Howard et al., 2019, arXiv:1905.02244", build_v3,
)  # fmt: skip
