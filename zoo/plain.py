"""Plain networks: a perceptron, a chain of convolutions, and the same with an open batch size."""

from __future__ import annotations

import onnx_ir as ir

from effc.zoo.builder import Builder
from effc.zoo.member import Member, batch_size


def build_mlp(seed: int = 0, batch: int = 1) -> ir.Model:
    net = Builder("tiny-mlp", seed)
    x = net.input("features", (batch_size(batch), 16))
    x = net.relu(net.linear(x, 32))
    x = net.relu(net.linear(x, 24))
    net.output(net.op("Softmax", net.linear(x, 10), axis=-1), "probabilities")
    return net.model()


def build_conv(seed: int = 0, batch: int = 1) -> ir.Model:
    net = Builder("tiny-conv", seed)
    x = net.input("image", (batch_size(batch), 3, 32, 32))
    x = net.relu(net.batch_norm(net.conv(x, 16, 3, bias=True)))
    x = net.max_pool(x, 2, 2)
    x = net.relu(net.batch_norm(net.conv(x, 32, 3, stride=2)))
    x = net.relu(net.conv(x, 20, 5, bias=True))
    x = net.average_pool(x, 2, 2)
    net.output(net.linear(net.flatten(x), 10), "logits")
    return net.model()


def build_dynamic(seed: int = 0, batch: int = 0) -> ir.Model:
    """Takes any batch size, and reshapes by it, as exporters write `x.view(x.size(0), -1)`."""
    net = Builder("tiny-dynamic", seed)
    x = net.input("image", (batch_size(batch), 3, 16, 16))
    x = net.relu(net.batch_norm(net.conv(x, 8, 3, stride=2)))
    x = net.max_pool(x, 2, 2)
    size = net.op("Gather", net.op("Shape", x), net.ints(0), axis=0)
    target = net.op("Concat", size, net.ints(128), axis=0)
    x = net.op("Reshape", x, target)
    weight, bias = net.normal((10, 128), 128), net.uniform((10,), -0.2, 0.2, "bias")
    net.output(net.op("Gemm", x, weight, bias, transB=1), "logits")
    return net.model()


MLP = Member(
    "tiny-mlp", "perceptron with two hidden layers", (1, 16), 1586,
    "Rumelhart et al., 1986, doi:10.1038/323533a0", build_mlp,
)  # fmt: skip
CONV = Member(
    "tiny-conv", "convolutions, batch norms and pooling in one chain", (1, 3, 32, 32), 24478,
    "LeCun et al., 1998, doi:10.1109/5.726791", build_conv,
)  # fmt: skip
DYNAMIC = Member(
    "tiny-dynamic", "convolution with an open batch size and a computed reshape",
    (1, 3, 16, 16), 1538, "LeCun et al., 1998, doi:10.1109/5.726791", build_dynamic,
)  # fmt: skip
