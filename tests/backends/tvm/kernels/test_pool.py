"""Pooling and transposed convolution against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

pytest.importorskip("tvm")

from tvm import tirx  # noqa: E402

from effc.backends.tvm.isa import Isa  # noqa: E402
from effc.backends.tvm.kernels.conv_transpose import (  # noqa: E402
    ConvTransposeSpec,
    conv_transpose,
    pack_conv_transpose,
)
from effc.backends.tvm.kernels.epilogue import Epilogue  # noqa: E402
from effc.backends.tvm.kernels.pool import PoolSpec, global_pool, pool  # noqa: E402
from effc.backends.tvm.layout import PLAIN, Layout, TensorType  # noqa: E402

from .conftest import ISAS  # noqa: E402

ids = [i.name for i in ISAS]


def reference(op: str, arrays: list[np.ndarray], **attributes: Any) -> np.ndarray:
    names = [f"i{k}" for k in range(len(arrays))]
    node = helper.make_node(op, names, ["y"], **attributes)
    inputs = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, a.shape)
        for n, a in zip(names, arrays, strict=True)
    ]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "g", inputs, [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, dict(zip(names, arrays, strict=True)))[0]


# channels, size, kernel, strides, pads, dilations, ceil_mode, n
POOLS = [
    (40, (14, 14), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 0, 2),
    (16, (13, 15), (2, 2), (2, 2), (0, 0, 0, 0), (1, 1), 1, 1),
    (20, (55, 55), (3, 3), (2, 2), (0, 0, 0, 0), (1, 1), 1, 1),
    (5, (9, 9), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 0, 1),
    (17, (13, 13), (5, 5), (1, 1), (2, 2, 2, 2), (1, 1), 0, 1),
    (17, (13, 13), (13, 13), (1, 1), (6, 6, 6, 6), (1, 1), 0, 1),
    (8, (12, 12), (3, 3), (2, 2), (0, 0, 1, 1), (2, 2), 0, 1),
    (8, (7, 7), (7, 7), (7, 7), (0, 0, 0, 0), (1, 1), 0, 1),
    (6, (30,), (4,), (3,), (1, 2), (1,), 1, 1),
    (6, (5, 6, 7), (2, 3, 2), (1, 2, 2), (1, 1, 0, 0, 1, 1), (1, 1, 1), 0, 1),
]


@pytest.mark.parametrize("isa", ISAS, ids=ids)
def test_pools(isa: Isa, compiled) -> None:
    rng = np.random.default_rng(3)
    kernels, runs = [], []
    for i, (c, size, kernel, strides, pads, dilations, ceil, n) in enumerate(POOLS):
        x = rng.standard_normal((n, c, *size), "float32") - 2
        common = {"kernel_shape": kernel, "strides": strides, "pads": pads, "ceil_mode": ceil}
        common["dilations"] = dilations
        modes = [("max", "MaxPool", {})]
        modes += [(f"avg{k}", "AveragePool", {"count_include_pad": k}) for k in (0, 1)]
        for key, op, more in modes:
            expected = reference(op, [x], **common, **more)
            for layout in (Layout(isa.lanes), PLAIN):
                name = f"{key}_{i}_{'b' if layout.block else 'p'}"
                spec = PoolSpec(
                    TensorType(x.shape, "float32", layout),
                    TensorType(expected.shape, "float32", layout),
                    kernel,
                    strides,
                    pads,
                    dilations,
                    key != "max",
                    key == "avg1",
                )
                kernels.append(pool(spec, name, isa))
                runs.append((layout.pack(x), expected))
    run = compiled(isa, kernels)
    for kernel, (array, expected) in zip(kernels, runs, strict=True):
        found = run(kernel.name, array)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5, err_msg=kernel.name)


@pytest.mark.parametrize("isa", ISAS, ids=ids)
def test_global_pools(isa: Isa, compiled) -> None:
    rng = np.random.default_rng(4)
    kernels, runs = [], []
    for i, shape in enumerate([(2, 37, 7, 7), (1, 16, 1, 1), (1, 5, 3, 2), (1, 20, 50), (3, 4, 9)]):
        x = rng.standard_normal(shape, "float32") - 3
        out = (*shape[:2], *(1 for _ in shape[2:]))
        for average in (False, True):
            expected = reference("GlobalAveragePool" if average else "GlobalMaxPool", [x])
            blocked = Layout(isa.lanes)
            for k, (a, b) in enumerate([(blocked, blocked), (blocked, PLAIN), (PLAIN, PLAIN)]):
                types = TensorType(shape, "float32", a), TensorType(out, "float32", b)
                kernels.append(global_pool(*types, average, f"g{i}_{int(average)}_{k}", isa))
                runs.append((a.pack(x), expected))
    run = compiled(isa, kernels)
    for kernel, (array, expected) in zip(kernels, runs, strict=True):
        found = run(kernel.name, array)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5, err_msg=kernel.name)


# ic, oc, size, kernel, strides, pads, output_padding, dilations, groups
TRANSPOSED = [
    (20, 24, (7, 7), (2, 2), (2, 2), (0, 0, 0, 0), (0, 0), (1, 1), 1),
    (16, 33, (6, 5), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), (1, 1), 1),
    (16, 16, (8, 8), (4, 4), (2, 2), (1, 1, 1, 1), (0, 0), (1, 1), 1),
    (5, 7, (4, 4), (3, 3), (1, 1), (0, 0, 0, 0), (0, 0), (1, 1), 1),
    (8, 8, (4, 4), (2, 2), (3, 3), (0, 0, 0, 0), (1, 2), (1, 1), 1),
    (16, 16, (5, 5), (3, 3), (2, 2), (1, 2, 1, 0), (0, 0), (2, 3), 1),
    (12, 20, (5, 5), (3, 3), (2, 2), (1, 1, 1, 1), (0, 0), (1, 1), 4),
    (32, 64, (5, 5), (3, 3), (2, 2), (1, 1, 1, 1), (0, 0), (1, 1), 2),
    (18, 18, (6, 6), (4, 4), (2, 2), (1, 1, 1, 1), (0, 0), (1, 1), 18),
    (6, 6, (9,), (5,), (4,), (2, 2), (1,), (1,), 1),
    (6, 5, (3, 4, 3), (3, 2, 2), (2, 1, 2), (1, 0, 0, 1, 0, 0), (0, 0, 0), (1, 1, 1), 1),
]


@pytest.mark.parametrize("isa", ISAS, ids=ids)
def test_transposed_convolutions(isa: Isa, compiled) -> None:
    rng = np.random.default_rng(5)
    layout = Layout(isa.lanes)
    kernels, runs = [], []

    def relu(value: Any, at: Any, loads: Any) -> Any:
        return tirx.max(value, tirx.const(0.0, "float32"))

    for i, (ic, oc, size, kernel, strides, pads, extra, dilations, groups) in enumerate(TRANSPOSED):
        x = rng.standard_normal((2, ic, *size), "float32")
        w = rng.standard_normal((ic, oc // groups, *kernel), "float32")
        b = rng.standard_normal(oc, "float32")
        expected = reference(
            "ConvTranspose",
            [x, w, b],
            kernel_shape=kernel,
            strides=strides,
            pads=pads,
            output_padding=extra,
            dilations=dilations,
            group=groups,
        )
        spec = ConvTransposeSpec(
            TensorType(x.shape, "float32", layout),
            TensorType(expected.shape, "float32", layout),
            kernel,
            strides,
            pads,
            dilations,
            groups,
            True,
        )
        kernels.append(conv_transpose(spec, f"t{i}", isa, Epilogue((), relu)))
        runs.append(((layout.pack(x), *pack_conv_transpose(spec, isa, w, b)), expected))
    run = compiled(isa, kernels)
    for kernel, (arrays, expected) in zip(kernels, runs, strict=True):
        found = run(kernel.name, *arrays)
        want = np.maximum(expected, 0)
        np.testing.assert_allclose(found, want, rtol=3e-5, atol=3e-5, err_msg=kernel.name)
