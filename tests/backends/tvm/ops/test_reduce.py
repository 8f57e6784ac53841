"""Reductions and normalizations against numpy, in both layouts, with tails everywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")

from effc.backends.tvm.isa import host_isa  # noqa: E402
from effc.backends.tvm.kernels.epilogue import IDENTITY, Epilogue  # noqa: E402
from effc.backends.tvm.layout import PLAIN, Layout, TensorType  # noqa: E402
from effc.backends.tvm.ops import all as _all  # noqa: E402, F401
from effc.backends.tvm.ops.contract import OpNode, find_kernel  # noqa: E402
from effc.backends.tvm.program import Kernel  # noqa: E402

ISA = host_isa()
BLOCKED = Layout(ISA.lanes)


def build(
    name: str,
    op_type: str,
    shapes: list[tuple[int, ...]],
    out: tuple[int, ...],
    attributes: dict[str, Any],
    layout: Layout = PLAIN,
    epilogue: Epilogue = IDENTITY,
) -> Kernel:
    first, *rest = shapes
    ins = (TensorType(first, "float32", layout), *(TensorType(s, "float32") for s in rest))
    out_layout = layout if len(out) == len(first) else PLAIN
    node = OpNode(
        op_type, "", name, attributes, ins, (TensorType(out, "float32", out_layout),), {}, 17
    )
    entry = find_kernel(node)
    assert entry is not None
    return entry.build(node, name, ISA, epilogue)


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


REDUCTIONS: dict[str, Callable[..., np.ndarray]] = {
    "ReduceSum": np.sum,
    "ReduceMean": np.mean,
    "ReduceMax": np.max,
    "ReduceMin": np.min,
    "ReduceL2": lambda x, **k: np.sqrt(np.sum(x * x, **k)),
    "ReduceLogSumExp": lambda x, **k: np.log(np.sum(np.exp(x), **k)),
}
SHAPES = [
    ((3, 5, 37), (2,)),
    ((3, 5, 37), (0,)),
    ((3, 5, 37), (1,)),
    ((2, 7, 4, 19), (1, 3)),
    ((2, 7, 4, 19), (0, 1, 2, 3)),
    ((1, 300), (1,)),
    ((130, 3), (0,)),
]


def test_reductions(compile_kernels: Any) -> None:
    kernels, cases = [], {}
    for op, reference in REDUCTIONS.items():
        for k, (shape, axes) in enumerate(SHAPES):
            keep = k % 2
            want = reference(draw(*shape).astype(np.float64), axis=axes, keepdims=bool(keep))
            name = f"{op}{k}"
            attrs = {"axes": axes, "keepdims": keep}
            kernels.append(build(name, op, [shape], np.shape(want), attrs))
            cases[name] = (draw(*shape), want)
    library = compile_kernels(kernels)
    for name, (x, want) in cases.items():
        np.testing.assert_allclose(library(name, x)[0], want, rtol=2e-5, atol=1e-5, err_msg=name)


def test_blocked_pooling_with_an_epilogue(compile_kernels: Any) -> None:
    shape, out = (2, 37, 5, 6), (2, 37, 1, 1)
    x, bias = draw(*shape), draw(37)
    shift = Epilogue(
        (TensorType((37,), "float32"),), lambda v, index, loads: v + loads[0]((index[1],))
    )
    kernels = [
        build("mean", "GlobalAveragePool", [shape], out, {}, BLOCKED),
        build("shifted", "GlobalMaxPool", [shape], out, {}, BLOCKED, shift),
        build("plain", "GlobalMaxPool", [shape], out, {}, PLAIN, shift),
    ]
    library = compile_kernels(kernels)
    mean, top = x.mean((2, 3), keepdims=True), x.max((2, 3), keepdims=True)
    np.testing.assert_allclose(library("mean", x)[0], mean, rtol=1e-5, atol=1e-6)
    for name in ("shifted", "plain"):
        (y,) = library(name, x, bias)
        np.testing.assert_allclose(y, top + bias.reshape(1, -1, 1, 1), rtol=1e-6)


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def normalized(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-5)


def test_normalizations(compile_kernels: Any) -> None:
    x, scale, bias = draw(2, 12, 5, 7), draw(12), draw(12)
    by_channel = (1, -1, 1, 1)
    rows, g, b = draw(3, 5, 197), draw(197), draw(197)
    s, r = x.shape, rows.shape
    kernels = [
        build("last", "Softmax", [r], r, {"axis": -1}),
        build("middle", "Softmax", [s], s, {"axis": 1}),
        build("log", "LogSoftmax", [s], s, {"axis": 2}),
        build("layer", "LayerNormalization", [r, (197,), (197,)], r, {"axis": -1}),
        build("instance", "InstanceNormalization", [s, (12,), (12,)], s, {}),
        build("blocked", "InstanceNormalization", [s, (12,), (12,)], s, {}, BLOCKED),
        build("group", "GroupNormalization", [s, (12,), (12,)], s, {"num_groups": 3}),
    ]
    library = compile_kernels(kernels)
    channel = scale.reshape(by_channel), bias.reshape(by_channel)
    instance = normalized(x, (2, 3)) * channel[0] + channel[1]
    grouped = normalized(x.reshape(2, 3, 4, 5, 7), (2, 3, 4)).reshape(s)
    want = {
        "last": ((rows,), softmax(rows, -1)),
        "middle": ((x,), softmax(x, 1)),
        "log": ((x,), np.log(softmax(x, 2))),
        "layer": ((rows, g, b), normalized(rows, (2,)) * g + b),
        "instance": ((x, scale, bias), instance),
        "blocked": ((x, scale, bias), instance),
        "group": ((x, scale, bias), grouped * channel[0] + channel[1]),
    }
    for name, (ins, y) in want.items():
        np.testing.assert_allclose(library(name, *ins)[0], y, rtol=2e-5, atol=2e-6, err_msg=name)


def test_softmax_of_large_numbers_stays_finite(compile_kernels: Any) -> None:
    x = np.array([[1e4, 1e4 - 1, -1e30, -np.inf] * 10], np.float32)
    (y,) = compile_kernels([build("big", "Softmax", [x.shape], x.shape, {"axis": -1})])("big", x)
    np.testing.assert_allclose(y, softmax(x.astype(np.float64), -1), rtol=1e-6)
