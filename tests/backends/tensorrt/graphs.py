"""Small ONNX graphs for TensorRT: good ones of every precision, and twelve that it can't take."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto as T
from onnx import helper, numpy_helper

F, H, B, I8 = T.FLOAT, T.FLOAT16, T.BFLOAT16, T.INT8
X = ("x", F, [1, 8, 16, 16])
Y = ("y", F, [1, 16, 16, 16])


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def const(name: str, array: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(array), name)


def short(name: str, dtype: int, array: np.ndarray[Any, Any]) -> onnx.TensorProto:
    """A constant of a type that numpy does not have."""
    return helper.make_tensor(name, dtype, array.shape, array.tobytes(), raw=True)


def weight(*shape: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return (rng().standard_normal(shape) * 0.3).astype(dtype)


def node(op: str, inputs: list[str], outputs: list[str], name: str = "", **attributes: Any) -> Any:
    return helper.make_node(op, inputs, outputs, name=name or f"the_{op.lower()}", **attributes)


def model(
    nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: list[Any], domain: str = ""
) -> ir.Model:
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info(*i) for i in inputs],
        [helper.make_tensor_value_info(*o) for o in outputs],
        constants,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 23)]
    opsets += [helper.make_opsetid(domain, 1)] if domain else []
    made = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    from effc.core.errors import FrontendError
    from effc.core.shapes import infer_shapes

    try:
        infer_shapes(made)
    except FrontendError:
        pass  # some of these are broken on purpose
    return made


def conv(dtype: int = F) -> ir.Model:
    """Conv, Relu, MaxPool in one type."""
    kind = {F: np.float32, H: np.float16, B: ml_dtypes.bfloat16}[dtype]
    w = short("w", dtype, weight(16, 8, 3, 3).astype(kind))
    return model(
        [
            node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
            node("Relu", ["c"], ["r"]),
            node("MaxPool", ["r"], ["y"], kernel_shape=[2, 2], strides=[2, 2]),
        ],
        [("x", dtype, [1, 8, 16, 16])], [("y", dtype, [1, 16, 8, 8])], [w],
    )  # fmt: skip


def fp8(op: str = "Conv") -> ir.Model:
    """A Conv or MatMul between FP8 quantizers."""
    small = ml_dtypes.float8_e4m3fn
    shape = (16, 8, 3, 3) if op == "Conv" else (32, 64)
    constants = [
        const("s", np.float32(0.05)),
        short("z", T.FLOAT8E4M3FN, np.zeros((), small)),
        short("w", T.FLOAT8E4M3FN, (weight(*shape) * 40).astype(small)),
    ]
    x, y = (X, Y) if op == "Conv" else (("x", F, [16, 32]), ("y", F, [16, 64]))
    last = node(op, ["xd", "wd"], ["y"], **({"pads": [1] * 4} if op == "Conv" else {}))
    return model(
        [
            node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
            node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
            node("DequantizeLinear", ["w", "s", "z"], ["wd"], "weights"),
            last,
        ],
        [x], [y], constants,
    )  # fmt: skip


def int4(axis: int = 0, block: int = 32) -> ir.Model:
    """MatMul with 4-bit weights in blocks, half precision."""
    w = helper.make_tensor("w", T.INT4, [64, 32], rng().integers(-8, 8, (64, 32)).ravel().tolist())
    scales = np.full((64 // block, 32), 0.02, np.float16)
    return model(
        [
            node("DequantizeLinear", ["w", "s"], ["wd"], "weights", axis=axis, block_size=block),
            node("MatMul", ["x", "wd"], ["y"]),
        ],
        [("x", H, [16, 64])], [("y", H, [16, 32])], [w, const("s", scales)],
    )  # fmt: skip


def int8(zero: int = 0, axis: int | None = None, bias: bool = False) -> ir.Model:
    """A W8A8 Conv: with a zero point, weights quantized along `axis`, or a quantized bias."""
    channels = {None: 1, 0: 16, 1: 8}[axis]
    scales = np.full(channels, 0.01, np.float32) if axis is not None else np.float32(0.01)
    constants = [
        const("s", np.float32(0.05)), const("z", np.int8(zero)),
        const("w", rng().integers(-127, 128, (16, 8, 3, 3)).astype(np.int8)),
        const("ws", scales), const("wz", np.zeros(np.shape(scales), np.int8)),
    ]  # fmt: skip
    inputs = ["xd", "wd"]
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], "weights", axis=axis or 0),
    ]
    if bias:
        constants += [const("b", rng().integers(-999, 999, 16).astype(np.int32))]
        constants += [const("bs", np.float32(0.0005)), const("bz", np.int32(0))]
        nodes.append(node("DequantizeLinear", ["b", "bs", "bz"], ["bd"], "the_bias"))
        inputs.append("bd")
    return model([*nodes, node("Conv", inputs, ["y"], pads=[1] * 4)], [X], [Y], constants)


def gemm() -> ir.Model:
    return model(
        [node("Gemm", ["x", "w", "b"], ["y"])],
        [("x", F, [16, 32])], [("y", F, [16, 64])], [const("w", weight(32, 64)), const("b", weight(64))],
    )  # fmt: skip


def dynamic(*shape: Any) -> ir.Model:
    shape = shape or ("n", 8, 16, 16)
    w = const("w", weight(16, 8, 3, 3))
    return model(
        [node("Conv", ["x", "w"], ["y"], pads=[1] * 4)],
        [("x", F, list(shape))], [("y", F, None)], [w],
    )  # fmt: skip


def bad_group() -> ir.Model:
    w = const("w", weight(16, 8, 3, 3))
    return model([node("Conv", ["x", "w"], ["y"], group=3)], [X], [("y", F, None)], [w])


def dangling() -> ir.Model:
    return model([node("Relu", ["nowhere"], ["y"])], [X], [("y", F, X[2])], [])


def unknown() -> ir.Model:
    return model([node("Frobnicate", ["x"], ["y"])], [X], [("y", F, X[2])], [])


def custom() -> ir.Model:
    foo = node("Foo", ["x"], ["y"], domain="com.acme")
    return model([foo], [X], [("y", F, X[2])], [], "com.acme")


def col2im() -> ir.Model:
    sizes = [const("i", np.array([5, 5])), const("b", np.array([2, 2]))]
    return model(
        [node("Col2Im", ["x", "i", "b"], ["y"])], [("x", F, [1, 20, 16])], [("y", F, None)], sizes
    )


def nms(classes: int = 1) -> ir.Model:
    limits = [
        const("m", np.array([10])), const("i", np.array([0.5], np.float32)),
        const("t", np.array([0.1], np.float32)),
    ]  # fmt: skip
    return model(
        [node("NonMaxSuppression", ["b", "s", "m", "i", "t"], ["y"])],
        [("b", F, [1, 100, 4]), ("s", F, [1, classes, 100])], [("y", T.INT64, ["n", 3])], limits,
    )  # fmt: skip


def branches() -> ir.Model:
    """An If whose condition is an input."""
    then = helper.make_graph(
        [node("Relu", ["x"], ["t"], "in_then")], "then", [],
        [helper.make_tensor_value_info("t", F, [4])],
    )  # fmt: skip
    other = helper.make_graph(
        [node("Neg", ["x"], ["e"], "in_else")], "else", [],
        [helper.make_tensor_value_info("e", F, [4])],
    )  # fmt: skip
    return model(
        [node("If", ["c"], ["y"], then_branch=then, else_branch=other)],
        [("c", T.BOOL, []), ("x", F, [4])], [("y", F, [4])], [],
    )  # fmt: skip


def loop() -> ir.Model:
    """A Loop that doubles three times."""

    def info(name: str, kind: int, shape: list[int]) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    body = helper.make_graph(
        [node("Add", ["a", "a"], ["b"], "doubles"), node("Identity", ["go"], ["on"], "goes_on")], "body",
        [info("i", T.INT64, []), info("go", T.BOOL, []), info("a", F, [4])],
        [info("on", T.BOOL, []), info("b", F, [4])],
    )  # fmt: skip
    return model(
        [node("Loop", ["trip", "cond", "x"], ["y"], body=body)],
        [("x", F, [4])], [("y", F, [4])], [const("trip", np.int64(3)), const("cond", np.bool_(True))],
    )  # fmt: skip
