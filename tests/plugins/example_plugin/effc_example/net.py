"""A model: |x| by way of four negations."""

from __future__ import annotations

import onnx_ir as ir

from effc.zoo.builder import Builder
from effc.zoo.member import Member


def build(seed: int = 0, batch: int = 1) -> ir.Model:
    net = Builder("example-net", seed)
    x = net.input("x", (batch, 8))
    for _ in range(4):
        x = net.op("Neg", x)
    net.output(net.op("Abs", x), "y")
    return net.model()


MEMBER = Member("example-net", "four negations and a modulus", (1, 8), 0, "none", build)
