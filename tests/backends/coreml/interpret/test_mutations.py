"""A changed attribute in a saved package changes the answer: the interpreter reads them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from effc.backends.coreml.interpret import Interpreter

IMAGE = np.random.default_rng(0).normal(size=(1, 4, 6, 7)).astype(np.float32)
ROWS = np.random.default_rng(1).normal(size=(3, 2, 4)).astype(np.float32)
W = np.random.default_rng(2).normal(size=(4, 4, 3, 3)).astype(np.float32)
V = np.random.default_rng(3).normal(size=4).astype(np.float32)
GATES = np.random.default_rng(4).normal(size=(8, 4)).astype(np.float32)
STATE = np.ones((2, 2), np.float32)
MATRIX = np.random.default_rng(5).normal(size=(4, 4)).astype(np.float32)

# parameter, its value in the program, another value, and the operation around it
CASES: dict[str, tuple[np.ndarray, str, Any, Any, Callable[..., Any]]] = {
    "conv.dilations": (
        IMAGE, "dilations", [1, 2], [2, 1],
        lambda mb, x, **o: mb.conv(x=x, weight=W, pad=[2] * 4, pad_type="custom", **o),
    ),
    "conv.pad": (
        IMAGE, "pad", [1, 0, 2, 0], [0, 1, 0, 2],
        lambda mb, x, **o: mb.conv(x=x, weight=W, pad_type="custom", **o),
    ),
    "conv.strides": (
        IMAGE, "strides", [1, 1], [1, 2],
        lambda mb, x, **o: mb.slice_by_size(
            x=mb.conv(x=x, weight=W, pad_type="same", **o), begin=[0] * 4, size=[1, 4, 6, 4]
        ),
    ),
    "conv.pad_type": (
        IMAGE, "pad_type", "same", "same_lower",
        lambda mb, x, **o: mb.conv(x=x, weight=W, strides=[2, 2], **o),
    ),
    "conv_transpose.pad": (
        IMAGE, "pad", [1, 0, 0, 1], [0, 1, 1, 0],
        lambda mb, x, **o: mb.conv_transpose(x=x, weight=W, pad_type="custom", **o),
    ),
    "avg_pool.exclude_padding_from_average": (
        IMAGE, "exclude_padding_from_average", True, False,
        lambda mb, x, **o: mb.avg_pool(
            x=x, kernel_sizes=[3, 3], pad=[1] * 4, pad_type="custom", **o
        ),
    ),
    "batch_norm.epsilon": (
        IMAGE, "epsilon", np.float32(0.1), np.float32(0.2),
        lambda mb, x, **o: mb.batch_norm(x=x, mean=V, variance=V * V, **o),
    ),
    "layer_norm.axes": (
        ROWS, "axes", [2], [0],
        lambda mb, x, **o: mb.layer_norm(x=x, **o),
    ),
    "softmax.axis": (ROWS, "axis", 1, 2, lambda mb, x, **o: mb.softmax(x=x, **o)),
    "resize_bilinear.sampling_mode": (
        IMAGE, "sampling_mode", "DEFAULT", "UNALIGN_CORNERS",
        lambda mb, x, **o: mb.resize_bilinear(
            x=x, target_size_height=9, target_size_width=5, **o
        ),
    ),
    "upsample_bilinear.align_corners": (
        IMAGE, "align_corners", True, False,
        lambda mb, x, **o: mb.upsample_bilinear(
            x=x, scale_factor_height=2, scale_factor_width=2, half_pixel_centers=False, **o
        ),
    ),
    "matmul.transpose_y": (
        ROWS, "transpose_y", False, True,
        lambda mb, x, **o: mb.matmul(x=x, y=MATRIX, **o),
    ),
    "transpose.perm": (
        MATRIX, "perm", [0, 1], [1, 0],
        lambda mb, x, **o: mb.transpose(x=x, **o),
    ),
    "concat.interleave": (
        MATRIX, "interleave", False, True,
        lambda mb, x, **o: mb.concat(values=[x, mb.abs(x=x)], axis=0, **o),
    ),
    "cumsum.reverse": (ROWS, "reverse", False, True, lambda mb, x, **o: mb.cumsum(x=x, **o)),
    "cumsum.exclusive": (ROWS, "exclusive", False, True, lambda mb, x, **o: mb.cumsum(x=x, **o)),
    "topk.ascending": (ROWS, "ascending", False, True, lambda mb, x, **o: mb.topk(x=x, k=2, **o)[0]),
    "slice_by_index.begin_mask": (
        ROWS, "begin_mask", [False, False, True], [False, False, False],
        lambda mb, x, **o: mb.slice_by_size(
            x=mb.slice_by_index(x=x, begin=[0, 0, 1], end=[3, 2, 4], **o),
            begin=[0, 0, 0], size=[3, 2, 3],
        ),
    ),
    "pad.mode": (
        ROWS, "mode", "reflect", "replicate",
        lambda mb, x, **o: mb.pad(x=x, pad=[1, 1], **o),
    ),
    "gru.recurrent_activation": (
        ROWS, "recurrent_activation", "sigmoid", "tanh",
        lambda mb, x, **o: mb.gru(
            x=x, initial_h=STATE, weight_ih=GATES[:6], weight_hh=GATES[:6, :2], **o
        )[1],
    ),
    "lstm.direction": (
        ROWS, "direction", "forward", "reverse",
        lambda mb, x, **o: mb.lstm(
            x=x, initial_h=STATE, initial_c=STATE, weight_ih=GATES, weight_hh=GATES[:, :2], **o
        )[1],
    ),
    "gelu.mode": (ROWS, "mode", "EXACT", "TANH_APPROXIMATION", lambda mb, x, **o: mb.gelu(x=x, **o)),
    "reduce_argmax.axis": (
        MATRIX, "axis", 0, 1,
        lambda mb, x, **o: mb.reduce_argmax(x=x, **o),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_changed_attribute_changes_the_answer(mil: Any, case: str) -> None:
    """The constant is changed in the specification alone, so that only the interpreter can notice."""
    from coremltools.proto import Model_pb2

    x, parameter, before, after, build = CASES[case]
    path = mil.save(lambda mb, x: build(mb, x, **{parameter: before}), {"x": x})
    want = Interpreter(mil.save(lambda mb, x: build(mb, x, **{parameter: after}), {"x": x}))
    model = path / "Data/com.apple.CoreML/model.mlmodel"
    first = Interpreter(path).predict({"x": x})["out_0"]

    spec = Model_pb2.Model.FromString(model.read_bytes())
    operations = spec.mlProgram.functions["main"].block_specializations["CoreML8"].operations
    (changed,) = (o for o in operations if o.type == case.split(".")[0])
    name = changed.inputs[parameter].arguments[0].name
    (held,) = (o for o in operations if o.type == "const" and o.outputs[0].name == name)
    tensor = held.attributes["val"].immediateValue.tensor
    values = getattr(tensor, tensor.WhichOneof("value")).values
    del values[:]
    values.extend(after if isinstance(after, list) else [after])
    for operation in operations:  # what it gives may have another shape
        for output in operation.outputs:
            for dimension in output.type.tensorType.dimensions if operation.type != "const" else ():
                dimension.unknown.variadic = False
    model.write_bytes(spec.SerializeToString())
    second = Interpreter(path).predict({"x": x})["out_0"]
    assert first.shape != second.shape or not np.allclose(first, second, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(second, want.predict({"x": x})["out_0"])
