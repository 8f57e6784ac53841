"""The operators of effc.integer and ONNX's on bytes, against the numpy reference, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")

from effc.backends.tvm.isa import host_isa  # noqa: E402
from effc.backends.tvm.lower import lower  # noqa: E402
from effc.core.errors import UnsupportedOpError  # noqa: E402

from ..integer_graphs import BYTES, Graph  # noqa: E402

Same = Callable[..., Any]
SHAPES = [(1, 32, 5, 7), (2, 37, 3, 3), (1, 5, 4, 4)]


def range_of(rng: np.random.Generator, dtype: str) -> dict[str, int]:
    """A zero point and limits of an activation; every third time the whole range."""
    info = np.iinfo(dtype)
    zero = int(rng.integers(info.min, info.max + 1))
    low, high = sorted(int(v) for v in rng.integers(info.min, info.max + 1, 2))
    if rng.integers(3) == 0 or high - low < 20:
        low, high = int(info.min), int(info.max)
    return {"y_zero_point": zero, "low": low, "high": high}


def multiplier(rng: np.random.Generator, low: float = -6, high: float = 1) -> float:
    """Of any size; now and then a power of two, which makes many ties."""
    exponent = rng.uniform(low, high)
    return float(np.float32(2.0 ** (round(exponent) if rng.integers(3) == 0 else exponent)))


def zero(rng: np.random.Generator, dtype: str) -> int:
    info = np.iinfo(dtype)
    return int(rng.integers(info.min, info.max + 1))


def test_elementwise(same_integers: Same) -> None:
    """Add, Mul and Requantize of every pair of types, row-major and in blocks."""
    g = Graph(1)
    rng = g.rng
    for n, shape in enumerate(SHAPES):
        for a in BYTES:
            for b in BYTES:
                y = rng.choice(list(BYTES))
                ends = [g.input(a, shape), g.input(b, shape)]
                if n % 2 == 0:
                    ends = [g.blocked(e) for e in ends]
                zeros = {"a_zero_point": zero(rng, a), "b_zero_point": zero(rng, b)}
                factors = {"a_multiplier": multiplier(rng), "b_multiplier": multiplier(rng)}
                total = g.integer("Add", ends, y, shape, **zeros, **factors, **range_of(rng, y))
                product = g.integer(
                    "Mul", ends, y, shape, **zeros, multiplier=multiplier(rng, -12, -5), **range_of(rng, y)
                )  # fmt: skip
                changed = g.integer(
                    "Requantize", ends[:1], b, shape, x_zero_point=zero(rng, a),
                    multiplier=multiplier(rng, -2, 2), **range_of(rng, b),
                )  # fmt: skip
                made = [total, product, changed]
                g.output(*([g.blocked(v) for v in made] if n % 2 == 0 else made))
    same_integers(g.model(), g.feeds())


def test_every_pair_of_bytes(same_integers: Same) -> None:
    """Sums of all 65536 pairs: one fused multiply-add would show in some."""
    g = Graph()
    a, b = g.input("uint8", (256, 1)), g.input("int8", (1, 256))
    for k in range(12):
        rng = np.random.default_rng(k)
        attributes = {
            "a_zero_point": zero(rng, "uint8"), "b_zero_point": zero(rng, "int8"),
            "a_multiplier": multiplier(rng, -2, 0), "b_multiplier": multiplier(rng, -2, 0),
            "y_zero_point": 100,
        }  # fmt: skip
        g.output(g.integer("Add", [a, b], "uint8", (256, 256), **attributes))
    attributes.pop("y_zero_point")
    g.output(g.integer("Add", [a, b], "float32", (256, 256), **attributes))
    every = np.arange(256)
    feeds = {"x0": every.astype(np.uint8)[:, None], "x1": (every - 128).astype(np.int8)[None]}
    same_integers(g.model(), feeds)


def test_broadcasting_and_constants(same_integers: Same) -> None:
    g = Graph(2)
    rng = g.rng
    x, gate = g.input("uint8", (2, 37, 4, 5)), g.input("uint8", (2, 37, 1, 1))
    row = g.constant(rng.integers(-128, 128, (37, 1, 1)).astype(np.int8))
    one = g.constant(np.array(77, np.uint8))
    x = g.blocked(x)
    for other, dtype in ((gate, "uint8"), (row, "int8"), (one, "uint8")):
        zeros = {"a_zero_point": 7, "b_zero_point": zero(rng, dtype)}
        made = g.integer(
            "Mul", [x, other], "uint8", (2, 37, 4, 5), **zeros, multiplier=0.004, y_zero_point=128
        )
        g.output(g.blocked(made))
        g.output(
            g.integer(
                "Add", [other, x], "int8", (2, 37, 4, 5),
                a_multiplier=0.3, b_multiplier=0.7, low=-100, high=100,
            )
        )  # fmt: skip
    same_integers(g.model(), g.feeds())


@pytest.mark.parametrize("shape", [(1, 32, 8, 9), (2, 37, 5, 7), (3, 5, 3, 3), (1000,), (2, 11)])
def test_lookup(same_integers: Same, shape: tuple[int, ...]) -> None:
    g = Graph(3)
    for a in BYTES:
        for b in BYTES:
            x = g.input(a, shape)
            if len(shape) == 4:
                x = g.blocked(x)
            table = g.constant(g.rng.permutation(256).astype(np.uint8).astype(b))
            made = g.integer("Lookup", [x, table], b, shape)
            g.output(g.blocked(made) if len(shape) == 4 else made)
    program = same_integers(g.model(), g.feeds(), threads=2)
    assert sum(c.template == "lookup" for c in program.calls) == 4


def test_lookup_between_rows_and_blocks(same_integers: Same) -> None:
    """Its own kernel, and a change of layout beside it."""
    g = Graph(10)
    table = g.constant(g.rng.permutation(256).astype(np.uint8))
    for first in (False, True):
        x = g.input("uint8", (1, 58, 30, 30))
        y = g.integer("Lookup", [g.blocked(x) if first else x, table], "uint8", (1, 58, 30, 30))
        flat = g.constant(np.array([1, -1], np.int64))
        g.output(g.node("Reshape", [y, flat], "uint8", (1, 58 * 900)) if first else g.blocked(y))
    program = same_integers(g.model(), g.feeds())
    for call in program.calls:
        if call.template == "lookup":
            assert len({program.tensors[a].layout for a in call.args[:2]}) == 1


POOLS: list[tuple[int, tuple[int, int], dict[str, Any]]] = [
    (32, (9, 9), {"kernel_shape": [3, 3], "strides": [2, 2]}),
    (37, (8, 11), {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 1, 1, 0]}),
    (16, (7, 40), {"kernel_shape": [2, 3], "dilations": [1, 2], "pads": [0, 2, 0, 2]}),
    (5, (7, 8), {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    (20, (6, 6), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    (48, (4, 4), {"kernel_shape": [4, 4]}),
]


def pooled(size: tuple[int, int], attributes: dict[str, Any]) -> tuple[int, ...]:
    pads, strides = attributes.get("pads", [0] * 4), attributes.get("strides", [1, 1])
    dilations, kernel = attributes.get("dilations", [1, 1]), attributes["kernel_shape"]
    found = []
    for i in (0, 1):
        room = size[i] + pads[i] + pads[i + 2] - (kernel[i] - 1) * dilations[i] - 1
        found.append(
            (-(-room // strides[i]) if attributes.get("ceil_mode") else room // strides[i]) + 1
        )
    return tuple(found)


def test_pooling(same_integers: Same) -> None:
    g = Graph(4)
    rng = g.rng
    for channels, size, attributes in POOLS:
        for a in BYTES:
            x = g.input(a, (2, channels, *size))
            shape = (2, channels, *pooled(size, attributes))
            plain = {k: v for k, v in attributes.items() if k != "count_include_pad"}
            g.output(g.node("MaxPool", [x], a, shape, **plain))
            y = rng.choice(list(BYTES))
            numbers = {
                "x_zero_point": zero(rng, a), "multiplier": multiplier(rng, -1, 1), **range_of(rng, y)
            }  # fmt: skip
            g.output(g.integer("AveragePool", [x], y, shape, **numbers, **attributes))
            made = g.integer("GlobalAveragePool", [x], y, (2, channels, 1, 1), **numbers)
            g.output(g.blocked(made))
    same_integers(g.model(), g.feeds())


def test_reals_in_and_out(same_integers: Same) -> None:
    """Both ends, ties among them, per tensor and per channel, row-major and in blocks."""
    g = Graph(5)
    shape = (2, 37, 3, 5)
    feeds = {}
    for dtype in BYTES:
        for per in ("tensor", "channel"):
            x = g.input("float32", shape)
            scales = np.float32(2.0) ** g.rng.integers(-4, 0, 37)
            scales[::3] = g.rng.uniform(0.01, 0.1, 13).astype(np.float32)
            scales = scales.astype(np.float32)
            ties = g.rng.integers(-400, 400, shape).astype(np.float32) / 2
            feeds[x] = ties * (scales[:, None, None] if per == "channel" else scales[0])
            scale = g.constant(scales if per == "channel" else scales[0])
            zeros = g.rng.integers(0, 100, 37).astype(dtype)
            point = g.constant(zeros if per == "channel" else zeros[0])
            along = {"axis": 1} if per == "channel" else {}
            q = g.node("QuantizeLinear", [x, scale, point], dtype, shape, **along)
            q = g.blocked(q)
            g.output(q, g.node("DequantizeLinear", [q, scale, point], "float32", shape, **along))
    same_integers(g.model(), feeds)


def test_reals_between_bytes(same_integers: Same) -> None:
    """An operator without integers of its own: one kernel from bytes to bytes, in blocks."""
    g = Graph(7)
    shape = (1, 37, 5, 6)
    x, y = (g.blocked(g.input(t, shape)) for t in BYTES)
    points = {t: g.constant(np.array(3, t)) for t in BYTES}
    scales = [g.constant(np.array(s, np.float32)) for s in (0.037, 0.021, 0.05)]
    a = g.node("DequantizeLinear", [x, scales[0], points["uint8"]], "float32", shape)
    b = g.node("DequantizeLinear", [y, scales[1], points["int8"]], "float32", shape)
    total = g.node("Sub", [a, b], "float32", shape)
    size = g.node("Abs", [total], "float32", shape)
    most = g.node("Max", [size, a], "float32", shape)
    g.output(
        g.blocked(g.node("QuantizeLinear", [most, scales[2], points["uint8"]], "uint8", shape))
    )
    program = same_integers(g.model(), g.feeds())
    assert [c.template for c in program.calls].count("elementwise") == 1


def test_reals_become_bytes_where_they_are_made(same_integers: Same) -> None:
    """QuantizeLinear behind products of reals, per channel too; small integers are exact in them."""
    g = Graph(8)
    small: dict[str, np.ndarray] = {}

    def reals(*shape: int) -> str:
        x = g.input("float32", shape)
        small[x] = g.rng.integers(-9, 10, shape).astype(np.float32)
        return x

    def weights(*shape: int) -> str:
        return g.constant(g.rng.integers(-4, 5, shape).astype(np.float32))

    image = reals(1, 20, 5, 7)
    made = [
        g.node("Conv", [image, weights(37, 20, 3, 3)], "float32", (1, 37, 5, 7), pads=[1] * 4),
        g.node("Conv", [image, weights(20, 1, 3, 3)], "float32", (1, 20, 3, 5), group=20),
        g.node("ConvTranspose", [image, weights(20, 6, 2, 2)], "float32", (1, 6, 6, 8)),
        g.node("Gemm", [reals(5, 21), weights(21, 40), weights(40)], "float32", (5, 40)),
        g.node("MatMul", [reals(2, 3, 9), reals(2, 9, 19)], "float32", (2, 3, 19)),
    ]
    for k, value in enumerate(made):
        channels = g.types[value][1][1]
        slope = weights(channels, *[1] * (len(g.types[value][1]) - 2))
        bent = g.node("PRelu", [value, slope], *g.types[value])
        dtype = list(BYTES)[k % 2]
        scales = np.float32(2.0) ** g.rng.integers(-2, 3, channels if k < 2 else ())
        points = g.rng.integers(0, 50, channels if k < 2 else ()).astype(dtype)
        q = [bent, g.constant(np.asarray(scales, np.float32)), g.constant(np.asarray(points))]
        along = {"axis": 1} if k < 2 else {}
        g.output(g.node("QuantizeLinear", q, dtype, g.types[value][1], **along))
    program = same_integers(g.model(), small)
    made_by = {c.template for c in program.calls} - {"layout"}
    assert made_by == {"conv", "depthwise", "conv_transpose", "gemm", "matmul"}


def test_refusals_name_the_node() -> None:
    g = Graph(6)
    x = g.input("uint8", (1, 16, 4, 4))
    y = g.integer(
        "Requantize", [x], "uint8", (1, 16, 4, 4), multiplier=[1 << 30, 1], rounding="tflite"
    )
    table = g.constant(np.zeros(128, np.uint8))
    g.output(y, g.integer("Lookup", [x, table], "uint8", (1, 16, 4, 4)))
    with pytest.raises(UnsupportedOpError) as caught:
        lower(g.model(), host_isa())
    problems = {p.node: p for p in caught.value.problems}
    assert set(problems) == {"Requantize_v0", "Lookup_v1"}
    assert "tflite" in problems["Requantize_v0"].reason
    assert "rounding=float32" in problems["Requantize_v0"].remedy
    assert "256" in problems["Lookup_v1"].remedy
