"""Space to batch, convolution, batch to space: one dilated convolution."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest


@pytest.mark.parametrize("kind", ["float32", "int8"])
@pytest.mark.parametrize("op", ["CONV_2D", "DEPTHWISE_CONV_2D"])
def test_a_dilated_convolution(tfl: Any, op: str, kind: str) -> None:
    net, rng, whole = tfl.Net(), np.random.default_rng(0), kind == "int8"
    dtype = np.int8 if whole else np.float32

    def quantization(scale: float, zero: int) -> dict[str, Any]:
        return {"scale": [scale], "zero_point": [zero]} if whole else {}

    x = net.input((1, 9, 10, 4), dtype, **quantization(0.05, 3))
    s = net.tensor((), dtype, **quantization(0.05, 3))
    shape = (6, 3, 3, 4) if op == "CONV_2D" else (1, 3, 3, 4)
    side = 6 if op == "CONV_2D" else 4
    if whole:
        w = net.const(
            rng.integers(-127, 128, shape).astype(np.int8), scale=[0.01] * side,
            zero_point=[0] * side, axis=0 if op == "CONV_2D" else 3,
        )  # fmt: skip
        b = net.const(rng.integers(-999, 999, side).astype(np.int32), scale=[0.0005] * side,
                      zero_point=[0] * side)  # fmt: skip
    else:
        w = net.const(rng.normal(size=shape).astype(np.float32))
        b = net.const(rng.normal(size=side).astype(np.float32))
    c = net.tensor((), dtype, **quantization(0.2, -7))
    y = net.tensor((), dtype, **quantization(0.2, -7))
    block = net.const(np.array([2, 2], np.int32))
    edges, crops = ([[2, 3], [2, 2]], [[0, 1], [0, 0]])
    net.op("SPACE_TO_BATCH_ND", [x, block, net.const(np.array(edges, np.int32))], [s])
    options = "Conv2DOptions" if op == "CONV_2D" else "DepthwiseConv2DOptions"
    more = {} if op == "CONV_2D" else {"DepthMultiplier": 1}
    net.op(op, [s, w, b], [c], options, Padding=1, StrideH=1, StrideW=1, DilationHFactor=1,
           DilationWFactor=1, FusedActivationFunction=1, **more)  # fmt: skip
    net.op("BATCH_TO_SPACE_ND", [c, block, net.const(np.array(crops, np.int32))], [y])
    net.outputs = [y]
    data = tfl.settle(net)
    model = tfl.imported(data)
    (conv,) = [n for n in model.graph if n.op_type == "Conv"]
    assert tuple(conv.attributes["dilations"].as_ints()) == (2, 2)
    assert not [n for n in model.graph if n.op_type in ("Pad", "Slice", "Reshape")]
    feed = rng.normal(size=(1, 9, 10, 4)) * (40 if whole else 1)
    feed = feed.clip(-128, 127).astype(dtype)
    (expected,), (found,) = tfl.Interpreter(data).run(feed), tfl.run(model, feed)
    if whole:
        off = np.abs(found.astype(int) - expected.astype(int))
        assert off.max() <= 1 and (off > 0).mean() < 0.01 and np.unique(expected).size > 20
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
