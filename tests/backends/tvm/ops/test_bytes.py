"""ONNX's operators that move or choose elements, on bytes, row-major and in blocks of channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")

from ..integer_graphs import BYTES, Graph  # noqa: E402

Same = Callable[..., Any]
NEAREST = {
    "mode": "nearest",
    "coordinate_transformation_mode": "asymmetric",
    "nearest_mode": "floor",
}


def ints(g: Graph, *values: int) -> str:
    return g.constant(np.array(values, np.int64))


@pytest.mark.parametrize("channels", [32, 37])
@pytest.mark.parametrize("dtype", list(BYTES))
def test_movers(same_integers: Same, dtype: str, channels: int) -> None:
    g = Graph(channels)
    n, c, h, w = shape = (1, channels, 6, 10)
    plain = g.input(dtype, shape)
    x = g.blocked(plain)
    point = g.constant(np.array(77, dtype))
    twice = g.constant(np.array([1, 1, 2, 2], np.float32))
    half = c // 2
    made = {
        "transpose": ("Transpose", [x], (n, h, w, c), {"perm": [0, 2, 3, 1]}),
        "flat": ("Flatten", [x], (n, c * h * w), {}),
        "rows": ("Reshape", [x, ints(g, n, c, -1)], (n, c, h * w), {}),
        "slice": (
            "Slice", [x, ints(g, 1, 2), ints(g, h, w), ints(g, 2, 3)], (n, c, h - 1, w - 2), {},
        ),
        "stepped": (
            "Slice", [x, ints(g, 0, 1), ints(g, h, w), ints(g, 2, 3), ints(g, 2, 2)], (n, c, 3, 5), {},
        ),
        "channels": ("Slice", [x, ints(g, 3), ints(g, half + 3), ints(g, 1)], (n, half, h, w), {}),
        "pad": (
            "Pad", [x, ints(g, 0, 0, 1, 2, 0, 0, 3, 1), point], (n, c, h + 4, w + 3), {},
        ),
        "wider": ("Pad", [x, ints(g, 0, 2, 0, 0, 0, 3, 0, 0), point], (n, c + 5, h, w), {}),
        "resize": ("Resize", [x, "", twice], (n, c, 2 * h, 2 * w), NEAREST),
        "clip": (
            "Clip", [x, g.constant(np.array(20, dtype)), g.constant(np.array(99, dtype))], shape, {},
        ),
        "gather": ("Gather", [x, ints(g, 5, 0, 2)], (n, c, 3, w), {"axis": 2}),
        "expand": ("Expand", [x, ints(g, 2, 1, 1, 1)], (2, c, h, w), {}),
        "unsqueeze": ("Unsqueeze", [x, ints(g, 0)], (1, *shape), {}),
        "tile": ("Tile", [x, ints(g, 1, 1, 1, 2)], (n, c, h, 2 * w), {}),
        "both": ("Concat", [x, plain], (n, 2 * c, h, w), {"axis": 1}),
        "wide": ("Concat", [x, plain, x], (n, c, h, 3 * w), {"axis": 3}),
    }  # fmt: skip
    for op, inputs, out, attributes in made.values():
        y = g.node(op, inputs, dtype, out, **attributes)
        g.output(y)
        if len(out) == 4 and op != "Transpose":
            g.output(g.blocked(g.node(op, inputs, dtype, out, **attributes)))
    if channels % 4 == 0:
        deep = {"blocksize": 2, "mode": "CRD"}
        g.output(g.node("DepthToSpace", [x], dtype, (n, c // 4, 2 * h, 2 * w), **deep))
    g.output(g.node("SpaceToDepth", [x], dtype, (n, c * 4, h // 2, w // 2), blocksize=2))
    same_integers(g.model(), g.feeds())


def test_channel_shuffles(same_integers: Same) -> None:
    """From and to rows and blocks, with whole and with broken last blocks."""
    g = Graph(9)
    for channels, groups in ((24, 2), (64, 2), (58, 2), (48, 3), (116, 4)):
        shape, halves = (1, channels, 7, 9), (1, groups, channels // groups, 7, 9)
        for start in (False, True):
            for end in (False, True):
                x = g.input("int8", shape)
                x = g.blocked(x) if start else x
                split = g.node("Reshape", [x, ints(g, *halves)], "int8", halves)
                turned = (1, channels // groups, groups, 7, 9)
                y = g.node("Transpose", [split], "int8", turned, perm=[0, 2, 1, 3, 4])
                y = g.node("Reshape", [y, ints(g, *shape)], "int8", shape)
                g.output(g.blocked(y) if end else y)
    same_integers(g.model(), g.feeds())


def test_a_concatenation_of_blocks_costs_nothing(same_integers: Same) -> None:
    g = Graph(1)
    parts = [g.blocked(g.input("uint8", (1, c, 5, 5))) for c in (32, 16, 20)]
    joined = g.node("Concat", parts, "uint8", (1, 68, 5, 5), axis=1)
    g.output(g.blocked(joined))
    program = same_integers(g.model(), g.feeds())
    assert [c.template for c in program.calls].count("concat") == 0
    bases = {program.views[name].base for name in program.views}
    assert sum(program.root(c.args[0]) in bases for c in program.calls) >= 3


def test_split_of_blocks_is_views(same_integers: Same) -> None:
    g = Graph(2)
    x = g.blocked(g.input("int8", (1, 64, 5, 5)))
    left = g.node("Slice", [x, ints(g, 0), ints(g, 32), ints(g, 1)], "int8", (1, 32, 5, 5))
    right = g.node("Slice", [x, ints(g, 32), ints(g, 64), ints(g, 1)], "int8", (1, 32, 5, 5))
    g.output(g.blocked(left), g.blocked(right))
    program = same_integers(g.model(), g.feeds())
    assert [c.template for c in program.calls].count("slice") == 0


def test_images_of_channels_last(same_integers: Same) -> None:
    """What an imported int8 TFLite model is: [N, H, W, C] bytes at both ends."""
    g = Graph(3)
    x = g.input("int8", (1, 12, 10, 3))
    first = g.node("Transpose", [x], "int8", (1, 3, 12, 10), perm=[0, 3, 1, 2])
    wide = g.node("Tile", [first, ints(g, 1, 8, 1, 1)], "int8", (1, 24, 12, 10))
    pooled = g.node("MaxPool", [wide], "int8", (1, 24, 6, 5), kernel_shape=[2, 2], strides=[2, 2])
    mean = g.integer("GlobalAveragePool", [pooled], "int8", (1, 24, 1, 1), multiplier=1.0)
    g.output(g.node("Transpose", [pooled], "int8", (1, 6, 5, 24), perm=[0, 2, 3, 1]))
    g.output(g.node("Reshape", [mean, ints(g, 1, 24)], "int8", (1, 24)))
    program = same_integers(g.model(), g.feeds())
    assert program.tensors[program.inputs[0]].dtype == "int8"
