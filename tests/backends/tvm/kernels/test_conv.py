"""Convolutions of every kind against onnxruntime."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

pytest.importorskip("tvm")

from tvm import tirx  # noqa: E402

from effc.backends.tvm.isa import Isa  # noqa: E402
from effc.backends.tvm.kernels.conv import ConvSpec, conv2d, pack_conv2d  # noqa: E402
from effc.backends.tvm.kernels.epilogue import IDENTITY, Epilogue  # noqa: E402
from effc.backends.tvm.layout import PLAIN, Layout, TensorType  # noqa: E402

from .conftest import ISAS  # noqa: E402

ids = [f"{i.name}" for i in ISAS]
SWEEP = int(os.environ.get("EFFC_TEST_SWEEP", "10"))  # random convolutions for each ISA


@dataclass(frozen=True)
class Case:
    ic: int
    oc: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...] = (1, 1)
    pads: tuple[int, ...] = (0, 0, 0, 0)
    dilations: tuple[int, ...] = (1, 1)
    groups: int = 1
    n: int = 1
    plain_in: bool = False
    plain_out: bool = False
    bias: bool = True


def reference(case: Case, x: np.ndarray, w: np.ndarray, b: np.ndarray | None) -> np.ndarray:
    node = helper.make_node(
        "Conv",
        ["x", "w", "b"][: 3 if case.bias else 2],
        ["y"],
        kernel_shape=case.kernel,
        strides=case.strides,
        pads=case.pads,
        dilations=case.dilations,
        group=case.groups,
    )
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)]
    inputs.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, w.shape))
    feeds = {"x": x, "w": w}
    if b is not None:
        inputs.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, b.shape))
        feeds["b"] = b
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "g", inputs, [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        onnx.ModelProto.SerializeToString(model), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)[0]


def data(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((case.n, case.ic, *case.size), "float32")
    w = rng.standard_normal((case.oc, case.ic // case.groups, *case.kernel), "float32")
    w /= np.sqrt(w[0].size)
    b = rng.standard_normal(case.oc, "float32") if case.bias else None
    return x, w, b


def spec_of(case: Case, isa: Isa, shape: tuple[int, ...]) -> ConvSpec:
    blocked = Layout(isa.lanes)
    return ConvSpec(
        TensorType((case.n, case.ic, *case.size), "float32", PLAIN if case.plain_in else blocked),
        TensorType(shape, "float32", PLAIN if case.plain_out else blocked),
        case.kernel,
        case.strides,
        case.pads,
        case.dilations,
        case.groups,
        case.bias,
    )


def p(*pads: int) -> tuple[int, ...]:
    return pads * 2 if len(pads) == 2 else (pads[0],) * 4


CASES = {
    "pointwise": Case(32, 64, (14, 14), (1, 1)),
    "pointwise-tails": Case(24, 40, (7, 9), (1, 1), n=2),
    "pointwise-strided": Case(20, 33, (9, 8), (1, 1), (2, 2), bias=False),
    "pointwise-wide": Case(16, 272, (3, 3), (1, 1)),
    "classifier": Case(100, 70, (1, 1), (1, 1), n=2),
    "3x3": Case(32, 64, (28, 28), (3, 3), pads=p(1)),
    "3x3-small": Case(48, 33, (7, 7), (3, 3), pads=p(1)),
    "3x3-tiny": Case(17, 16, (2, 2), (3, 3), pads=p(1)),
    "3x3-strided": Case(32, 48, (28, 27), (3, 3), (2, 2), p(1)),
    "3x3-asymmetric": Case(16, 32, (13, 30), (3, 3), (2, 2), (0, 0, 1, 1)),
    "3x3-dilated": Case(16, 32, (20, 20), (3, 3), pads=p(6), dilations=(6, 6)),
    "3x3-dilated-far": Case(16, 16, (9, 9), (3, 3), pads=p(24), dilations=(24, 24)),
    "5x5": Case(24, 24, (14, 14), (5, 5), pads=p(2)),
    "1x7": Case(16, 16, (17, 17), (1, 7), pads=(0, 3, 0, 3)),
    "stem": Case(3, 32, (33, 35), (3, 3), (2, 2), p(1), plain_in=True),
    "stem-7x7": Case(3, 64, (40, 40), (7, 7), (2, 2), p(3), plain_in=True, n=2),
    "patches": Case(3, 40, (32, 32), (8, 8), (8, 8), plain_in=True),
    "plain-both": Case(20, 21, (9, 9), (3, 3), pads=p(1), plain_in=True, plain_out=True),
    "plain-pointwise": Case(20, 21, (9, 9), (1, 1), plain_in=True, plain_out=True),
    "large-pad": Case(4, 8, (5, 5), (3, 3), pads=(7, 7, 7, 7)),
    "large-kernel": Case(16, 16, (31, 31), (31, 31), pads=p(15)),
    "groups-native": Case(64, 128, (9, 9), (3, 3), pads=p(1), groups=2),
    "groups-of-4": Case(64, 64, (10, 10), (3, 3), pads=p(1), groups=16),
    "groups-odd": Case(30, 45, (9, 9), (3, 3), (2, 2), p(1), groups=3),
    "groups-5": Case(60, 100, (6, 6), (1, 1), groups=5),
    "groups-odd-plain": Case(30, 45, (9, 9), (3, 3), pads=p(1), groups=3, plain_in=True),
    "multiplier": Case(20, 40, (8, 8), (3, 3), pads=p(1), groups=20),
    "multiplier-large": Case(3, 60, (8, 8), (3, 3), pads=p(1), groups=3),
    "depthwise": Case(40, 40, (8, 8), (3, 3), pads=p(1), groups=40),
    "depthwise-strided": Case(37, 37, (15, 17), (3, 3), (2, 2), p(1), groups=37, n=2),
    "depthwise-5x5": Case(16, 16, (14, 14), (5, 5), pads=p(2), groups=16, bias=False),
    "depthwise-5x5-strided": Case(16, 16, (28, 28), (5, 5), (2, 2), (1, 1, 2, 2), groups=16),
    "depthwise-large": Case(16, 16, (33, 33), (31, 31), pads=p(15), groups=16),
    "depthwise-dilated": Case(20, 20, (12, 12), (3, 3), pads=p(4), dilations=(4, 4), groups=20),
    "depthwise-plain": Case(20, 20, (12, 12), (3, 3), pads=p(1), groups=20, plain_in=True),
    "depthwise-1d": Case(20, 20, (40,), (3,), (1,), (1, 1), (1,), groups=20),
    "depthwise-3d": Case(6, 6, (4, 5, 6), (3, 3, 3), (1, 1, 1), (1,) * 6, (1, 1, 1), groups=6),
    "1d": Case(20, 33, (50,), (5,), (2,), (2, 2), (1,)),
    "1d-pointwise": Case(20, 33, (50,), (1,), (1,), (0, 0), (1,)),
    "3d": Case(18, 20, (5, 6, 7), (3, 3, 3), (1, 2, 1), (1,) * 6, (1, 1, 1)),
    "3d-pointwise": Case(18, 20, (3, 4, 5), (1, 1, 1), (1, 1, 1), (0,) * 6, (1, 1, 1)),
}


NARROW = """pointwise-tails pointwise-strided 3x3-small 3x3-asymmetric 3x3-dilated stem plain-both
    groups-odd groups-of-4 depthwise-strided depthwise-5x5 1d 3d""".split()


def random_case(rng: np.random.Generator) -> Case | None:
    """Any small convolution; None where its output would be empty."""
    groups = int(rng.choice([1, 1, 1, 2, 3, 8]))
    ic, oc = groups * int(rng.integers(1, 40)), groups * int(rng.integers(1, 40))
    size, kernel = rng.integers(1, 20, 2), rng.integers(1, 6, 2)
    strides, dilations = rng.integers(1, 4, 2), rng.integers(1, 4, 2)
    pads = rng.integers(0, 4, 4)
    if any(size + pads[:2] + pads[2:] < dilations * (kernel - 1) + 1):
        return None
    shapes = (tuple(map(int, a)) for a in (size, kernel, strides, pads, dilations))
    plain_in, plain_out, bias = map(bool, rng.integers(0, 2, 3))
    return Case(ic, oc, *shapes, groups, int(rng.integers(1, 3)), plain_in, plain_out, bias)


def check(isa: Isa, compiled, cases: dict[str, Case]) -> None:
    """Every case against onnxruntime."""
    expected, kernels, arrays = {}, [], {}
    for i, (key, case) in enumerate(cases.items()):
        x, w, b = data(case)
        expected[key] = reference(case, x, w, b)
        spec = spec_of(case, isa, expected[key].shape)
        kernels.append(conv2d(spec, f"conv{i}", isa))
        arrays[key] = (spec.input.layout.pack(x), *pack_conv2d(spec, isa, w, b))
        assert kernels[-1].macs == expected[key].size * w[0].size
    run = compiled(isa, kernels)
    for i, key in enumerate(cases):
        found = run(f"conv{i}", *arrays[key])
        np.testing.assert_allclose(found, expected[key], rtol=2e-5, atol=2e-5, err_msg=key)


@pytest.mark.parametrize("isa", ISAS, ids=ids)
def test_convolutions(isa: Isa, compiled) -> None:
    check(isa, compiled, {k: c for k, c in CASES.items() if isa is ISAS[0] or k in NARROW})


@pytest.mark.parametrize("isa", ISAS, ids=ids)
def test_random_convolutions(isa: Isa, compiled) -> None:
    rng = np.random.default_rng(isa.lanes)
    drawn = (random_case(rng) for _ in range(SWEEP))
    check(isa, compiled, {str(c): c for c in drawn if c})


@pytest.mark.parametrize("isa", ISAS, ids=ids)
@pytest.mark.parametrize("plain_out", [False, True])
def test_epilogue(isa: Isa, plain_out: bool, compiled) -> None:
    """relu(conv + residual * scale[c]) + table[c] + 1, with a blocked, a [N,C,1,1] and a [C] operand."""
    rng = np.random.default_rng(2)
    blocked = Layout(isa.lanes)
    for i, case in enumerate(
        (Case(20, 37, (9, 9), (3, 3), pads=p(1), n=2), Case(20, 37, (9, 9), (1, 1), n=2))
    ):
        case = replace(case, plain_out=plain_out)
        x, w, b = data(case)
        y = reference(case, x, w, b)
        residual = rng.standard_normal(y.shape, "float32")
        scale = rng.standard_normal((2, 37, 1, 1), "float32")
        table = rng.standard_normal(37, "float32")
        operands = (
            TensorType(residual.shape, "float32", PLAIN if plain_out else blocked),
            TensorType(scale.shape, "float32", blocked),
            TensorType(table.shape, "float32"),
        )

        def apply(value, at, loads):
            scaled = loads[0](at) * loads[1]((at[0], at[1], 0, 0))
            total = tirx.max(value + scaled, tirx.const(0.0, "float32"))
            return total + loads[2]((at[1],)) + tirx.const(1.0, "float32")

        spec = spec_of(case, isa, y.shape)
        kernel = conv2d(spec, f"fused{i}", isa, Epilogue(operands, apply))
        run = compiled(isa, [kernel])
        packed = (t.layout.pack(a) for t, a in zip(operands, (residual, scale, table), strict=True))
        found = run(kernel.name, spec.input.layout.pack(x), *pack_conv2d(spec, isa, w, b), *packed)
        expected = np.maximum(y + residual * scale, 0) + table[:, None, None] + 1
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


def test_the_identity_stores_the_result() -> None:
    assert IDENTITY.identity and not Epilogue((), lambda v, i, o: v).identity
