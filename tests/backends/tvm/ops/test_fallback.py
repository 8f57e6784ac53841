"""TVM's own operators as kernels: right, split into tasks, named in the report; refusals have reasons."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

pytest.importorskip("tvm")

from effc.backends.tvm.isa import host_isa  # noqa: E402
from effc.backends.tvm.kernels.epilogue import IDENTITY  # noqa: E402
from effc.backends.tvm.layout import TensorType  # noqa: E402
from effc.backends.tvm.ops import fallback  # noqa: E402
from effc.backends.tvm.ops.contract import OpNode, Refused, find_kernel  # noqa: E402

ISA = host_isa()


def node_of(op: str, ins: list[np.ndarray], out: tuple[int, ...], **attributes: Any) -> OpNode:
    types = tuple(TensorType(a.shape, a.dtype.name) for a in ins)
    return OpNode(op, "", op, attributes, types, (TensorType(out, "float32"),), {}, 18)


def reference(node: OpNode, ins: list[np.ndarray]) -> np.ndarray:
    model = fallback._model(node)
    model.ir_version = 9
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [i.name for i in session.get_inputs()]
    return np.asarray(session.run(None, dict(zip(names, ins, strict=True)))[0])


def test_kernels_from_tvm(compile_kernels: Any) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 8, 12, 10)).astype(np.float32)
    rois = np.array([[0.5, 1, 7, 9], [2, 0, 9, 11], [1, 1, 4, 4]], np.float32)
    cases = {
        "LpPool": ([x], (2, 8, 10, 8), {"kernel_shape": (3, 3), "p": 2}),
        "RoiAlign": (
            [x, rois, np.array([0, 1, 1], np.int64)],
            (3, 8, 5, 4),
            {"output_height": 5, "output_width": 4, "sampling_ratio": 2},
        ),
    }
    kernels, wants = [], {}
    for op, (ins, out, attributes) in cases.items():
        node = node_of(op, ins, out, **attributes)
        entry = find_kernel(node)
        assert entry is not None and entry.template == f"tvm:{op}"
        kernel = entry.build(node, op, ISA, IDENTITY)
        assert kernel.tasks > 1, f"{op} is one task"
        kernels.append(kernel)
        wants[op] = (ins, reference(node, ins))
    library = compile_kernels(kernels)
    for op, (ins, want) in wants.items():
        np.testing.assert_allclose(library(op, *ins)[0], want, rtol=1e-4, atol=1e-5, err_msg=op)


@pytest.mark.parametrize(
    ("op", "shapes", "why"),
    [
        ("NonMaxSuppression", [(1, 6, 4), (1, 1, 6)], "TVM"),
        ("Unique", [(6,)], "TVM"),
        ("Det", [(3, 3)], "not supported"),
    ],
)
def test_what_needs_the_runtime_is_refused(
    op: str, shapes: list[tuple[int, ...]], why: str
) -> None:
    ins = [np.ones(s, np.float32) for s in shapes]
    with pytest.raises(Refused, match=why) as caught:
        fallback.build(node_of(op, ins, (3, 3)), op, ISA, IDENTITY)
    assert caught.value.remedy
