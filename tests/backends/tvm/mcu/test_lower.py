"""Every operator as C, beside the numpy reference of core/integers, with and without DSP, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from effc.backends.tvm.mcu.cores import Core
from effc.backends.tvm.mcu.lower import lower
from effc.core.errors import UnsupportedOpError
from effc.core.integers.rounding import common_multipliers, multiplier_for

from ..integer_graphs import Graph

Exact = Callable[..., Any]
FIXED = {"rounding": "fixed"}


def pair(real: float) -> list[int]:
    return [int(v) for v in multiplier_for("fixed", real)]


def conv(
    g: Graph,
    x: str,
    out_c: int,
    kernel: tuple[int, ...],
    *,
    strides: tuple[int, ...] = (1, 1),
    pads: tuple[int, ...] = (0, 0, 0, 0),
    dilations: tuple[int, ...] = (1, 1),
    group: int = 1,
    zero: int = 3,
    low: int = -128,
    high: int = 127,
    shifts: str = "one",
    z: str = "",
) -> str:
    """A convolution whose results spread over the range of int8."""
    shape = g.types[x][1]
    rng = g.rng
    weight = rng.integers(-127, 128, (out_c, shape[1] // group, *kernel)).astype(np.int8)
    depth = int(np.prod(weight.shape[1:]))
    bias = rng.integers(-3000, 3000, out_c).astype(np.int32)
    real = 60 / (74 * 74 * depth**0.5) * rng.uniform(0.5, 1.5, out_c)
    if shifts == "many":  # halves and more, and so small that a channel never changes
        real[::3] = rng.uniform(0.5, 3.0, len(real[::3]))
        real[1::3] = rng.uniform(2.0**-28, 2.0**-18, len(real[1::3]))
        bias[1::6] *= 100_000
    m = g.constant(multiplier_for("fixed", real))
    spatial = [
        (n + pads[i] + pads[i + len(kernel)] - (k - 1) * d - 1) // s + 1
        for i, (n, k, d, s) in enumerate(zip(shape[2:], kernel, dilations, strides, strict=False))
    ]
    rest = {"z_zero_point": -5, "z_multiplier": [1 << 14, 15]} if z else {}
    return g.integer(
        "Conv",
        [x, g.constant(weight), g.constant(bias), m, *([z] if z else [])],
        "int8",
        (1, out_c, *spatial),
        x_zero_point=zero,
        y_zero_point=-7,
        low=low,
        high=high,
        strides=strides[: len(kernel)],
        pads=pads,
        dilations=dilations[: len(kernel)],
        group=group,
        **rest,
        **FIXED,
    )


def test_convolutions(core: Core, exact: Exact) -> None:
    g = Graph(1)
    a = g.input("int8", (1, 3, 9, 7))
    b = g.input("int8", (1, 8, 6, 5))
    c = g.input("int8", (1, 5, 11))
    made = [
        conv(g, a, 6, (3, 3), strides=(2, 2), pads=(0, 0, 1, 1)),
        conv(g, a, 5, (3, 3), pads=(1, 1, 1, 1), low=-7, high=40),
        conv(g, a, 4, (5, 2), strides=(1, 3), pads=(2, 0, 2, 1), shifts="many"),
        conv(g, b, 7, (1, 1)),
        conv(g, b, 8, (1, 1), shifts="many", low=-20),
        conv(g, b, 4, (1, 1), strides=(2, 2)),
        conv(g, b, 6, (3, 3), pads=(1, 1, 1, 1), dilations=(2, 1)),
        conv(g, b, 6, (3, 3), pads=(1, 1, 1, 1), group=2),
        conv(g, b, 9, (4, 4), pads=(2, 1, 1, 2)),
        conv(g, b, 2, (6, 5)),
        conv(g, c, 6, (3,), strides=(2,), pads=(1, 1), dilations=(1,)),
    ]
    g.output(*made)
    exact(g.model(), g.feeds(), core)


@pytest.mark.parametrize("kernel", [(3, 3), (5, 5), (7, 7), (1, 5), (4, 3)])
def test_depthwise(kernel: tuple[int, int], core: Core, exact: Exact) -> None:
    g = Graph(sum(kernel))
    a = g.input("int8", (1, 5, 9, 8))
    h, w = kernel[0] // 2, kernel[1] // 2
    same = (h, w, h, w)
    made = [
        conv(g, a, 5, kernel, pads=same, group=5),
        conv(g, a, 5, kernel, pads=same, group=5, strides=(2, 2), shifts="many"),
        conv(g, a, 5, kernel, pads=(0, 0, h, w), group=5, strides=(1, 2), low=-7),
        conv(g, a, 5, kernel, group=5, strides=(2, 1)),
        conv(g, a, 10, kernel, pads=same, group=5),
        conv(g, a, 5, kernel, pads=(2 * h, 2 * w, 2 * h, 2 * w), group=5, dilations=(2, 2)),
        conv(g, a, 5, kernel, pads=same, group=5, strides=(1, 3)),
    ]
    g.output(*made)
    exact(g.model(), g.feeds(), core)


def test_in_place_chain(core: Core, exact: Exact) -> None:
    """Outputs lie over their inputs: the arena is smaller than the tensors of one layer."""
    g = Graph(3)
    x = g.input("int8", (1, 4, 12, 10))
    y = conv(g, x, 8, (3, 3), pads=(1, 1, 1, 1))
    y = conv(g, y, 8, (3, 3), pads=(1, 1, 1, 1), group=8)
    y = conv(g, y, 8, (1, 1))
    y = conv(g, y, 8, (3, 3), pads=(1, 1, 1, 1))
    y = conv(g, y, 16, (1, 1))
    y = conv(g, y, 16, (5, 5), pads=(2, 2, 2, 2), strides=(2, 2), group=16)
    y = conv(g, y, 3, (3, 3), pads=(1, 1, 1, 1), strides=(2, 2))
    g.output(y)
    program = exact(g.model(), g.feeds(), core)
    assert program.plan.bytes < 8 * 120 + 16 * 120
    assert program.plan.bytes >= program.plan.bound


@pytest.mark.parametrize("positions", [(4, 6), (3, 5)])
def test_residuals(positions: tuple[int, int], core: Core, exact: Exact) -> None:
    g = Graph(4)
    x = g.input("int8", (1, 8, *positions))
    left = conv(g, x, 8, (1, 1))
    made = conv(g, left, 8, (3, 3), pads=(1, 1, 1, 1), z=x, shifts="one")
    again = conv(g, made, 8, (1, 1), z=made)
    last = conv(g, again, 8, (1, 1), z=left)
    g.output(last)
    exact(g.model(), g.feeds(), core)


def add(g: Graph, a: str, b: str, shape: tuple[int, ...], reals: tuple[float, float]) -> str:
    (ma, mb), shift = common_multipliers(np.abs(reals), 21)
    sign = [int(np.sign(r)) for r in reals]
    return g.integer(
        "Add",
        [a, b],
        "int8",
        shape,
        a_zero_point=-128,
        b_zero_point=12,
        a_multiplier=[int(ma) * sign[0], shift],
        b_multiplier=[int(mb) * sign[1], shift],
        y_zero_point=2,
        low=-128,
        high=100,
        **FIXED,
    )


def mul(g: Graph, a: str, b: str, shape: tuple[int, ...]) -> str:
    return g.integer(
        "Mul",
        [a, b],
        "int8",
        shape,
        a_zero_point=-3,
        b_zero_point=5,
        multiplier=pair(0.007),
        y_zero_point=2,
        low=-128,
        high=127,
        **FIXED,
    )


def test_elementwise(core: Core, exact: Exact) -> None:
    g = Graph(5)
    x, y = g.input("int8", (1, 6, 3, 5)), g.input("int8", (1, 6, 3, 5))
    gate = g.input("int8", (1, 6, 1, 1))
    u = g.input("uint8", (2, 9))
    one = g.constant(np.array([[[[17]]]], np.int8))
    channels = g.constant(g.rng.integers(-128, 128, (6, 1, 1)).astype(np.int8))
    table = g.constant(g.rng.integers(-128, 128, 256).astype(np.int8))
    limits = [g.constant(np.array(v, np.int8)) for v in (-50, 60)]
    shape = (1, 6, 3, 5)
    made = [
        add(g, x, y, shape, (0.6, 0.3)),
        add(g, x, gate, shape, (0.5, -0.9)),
        add(g, one, y, shape, (0.5, 0.01)),
        add(g, x, channels, shape, (0.25, 0.75)),
        add(g, x, x, shape, (0.25, 0.75)),
        mul(g, x, gate, shape),
        mul(g, gate, y, shape),
        mul(g, x, y, shape),
        g.integer("Lookup", [x, table], "int8", shape),
        g.integer("Lookup", [u, table], "int8", (2, 9)),
        g.node("Clip", [x, *limits], "int8", shape),
        g.integer(
            "Requantize", [u], "int8", (2, 9), x_zero_point=128, y_zero_point=-1, low=-128, high=127,
            multiplier=pair(1.0), **FIXED,
        ),
        g.integer(
            "Requantize", [x], "uint8", shape, x_zero_point=-3, y_zero_point=100, low=3, high=255,
            multiplier=pair(0.77), **FIXED,
        ),
    ]  # fmt: skip
    g.output(*made)
    exact(g.model(), g.feeds(), core)


def test_pools(core: Core, exact: Exact) -> None:
    g = Graph(6)
    x = g.input("int8", (1, 5, 7, 8))
    w = g.input("int8", (1, 5, 9))

    def average(name: str, op: str, out: tuple[int, ...], **attributes: Any) -> str:
        return g.integer(
            op, [name], "int8", (1, 5, *out), x_zero_point=7, y_zero_point=-9, low=-120, high=127,
            multiplier=pair(0.9), **attributes, **FIXED,
        )  # fmt: skip

    made = [
        average(x, "GlobalAveragePool", (1, 1)),
        average(x, "AveragePool", (1, 1), kernel_shape=[7, 8]),
        average(x, "AveragePool", (3, 4), kernel_shape=[2, 2], strides=[2, 2]),
        average(x, "AveragePool", (7, 8), kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        average(x, "AveragePool", (4, 4), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 0],
                count_include_pad=1),
        average(w, "AveragePool", (4,), kernel_shape=[3], strides=[2]),
        g.node("MaxPool", [x], "int8", (1, 5, 3, 4), kernel_shape=[3, 2], strides=[2, 2]),
        g.node("MaxPool", [x], "int8", (1, 5, 7, 8), kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    ]  # fmt: skip
    g.output(*made)
    exact(g.model(), g.feeds(), core)


def test_matrix_products(core: Core, exact: Exact) -> None:
    g = Graph(7)
    made = []
    for rows, depth, out in ((1, 19, 7), (1, 64, 12), (3, 8, 5), (4, 33, 6)):
        x = g.input("int8", (rows, depth))
        weight = g.rng.integers(-127, 128, (depth, out)).astype(np.int8)
        bias = g.constant(g.rng.integers(-900, 900, out).astype(np.int32))
        m = g.constant(multiplier_for("fixed", np.array([50 / (74 * 74 * depth**0.5)])))
        made.append(
            g.integer(
                "MatMul",
                [x, g.constant(weight), bias, m],
                "int8",
                (rows, out),
                x_zero_point=4,
                w_zero_point=0,
                y_zero_point=1,
                low=-128,
                high=127,
                **FIXED,
            )  # fmt: skip
        )
    g.output(*made)
    exact(g.model(), g.feeds(), core)


def test_transposed_convolution(core: Core, exact: Exact) -> None:
    g = Graph(8)
    x = g.input("int8", (1, 6, 4, 5))
    made = []
    for group, out in ((1, 4), (2, 6)):
        weight = g.rng.integers(-127, 128, (6, out // group, 3, 2)).astype(np.int8)
        m = g.constant(multiplier_for("fixed", g.rng.uniform(0.001, 0.004, out)))
        bias = g.constant(g.rng.integers(-900, 900, out).astype(np.int32))
        made.append(
            g.integer(
                "ConvTranspose",
                [x, g.constant(weight), bias, m],
                "int8",
                (1, out, 8, 10),
                x_zero_point=4,
                y_zero_point=1,
                low=-128,
                high=127,
                strides=[2, 2],
                pads=[1, 0, 0, 0],
                group=group,
                **FIXED,
            )  # fmt: skip
        )
    g.output(*made)
    exact(g.model(), g.feeds(), core)


def test_moves(core: Core, exact: Exact) -> None:
    g = Graph(9)
    x = g.input("int8", (1, 8, 4, 6))
    y = conv(g, x, 4, (3, 3), pads=(1, 1, 1, 1))
    ints = {k: g.constant(np.array(v, np.int64)) for k, v in {
        "pads": [0, 0, 1, 2, 0, 0, 3, 0], "starts": [1, 5], "ends": [4, -7], "axes": [2, 3], "steps": [2, -1],
        "flat": [1, -1], "back": [1, 4, 4, 6], "tail": [1, 4, 2, 3, 4], "split": [1, 3],
    }.items()}  # fmt: skip
    value = g.constant(np.array(-9, np.int8))
    scales = g.constant(np.array([1, 1, 2, 1.5], np.float32))
    rows = g.constant(np.array([2, 0, 3, 3, 1], np.int64))
    flat = g.node("Reshape", [y, ints["flat"]], "int8", (1, 96))
    back = g.node("Reshape", [flat, ints["back"]], "int8", (1, 4, 4, 6))
    made = [
        g.node("Concat", [y, x], "int8", (1, 12, 4, 6), axis=1),
        g.node("Concat", [y, y], "int8", (1, 4, 8, 6), axis=2),
        g.node("Pad", [y, ints["pads"], value], "int8", (1, 4, 8, 8)),
        g.node("Pad", [y, ints["pads"]], "int8", (1, 4, 8, 8), mode="reflect"),
        g.node("Slice", [y, ints["starts"], ints["ends"], ints["axes"], ints["steps"]], "int8", (1, 4, 2, 6)),
        g.node("Transpose", [y], "int8", (4, 1, 6, 4), perm=[1, 0, 3, 2]),
        g.node("Resize", [y, "", scales], "int8", (1, 4, 8, 9), mode="nearest", nearest_mode="floor",
               coordinate_transformation_mode="asymmetric"),
        g.node("DepthToSpace", [y], "int8", (1, 1, 8, 12), blocksize=2),
        g.node("SpaceToDepth", [y], "int8", (1, 16, 2, 3), blocksize=2),
        g.node("Gather", [y, rows], "int8", (1, 4, 5, 6), axis=2),
        flat,
        conv(g, back, 3, (1, 1)),
    ]  # fmt: skip
    g.output(*made)
    exact(g.model(), g.feeds(), core)


def test_reals_at_the_border(core: Core, exact: Exact) -> None:
    g = Graph(10)
    image = g.input("float32", (1, 3, 5, 4))
    direct = g.input("float32", (2, 6))
    scale, zero = g.constant(np.float32(0.031)), g.constant(np.int8(-4))
    q = g.node("QuantizeLinear", [image, scale, zero], "int8", (1, 3, 5, 4))
    y = conv(g, q, 6, (3, 3), pads=(1, 1, 1, 1), zero=-4)
    twice = g.node("Add", [direct, direct], "float32", (2, 6))
    r = g.node("Relu", [twice], "float32", (2, 6))
    g.output(
        g.node("DequantizeLinear", [y, scale, zero], "float32", (1, 6, 5, 4)),
        g.node("QuantizeLinear", [r, scale, zero], "int8", (2, 6)),
        r,
    )
    program = exact(g.model(), g.feeds(), core)
    # the caller quantizes: the firmware holds a quarter of the bytes, channels last
    assert program.inputs[0].tensor.dtype == "int8" and program.inputs[0].tensor.order == (
        0,
        2,
        3,
        1,
    )
    assert program.outputs[0].tensor.dtype == "int8"


def test_softmax_of_every_difference(core: Core, exact: Exact) -> None:
    g = Graph(11)
    x = g.input("int8", (40, 12))
    scale, zero = g.constant(np.float32(0.07)), g.constant(np.int8(9))
    fine, least = g.constant(np.float32(1 / 256)), g.constant(np.int8(-128))
    real = g.node("DequantizeLinear", [x, scale, zero], "float32", (40, 12))
    share = g.node("Softmax", [real], "float32", (40, 12), axis=-1)
    g.output(g.node("QuantizeLinear", [share, fine, least], "int8", (40, 12)))
    exact(g.model(), g.feeds(), core)


def test_refusals_come_all_at_once(core: Core) -> None:
    g = Graph(12)
    x = g.input("float32", (1, 3, 5, 4))
    weight = g.constant(np.ones((2, 3, 1, 1), np.float32))
    batch = g.input("int8", (2, 3, 4, 4))
    g.output(
        g.node("Conv", [x, weight], "float32", (1, 2, 5, 4)),
        g.node("Erf", [x], "float32", (1, 3, 5, 4)),
        conv(g, batch, 2, (3, 3)),
    )
    with pytest.raises(UnsupportedOpError) as refused:
        lower(g.model(), core)
    problems = refused.value.problems
    assert [p.op for p in problems] == ["Conv", "Erf", "Conv"]
    assert all(p.reason and p.remedy for p in problems)
    assert "batch" in problems[2].reason


def test_other_rules_are_refused(core: Core) -> None:
    g = Graph(13)
    x = g.input("int8", (1, 3, 4, 4))
    made = conv(g, x, 2, (1, 1))
    g.output(made)
    model = g.model()
    for node in model.graph:
        node.attributes["rounding"] = ir.AttrString("rounding", "tflite")
    with pytest.raises(UnsupportedOpError, match="tflite"):
        lower(model, core)
