"""Fusion groups of small graphs."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

pytest.importorskip("tvm")

from effc.backends.tvm.grouping import fuse, read_ops  # noqa: E402
from effc.core.shapes import infer_shapes  # noqa: E402

CONV = {"w": (16, 16, 3, 3), "v": (16, 16, 3, 3)}


def groups(body: str, **shapes: tuple[int, ...]) -> list[list[str]]:
    """The operators of each group, in order."""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {body}')
    for name, shape in shapes.items():
        array = np.full(shape, 0.5, np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = ir.from_proto(proto)
    infer_shapes(model)
    ops, problems = read_ops(model)
    assert not problems
    return [[op.info.op_type for op in g.ops] for g in fuse(ops, model.graph.outputs)]


def test_elementwise_operators_follow_their_convolution() -> None:
    assert groups(
        """g (float[1,16,8,8] x) => (float[1,16,8,8] y) {
            a = Conv<pads=[1,1,1,1]>(x, w)
            b = Relu(a)
            y = Sigmoid(b)
        }""",
        w=CONV["w"],
    ) == [["Conv", "Relu", "Sigmoid"]]


def test_the_later_of_two_convolutions_adds() -> None:
    assert groups(
        """g (float[1,16,8,8] x) => (float[1,16,8,8] y) {
            a = Conv<pads=[1,1,1,1]>(x, w)
            b = Conv<pads=[1,1,1,1]>(a, v)
            c = Add(a, b)
            y = Relu(c)
        }""",
        **CONV,
    ) == [["Conv"], ["Conv", "Add", "Relu"]]


def test_a_diamond_that_closes_is_one_group() -> None:
    assert groups(
        """g (float[1,16,8,8] x) => (float[1,16,8,8] y) {
            a = Conv<pads=[1,1,1,1]>(x, w)
            s = Sigmoid(a)
            y = Mul(a, s)
        }""",
        w=CONV["w"],
    ) == [["Conv", "Sigmoid", "Mul"]]


def test_a_value_that_the_caller_sees_ends_its_group() -> None:
    assert groups(
        """g (float[1,16,8,8] x) => (float[1,16,8,8] a, float[1,16,8,8] y) {
            a = Conv<pads=[1,1,1,1]>(x, w)
            y = Relu(a)
        }""",
        w=CONV["w"],
    ) == [["Conv"], ["Relu"]]


def test_a_value_with_readers_elsewhere_ends_its_group() -> None:
    assert groups(
        """g (float[1,16,8,8] x) => (float[1,16,8,8] y) {
            a = Conv<pads=[1,1,1,1]>(x, w)
            b = Relu(a)
            c = Conv<pads=[1,1,1,1]>(b, v)
            y = Add(b, c)
        }""",
        **CONV,
    ) == [["Conv", "Relu"], ["Conv", "Add"]]


def test_a_large_transpose_stands_alone() -> None:
    text = """g (float[1,{0},8,8] x) => (float[1,64,{0}] y) {{
                a = Exp(x)
                s = Constant<value = int64[3] {{1, {0}, 64}}>()
                b = Reshape(a, s)
                c = Transpose<perm=[0,2,1]>(b)
                y = Neg(c)
            }}"""
    assert groups(text.format(16)) == [["Exp", "Reshape", "Transpose", "Neg"]]
    assert groups(text.format(64)) == [["Exp"], ["Reshape", "Transpose"], ["Neg"]]


def test_maps_are_put_together() -> None:
    assert groups(
        """g (float[1,16,8,8] x) => (float[1,64,16] y) {
            a = Exp(x)
            s = Constant<value = int64[3] {1, 16, 64}>()
            b = Reshape(a, s)
            c = Transpose<perm=[0,2,1]>(b)
            y = Neg(c)
        }"""
    ) == [["Exp", "Reshape", "Transpose", "Neg"]]


def test_a_costly_value_is_not_computed_twice() -> None:
    found = groups(
        """g (float[1,16,1,1] x, float[1,16,8,8] z) => (float[1,16,8,8] y) {
            a = Exp(x)
            y = Mul(a, z)
        }"""
    )
    assert found == [["Exp"], ["Mul"]]


def test_parts_of_a_split_go_their_own_ways() -> None:
    found = groups(
        """g (float[1,6,8,8] x) => (float[1,3,8,8] y, float[1,3,8,8] z) {
            a, b = Split<axis=1>(x)
            y = Exp(a)
            z = Neg(b)
        }"""
    )
    assert sorted(found) == [["Split", "Exp"], ["Split", "Neg"]]


def test_every_node_without_kernel_is_a_problem() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17, "my": 1]>
        g (float[4] x) => (float[4] y) {
            a = my.First(x)
            y = my.Second(a)
        }"""
    )
    model = ir.from_proto(proto)
    for node, name in zip(model.graph, ("n1", "n2"), strict=True):
        node.name = name
        node.outputs[0].shape = ir.Shape([4])
        node.outputs[0].dtype = ir.DataType.FLOAT
    _, problems = read_ops(model)
    assert [(p.node, p.op) for p in problems] == [("n1", "my::First"), ("n2", "my::Second")]
    assert all(p.reason and p.remedy for p in problems)
