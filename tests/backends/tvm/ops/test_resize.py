"""Resize by rows, in both layouts, against onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

pytest.importorskip("tvm")

from effc.backends.tvm.grouping import read_ops, type_of  # noqa: E402
from effc.backends.tvm.isa import host_isa  # noqa: E402
from effc.backends.tvm.layout import PLAIN, Layout, TensorType  # noqa: E402
from effc.backends.tvm.ops import all as _all  # noqa: E402, F401
from effc.backends.tvm.ops.resize import resize_kernel  # noqa: E402

ISA = host_isa()
CASES = {  # (source, target, mode, transform)
    "twice": ((9, 21), (18, 42), "linear", "half_pixel"),
    "four": ((5, 17), (20, 68), "linear", "half_pixel"),
    "corners": ((7, 16), (14, 32), "linear", "align_corners"),
    "asymmetric": ((6, 5), (18, 15), "linear", "asymmetric"),
    "torch": ((6, 1), (12, 2), "linear", "pytorch_half_pixel"),
    "odd": ((7, 10), (23, 33), "linear", "half_pixel"),
    "down": ((20, 33), (9, 11), "linear", "half_pixel"),
    "wide": ((6, 17), (6, 34), "linear", "half_pixel"),
    "high": ((6, 17), (12, 17), "linear", "half_pixel"),
    "single": ((1, 1), (8, 8), "linear", "half_pixel"),
    "nearest": ((7, 10), (23, 33), "nearest", "half_pixel"),
    "nearest_down": ((20, 33), (9, 11), "nearest", "asymmetric"),
}


@pytest.mark.parametrize("block", [0, ISA.lanes])
def test_stretched_rows(
    block: int, compile_kernels: Any, model_of: Callable[..., ir.Model]
) -> None:
    kernels, wanted, layout = [], {}, Layout(block) if block else PLAIN
    rng = np.random.default_rng(0)
    for name, (source, target, mode, transform) in CASES.items():
        model = model_of(
            f"g (float[2,19,{source[0]},{source[1]}] x) => (float[2,19,{target[0]},{target[1]}] y) {{"
            f' y = Resize<mode = "{mode}", coordinate_transformation_mode = "{transform}">(x, , , s)'
            "}",
            {"s": np.array([2, 19, *target])},
        )
        (op,), problems = read_ops(model)
        assert not problems
        types = [type_of(v) for v in (op.outputs[0], op.reads[0])]
        out, operand = (TensorType(t.shape, t.dtype, layout) for t in types)
        kernel = resize_kernel(op.info, name, ISA, out, operand)
        assert kernel is not None, name
        kernels.append(kernel)
        x = rng.standard_normal(operand.shape, dtype=np.float32)
        session = ort.InferenceSession(
            ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
        )
        wanted[name] = (x, session.run(None, {"x": x})[0])
    library = compile_kernels(kernels)
    for name, (x, y) in wanted.items():
        np.testing.assert_allclose(library(name, x)[0], y, rtol=0, atol=1e-5, err_msg=name)
