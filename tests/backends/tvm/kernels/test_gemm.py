"""Matrix products against numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("tvm")

from tvm import tirx  # noqa: E402

from effc.backends.tvm.isa import Isa  # noqa: E402
from effc.backends.tvm.kernels.epilogue import Epilogue  # noqa: E402
from effc.backends.tvm.kernels.gemm import (  # noqa: E402
    GemmSpec,
    MatmulSpec,
    gemm,
    matmul,
    pack_gemm,
)
from effc.backends.tvm.layout import TensorType  # noqa: E402

from .conftest import ISAS  # noqa: E402

ids = [i.name for i in ISAS]


def tensor(*shape: int) -> TensorType:
    return TensorType(shape, "float32")


@pytest.mark.parametrize("isa", ISAS, ids=ids)
def test_constant_weights(isa: Isa, compiled) -> None:
    rng = np.random.default_rng(0)
    shapes = [((1,), 40, 10), ((1,), 1280, 1000), ((5,), 33, 17), ((2, 7), 64, 48), ((67,), 96, 3)]
    shapes += [((3, 2, 4), 5, 16), ((29,), 1, 1), ((1, 1), 300, 1)]
    kernels, runs = [], []
    for i, (lead, k, n) in enumerate(shapes):
        a = rng.standard_normal((*lead, k), "float32")
        b = rng.standard_normal((k, n), "float32") / np.float32(np.sqrt(k))
        bias = rng.standard_normal(n, "float32") if i % 2 else None
        spec = GemmSpec(tensor(*a.shape), tensor(*lead, n), bias is not None)
        kernels.append(gemm(spec, f"gemm{i}", isa))
        assert kernels[-1].macs == a.size * n
        expected = a.astype("float64") @ b + (0 if bias is None else bias)
        runs.append(((a, *pack_gemm(spec, isa, b, bias)), expected))
    run = compiled(isa, kernels)
    for kernel, (arrays, expected) in zip(kernels, runs, strict=True):
        found = run(kernel.name, *arrays)
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5, err_msg=kernel.name)


@pytest.mark.parametrize("isa", ISAS, ids=ids)
def test_two_activations(isa: Isa, compiled) -> None:
    rng = np.random.default_rng(1)
    shapes = [
        ((3, 19, 33), (3, 33, 50)),
        ((2, 3, 50, 16), (2, 3, 16, 50)),
        ((2, 1, 5, 8), (3, 8, 4)),
        ((4, 6, 8), (8, 40)),
        ((6, 8), (5, 8, 7)),
        ((1, 7), (7, 1)),
    ]
    kernels, runs = [], []
    for i, (sa, sb) in enumerate(shapes):
        for transposed in (False, True):
            a, b = rng.standard_normal(sa, "float32"), rng.standard_normal(sb, "float32")
            expected = a.astype("float64") @ b
            if transposed:
                b = np.ascontiguousarray(np.swapaxes(b, -1, -2))
            spec = MatmulSpec(tensor(*sa), tensor(*b.shape), tensor(*expected.shape), transposed)
            kernels.append(matmul(spec, f"matmul{i}{'t' if transposed else ''}", isa))
            runs.append(((a, b), expected))
    run = compiled(isa, kernels)
    for kernel, (arrays, expected) in zip(kernels, runs, strict=True):
        found = run(kernel.name, *arrays)
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5, err_msg=kernel.name)


@pytest.mark.parametrize("isa", ISAS, ids=ids)
def test_epilogue(isa: Isa, compiled) -> None:
    """Bias [N], a residual of the output's shape and a column [B, S, 1]."""
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((2, 9, 20), "float32"), rng.standard_normal((20, 21), "float32")
    bias = rng.standard_normal(21, "float32")
    residual, column = rng.standard_normal((2, 9, 21), "float32"), rng.standard_normal((2, 9, 1))
    column = column.astype("float32")
    operands = tuple(tensor(*x.shape) for x in (bias, residual, column))

    def apply(value, at, loads):
        total = value + loads[0]((at[2],)) + loads[1](at)
        return tirx.max(total, tirx.const(0.0, "float32")) * loads[2]((at[0], at[1], 0))

    spec = GemmSpec(tensor(2, 9, 20), tensor(2, 9, 21))
    kernel = gemm(spec, "fused", isa, Epilogue(operands, apply))
    found = compiled(isa, [kernel])("fused", a, *pack_gemm(spec, isa, b), bias, residual, column)
    expected = np.maximum(a @ b + bias + residual, 0) * column
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
