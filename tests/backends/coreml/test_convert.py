"""Lowerings whose meaning differs between ONNX and MIL at the edges, against onnxruntime; and refusals.

Many nodes go into one model: coremltools' passes take a third of a second for each program.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("coremltools")

from effc.backends.coreml.convert.program import convert  # noqa: E402
from effc.core.errors import UnsupportedOpError  # noqa: E402
from effc.core.reference import record_goldens  # noqa: E402
from effc.core.shapes import infer_shapes  # noqa: E402

FLOAT, INT64, INT32, BOOL = (
    TensorProto.FLOAT,
    TensorProto.INT64,
    TensorProto.INT32,
    TensorProto.BOOL,
)
BIG = np.iinfo(np.int64).max


class Graph:
    """Nodes with constants, each with an output of the model."""

    def __init__(self, **inputs: tuple[int, tuple[int, ...]]) -> None:
        self.inputs = [helper.make_tensor_value_info(n, t, s) for n, (t, s) in inputs.items()]
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def const(self, array: Any) -> str:
        name = f"k{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def add(
        self, op: str, *inputs: Any, output: int = FLOAT, count: int = 1, **attributes: Any
    ) -> str:
        names = [i if isinstance(i, str) else self.const(i) for i in inputs]
        outs = [f"y{len(self.nodes)}_{k}" for k in range(count)]
        node = helper.make_node(op, names, outs, name=f"n{len(self.nodes)}", **attributes)
        self.nodes.append(node)
        self.outputs += [helper.make_tensor_value_info(o, output, None) for o in outs]
        return outs[0]

    def model(self) -> ir.Model:
        graph = helper.make_graph(self.nodes, "g", self.inputs, self.outputs, self.constants)
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
        model = ir.from_proto(proto)
        infer_shapes(model)
        return model


def compare(packaged: Any, graph: Graph, feeds: dict[str, np.ndarray], **tolerance: float) -> None:
    model = graph.model()
    golden = record_goldens(model, [feeds])[0]
    got = packaged(model, feeds)
    kinds = {o: n.op_type for n in graph.nodes for o in n.output}
    for name, want in golden.items():
        y = got[name]
        assert (y.dtype, y.shape) == (want.dtype, want.shape), kinds[name]
        where = f"{name}: {next(n for n in graph.nodes if name in n.output)}"
        np.testing.assert_allclose(
            y, want, **{"rtol": 2e-5, "atol": 2e-5, **tolerance}, err_msg=where[:600]
        )


def random(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_slices_at_the_edges_of_int64(packaged: Any) -> None:
    g = Graph(x=(FLOAT, (2, 5, 7)))
    for start, end, axis, step in [
        (0, BIG, 2, 1), (1, BIG - 1, 2, 2), (-3, BIG, 1, 1), (BIG, -BIG - 1, 2, -1), (-1, -BIG, 1, -2),
        (2, -1, 2, 1), (1 << 31, 0, 2, -3), (-(1 << 31), 1 << 31, 2, 1), (5, 2, 2, -1),
    ]:  # fmt: skip
        g.add("Slice", "x", *(np.array([v], np.int64) for v in (start, end, axis, step)))
    compare(packaged, g, {"x": random(2, 5, 7)}, rtol=0, atol=0)


def test_integer_division_and_remainder_of_all_signs(packaged: Any) -> None:
    g = Graph(a=(INT64, (7,)), b=(INT64, (7,)), x=(FLOAT, (7,)), y=(FLOAT, (7,)))
    g.add("Div", "a", "b", output=INT64)
    g.add("Mod", "a", "b", output=INT64)
    g.add("Mod", "a", "b", output=INT64, fmod=1)
    g.add("Mod", "x", "y", fmod=1)
    feeds = {
        "a": np.array([7, -7, 7, -7, 6, -6, 0]),
        "b": np.array([2, 2, -2, -2, 3, 3, -5]),
        "x": np.array([5.5, -5.5, 5.5, -5.5, 0, 1, -3], np.float32),
        "y": np.array([2, 2, -2, -2, 1, 4, 3], np.float32),
    }
    compare(packaged, g, feeds)


def test_transposes_of_more_than_five_axes(packaged: Any) -> None:
    rng = np.random.default_rng(2)
    g = Graph(x=(FLOAT, (1, 2880)))
    for shape in [
        (1, 2, 3, 4, 10, 12),
        (2, 3, 4, 5, 6, 4),
        (2, 3, 2, 2, 5, 3, 8),
        (1, 8, 4, 1, 9, 10),
    ]:
        for _ in range(3):
            perm = rng.permutation(len(shape)).tolist()
            high = g.add("Reshape", "x", np.array(shape, np.int64))
            turned = g.add("Transpose", high, perm=perm)
            g.add("Reshape", turned, np.array([10, 288], np.int64))
            g.outputs = [o for o in g.outputs if o.name not in (high, turned)]
    compare(packaged, g, {"x": random(1, 2880)}, rtol=0, atol=0)


MODES = ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners", "half_pixel_symmetric")
ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


@pytest.mark.parametrize("sizes", [(12, 10), (3, 1), (9, 15)])
def test_resize_in_every_mode(packaged: Any, sizes: tuple[int, int]) -> None:
    g = Graph(x=(FLOAT, (1, 2, 6, 5)))
    empty = np.array([], np.float32)
    target = np.array([1, 2, *sizes], np.int64)

    def add(**attributes: Any) -> None:
        g.add("Resize", "x", empty, empty, target, **attributes)

    for transform in MODES:
        for rounding in ROUNDINGS:
            add(coordinate_transformation_mode=transform, nearest_mode=rounding)
        add(mode="linear", coordinate_transformation_mode=transform)
        add(mode="cubic", coordinate_transformation_mode=transform)
        if transform != "align_corners":  # onnxruntime's own is not defined there
            add(mode="linear", coordinate_transformation_mode=transform, antialias=1)
    add(mode="cubic", exclude_outside=1, cubic_coeff_a=-0.5)
    compare(packaged, g, {"x": random(1, 2, 6, 5)}, atol=1e-4)


def test_windows_of_pools(packaged: Any) -> None:
    g = Graph(x=(FLOAT, (1, 2, 11, 13)))
    for pads, ceil, dilations in itertools.product(
        ([0, 0, 0, 0], [1, 0, 2, 1]), (0, 1), ([1, 1], [2, 1])
    ):
        same: dict[str, Any] = {
            "kernel_shape": [3, 3], "pads": pads, "ceil_mode": ceil, "strides": [2, 3],
            "dilations": dilations,
        }  # fmt: skip
        g.add("MaxPool", "x", **same)
        for count in (0, 1):
            g.add("AveragePool", "x", count_include_pad=count, **same)
    for auto in ("SAME_UPPER", "SAME_LOWER", "VALID"):
        g.add("MaxPool", "x", kernel_shape=[2, 4], strides=[2, 2], auto_pad=auto)
        g.add("AveragePool", "x", kernel_shape=[2, 4], strides=[2, 2], auto_pad=auto)
    compare(packaged, g, {"x": random(1, 2, 11, 13)})


def test_convolutions_and_their_transposes(packaged: Any) -> None:
    g = Graph(x=(FLOAT, (1, 4, 7, 6)), w=(FLOAT, (6, 4, 3, 3)))
    for auto in ("SAME_UPPER", "SAME_LOWER", "VALID"):
        g.add("Conv", "x", random(6, 2, 3, 2), random(6), group=2, strides=[2, 1], auto_pad=auto)
    g.add("Conv", "x", random(4, 1, 3, 3), dilations=[2, 1], pads=[1, 0, 2, 1], group=4)
    g.add("Conv", "x", "w", random(6, seed=2), pads=[1, 1, 1, 1])  # weights of the caller
    kernel = random(4, 3, 3, 4)
    for attributes in (
        {}, {"strides": [2, 3]}, {"strides": [2, 2], "pads": [1, 0, 1, 2], "output_padding": [1, 0]},
        {"strides": [2, 3], "output_padding": [1, 2]}, {"group": 2, "dilations": [2, 1]},
        {"strides": [2, 2], "output_shape": [14, 13]}, {"strides": [3, 2], "auto_pad": "SAME_UPPER"},
        {"strides": [3, 2], "auto_pad": "SAME_LOWER"},
    ):  # fmt: skip
        channels = 3 * int(attributes.get("group", 1))
        g.add("ConvTranspose", "x", kernel, random(channels), **attributes)
    compare(packaged, g, {"x": random(1, 4, 7, 6), "w": random(6, 4, 3, 3)}, atol=1e-4)


@pytest.mark.parametrize("direction", ["reverse", "bidirectional"])
def test_recurrent_layers(packaged: Any, direction: str) -> None:
    n, hidden, features = (2 if direction == "bidirectional" else 1), 4, 3
    g = Graph(x=(FLOAT, (3, 2, features)), h=(FLOAT, (n, 2, hidden)), c=(FLOAT, (n, 2, hidden)))
    for op, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
        w, r = random(n, gates * hidden, features), random(n, gates * hidden, hidden, seed=2)
        b = random(n, 2 * gates * hidden, seed=3)
        states = ["h", "c"] if op == "LSTM" else ["h"]
        count = len(states) + 1
        common = {"hidden_size": hidden, "direction": direction, "count": count}
        g.add(op, "x", w, r, b, "", *states, **common)
        g.add(op, "x", w, r, **common)
        if op == "GRU":
            g.add(op, "x", w, r, b, "", "h", linear_before_reset=1, **common)
    feeds = {"x": random(3, 2, 3), "h": random(n, 2, hidden), "c": random(n, 2, hidden, seed=5)}
    compare(packaged, g, feeds)


def test_gathers_and_scatters_with_negative_indices(packaged: Any) -> None:
    g = Graph(x=(FLOAT, (4, 5)), i=(INT64, (2, 5)), j=(INT64, (3, 2)))
    g.add("Gather", "x", np.array(-2), axis=1)
    g.add("Gather", "x", np.array([[0, -1], [3, -4]]), axis=0)
    g.add("GatherElements", "x", "i", axis=0)
    g.add("GatherElements", "x", "j", axis=1)
    g.add("GatherND", "x", "j")
    g.add("ScatterElements", "x", "i", random(2, 5), axis=0, reduction="add")
    g.add("ScatterElements", "x", np.array([[1, -1], [0, 2], [3, 0]]), random(3, 2), axis=1)
    g.add("ScatterND", "x", np.array([[-1], [1]]), random(2, 5))
    g.add("TopK", "x", np.array([3]), axis=1, largest=0, count=2)
    g.outputs[-1].type.tensor_type.elem_type = INT64
    g.add("OneHot", "i", np.array(5), np.array([-1.0, 2.0], np.float32), axis=1)
    i = np.array([[0, -1, 2, -4, 1], [3, 1, -2, 0, -3]])
    compare(packaged, g, {"x": random(4, 5), "i": i, "j": np.array([[0, -1], [-4, 3], [2, -5]])})


def test_branches(packaged: Any) -> None:
    g = Graph(p=(BOOL, ()), x=(FLOAT, (2, 3)))
    branches = []
    for k, op in enumerate(("Relu", "Neg")):
        out = helper.make_tensor_value_info(f"b{k}", FLOAT, (2, 3))
        branches.append(
            helper.make_graph([helper.make_node(op, ["x"], [f"b{k}"])], f"g{k}", [], [out])
        )
    g.add("If", "p", then_branch=branches[0], else_branch=branches[1])
    for p in (True, False):
        compare(packaged, g, {"p": np.array(p), "x": random(2, 3)})


def refused(graph: Graph) -> UnsupportedOpError:
    with pytest.raises(UnsupportedOpError) as caught:
        convert(graph.model(), 17, "iphone-15")
    return caught.value


def test_all_that_can_not_be_lowered_is_named_at_once() -> None:
    g = Graph(x=(FLOAT, (2, 3)), i=(INT64, (2, 3)))
    first = g.add("Det", random(4, 4))
    g.add("Relu", first)
    g.add("BitShift", np.array([1], np.uint8), np.array([1], np.uint8), output=2, direction="LEFT")
    g.add("Add", "i", np.array(1 << 40), output=INT64)
    g.add("Relu", "x")
    error = refused(g)
    assert [(p.node, p.op) for p in error.problems] == [
        ("n0", "Det"),
        ("n2", "BitShift"),
        ("n3", "Add"),
    ]
    assert "(and 2 more)" in str(error)
    assert "1099511627776" in error.problems[2].reason
    assert all(p.remedy for p in error.problems)


def test_rank_six_is_refused_where_elements_are_not_only_moved() -> None:
    g = Graph(x=(FLOAT, (4, 16)))
    high = g.add("Reshape", "x", np.array([2, 2, 2, 2, 2, 2]))
    g.add("Softmax", high, axis=1)
    g.outputs = g.outputs[1:]
    y = g.add("Reshape", "y1_0", np.array([4, 16]))
    g.outputs = [o for o in g.outputs if o.name == y]
    (problem,) = refused(g).problems
    assert problem.node == "n1" and "rank 6" in problem.reason and "5" in problem.reason


def test_the_interface_is_refused_with_its_reason() -> None:
    g = Graph(x=(TensorProto.DOUBLE, (2,)))
    g.add("Relu", "x", output=TensorProto.DOUBLE)
    error = refused(g)
    assert {p.op for p in error.problems} == {"input", "output"}
    assert "double" in str(error)


def test_a_product_and_a_sum_by_channel_keep_their_last_bits(packaged) -> None:
    """A pass of coremltools makes a batch_norm of them, with an epsilon of 1e-5 that nobody wrote."""
    text = """<ir_version: 10, opset_import: ["": 23]> g (float[1,2,3,3] x) => (float[1,2,3,3] y)
        <float[1,2,1,1] a = {3.0, -7.0}, float[1,2,1,1] b = {0.5, 100.0}> {
            m = Mul (x, a)
            y = Add (m, b)
        }"""
    model = ir.from_onnx_text(text)
    infer_shapes(model)
    x = np.random.default_rng(0).standard_normal((1, 2, 3, 3)).astype(np.float32) * 1000
    wanted = x * np.float32([3, -7]).reshape(1, 2, 1, 1) + np.float32([0.5, 100]).reshape(
        1, 2, 1, 1
    )
    np.testing.assert_allclose(packaged(model, {"x": x})["y"], wanted, rtol=1e-6)
