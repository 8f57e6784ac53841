"""Vision transformers: global attention, and attention inside of shifted windows."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from effc.zoo.builder import Builder, extent
from effc.zoo.member import Member, batch_size


def build_vit(seed: int = 0, batch: int = 1) -> ir.Model:
    net = Builder("tiny-vit", seed)
    image = net.input("image", (batch_size(batch), 3, 32, 32))
    width, heads = 32, 4
    x = net.conv(image, width, 8, stride=8, bias=True, pads=0)
    x = net.transpose(net.reshape(x, 0, width, 16), 0, 2, 1)
    token = net.uniform((1, 1, width), -0.5, 0.5, "class_token")
    size = net.op("Shape", image, start=0, end=1)
    tokens = net.op("Expand", token, net.op("Concat", size, net.ints(1, width), axis=0))
    x = net.concat(tokens, x)
    x = net.op("Add", x, net.uniform((1, 17, width), -0.5, 0.5, "position"))
    for _ in range(2):
        x = net.op("Add", x, attention(net, net.layer_norm(x), 17, heads))
        y = net.linear(net.gelu(net.linear(net.layer_norm(x), width * 2)), width)
        x = net.op("Add", x, y)
    first = net.op("Gather", net.layer_norm(x), net.constant(np.array(0, np.int64)), axis=1)
    net.output(net.linear(first, 10), "logits")
    return net.model()


def build_swin(seed: int = 0, batch: int = 1) -> ir.Model:
    net = Builder("tiny-swin", seed)
    image = net.input("image", (batch_size(batch), 3, 32, 32))
    width, side, window = 16, 8, 4
    x = net.conv(image, width, 4, stride=4, bias=True, pads=0)
    x = net.layer_norm(net.transpose(x, 0, 2, 3, 1))
    for shift in (0, window // 2):
        y = net.layer_norm(x)
        if shift:
            y = _roll(net, _roll(net, y, shift, 1), shift, 2)
        y = net.reshape(y, -1, side // window, window, side // window, window, width)
        y = net.reshape(net.transpose(y, 0, 1, 3, 2, 4, 5), -1, window * window, width)
        y = attention(net, y, window * window, 2, bias=True)
        y = net.reshape(y, -1, side // window, side // window, window, window, width)
        y = net.reshape(net.transpose(y, 0, 1, 3, 2, 4, 5), -1, side, side, width)
        if shift:
            y = _roll(net, _roll(net, y, side - shift, 1), side - shift, 2)
        x = net.op("Add", x, y)
        x = net.op("Add", x, net.linear(net.gelu(net.linear(net.layer_norm(x), 32)), width))
    x = net.op("ReduceMean", net.layer_norm(x), net.ints(1, 2), keepdims=0)
    net.output(net.linear(x, 10), "logits")
    return net.model()


def attention(
    net: Builder, x: ir.Value, tokens: int, heads: int, *, bias: bool = False
) -> ir.Value:
    """Multi-head self-attention on [N, tokens, width], with one projection for queries, keys, values."""
    width = extent(x, 2)
    each = width // heads
    qkv = net.reshape(net.linear(x, 3 * width), -1, tokens, 3, heads, each)
    qkv = net.transpose(qkv, 2, 0, 3, 1, 4)
    query, key, value = (
        net.op("Squeeze", part, net.ints(0)) for part in net.split(qkv, 1, 1, 1, axis=0)
    )
    scores = net.op("MatMul", query, net.transpose(key, 0, 1, 3, 2))
    scores = net.op("Mul", scores, net.scalar(1 / math.sqrt(each)))
    if bias:  # by relative position, one table for each head
        table = net.uniform((1, heads, tokens, tokens), -0.5, 0.5, "relative_position")
        scores = net.op("Add", scores, table)
    mixed = net.op("MatMul", net.op("Softmax", scores, axis=-1), value)
    return net.linear(net.reshape(net.transpose(mixed, 0, 2, 1, 3), -1, tokens, width), width)


def _roll(net: Builder, x: ir.Value, by: int, axis: int) -> ir.Value:
    """The first `by` rows or columns move to the end."""
    size = extent(x, axis)
    return net.concat(net.slice(x, by, size, axis), net.slice(x, 0, by, axis), axis=axis)


VIT = Member(
    "tiny-vit", "patches, class token, two layers of global attention", (1, 3, 32, 32), 24234,
    "Dosovitskiy et al., 2021, arXiv:2010.11929", build_vit,
)  # fmt: skip
SWIN = Member(
    "tiny-swin", "attention inside of windows, shifted by slices and concatenation",
    (1, 3, 32, 32), 6490, "Liu et al., 2021, arXiv:2103.14030", build_swin,
)  # fmt: skip
