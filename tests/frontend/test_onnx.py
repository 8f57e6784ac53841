"""Loading what is valid: every form of an ONNX file gives the same model, weights stay in the file."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper

from effc import zoo
from effc.core.check import check_model
from effc.core.errors import FrontendError
from effc.core.reference import OnnxRuntimeRunner, random_feeds
from effc.core.source import fingerprint, place_of
from effc.frontend import onnx as frontend
from effc.frontend import wire


def answers(model: ir.Model, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    with OnnxRuntimeRunner(model, optimize=False) as runner:
        return runner.infer(random_feeds(model, 1, seed)[0])


def assert_same(a: ir.Model, b: ir.Model) -> None:
    left, right = answers(a), answers(b)
    assert left.keys() == right.keys()
    for name, array in left.items():
        np.testing.assert_array_equal(array, right[name])


def proto_of(name: str) -> onnx.ModelProto:
    return ir.to_proto(zoo.build(name))


def dense(weight: np.ndarray[Any, Any], *extra: onnx.NodeProto, **changes: Any) -> onnx.ModelProto:
    """y = x @ w for x [2, K]."""
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="dense")
    rows = weight.shape[0]
    graph = helper.make_graph(
        [*extra, node], "g",
        [helper.make_tensor_value_info("x", T.FLOAT, [2, rows])],
        [helper.make_tensor_value_info("y", T.FLOAT, [2, weight.shape[1]])],
        [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    return helper.make_model(
        graph, **{"opset_imports": [helper.make_opsetid("", 18)], "ir_version": 9} | changes
    )


def weights(rows: int = 300, columns: int = 2000) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)


@pytest.mark.parametrize("name", ["tiny-resnet", "tiny-vit", "tiny-yolo"])
def test_binary(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a model \u6f22.onnx"
    path.write_bytes(proto_of(name).SerializeToString())
    source = frontend.load_source(path)
    assert source.kind == "onnx" and source.name == str(path)
    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert_same(source.model, zoo.build(name))
    assert fingerprint(source.model) == fingerprint(zoo.build(name))


@pytest.mark.parametrize("file", ["m.onnxtxt", "m.txt", "m.onnx"])
def test_text(file: str, tmp_path: Path) -> None:
    text = """
      <ir_version: 9, opset_import: ["" : 18]>
      example (float[2,3] x) => (float[2,2] y)
      <float[3,2] w = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0}>
      { a = MatMul(x, w)  y = Relu(a) }"""
    (tmp_path / file).write_text(text)
    model = frontend.load(tmp_path / file)
    check_model(model)
    x = random_feeds(model, 1)[0]["x"]
    w = np.arange(1, 7, dtype=np.float32).reshape(3, 2)
    np.testing.assert_allclose(answers(model)["y"], np.maximum(x @ w, 0), rtol=1e-5)


def test_large_weights_stay_in_the_file(tmp_path: Path) -> None:
    weight = weights()
    path = tmp_path / "m.onnx"
    path.write_bytes(dense(weight).SerializeToString())
    data = path.read_bytes()
    skeleton, payloads = wire.split(data, len(data))
    assert len(skeleton) < 1000 and list(payloads) == [0]
    model = frontend.load(path)
    loaded = model.graph.initializers["w"].const_value
    assert loaded is not None
    array = loaded.numpy()
    assert not array.flags.owndata and not array.flags.writeable
    np.testing.assert_array_equal(array, weight)
    path.unlink()  # the mapping outlives the name
    np.testing.assert_allclose(
        answers(model)["y"], random_feeds(model, 1)[0]["x"] @ weight, rtol=1e-4, atol=1e-4
    )


def test_large_float_data_is_mapped_as_well(tmp_path: Path) -> None:
    weight = weights()
    proto = dense(weight)
    del proto.graph.initializer[:]
    proto.graph.initializer.append(helper.make_tensor("w", T.FLOAT, weight.shape, weight.ravel()))
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    model = frontend.load(path)
    tensor = model.graph.initializers["w"].const_value
    assert tensor is not None and not tensor.numpy().flags.owndata
    np.testing.assert_array_equal(tensor.numpy(), weight)


_MEMORY = """
import sys
from effc.frontend.onnx import load
def peak():  # not ru_maxrss: that starts at the size of the process that forked this one
    return next(int(s.split()[1]) for s in open("/proc/self/status") if s.startswith("VmHWM"))
before = peak()
model = load(sys.argv[1])
print((peak() - before) * 1024)
assert model.graph.initializers["w0"].const_value.numpy()[3, 3] == 1
"""


def test_loading_takes_no_memory_for_weights(tmp_path: Path) -> None:
    """400 MB in four weights: hashing reads them through the page cache, nothing copies them."""
    block = np.ones((5000, 5000), np.float32).tobytes()
    path = tmp_path / "m.onnx"
    names = [f"w{i}" for i in range(4)]
    proto = dense(weights(4, 4))
    with path.open("wb") as f:
        small = proto.SerializeToString()
        del proto.graph.initializer[:]
        graph = proto.graph.SerializeToString()
        tensors = [
            onnx.TensorProto(name=n, data_type=T.FLOAT, dims=[5000, 5000]).SerializeToString()
            for n in names
        ]
        # serialized by hand: protobuf would hold it all in memory
        parts = [
            wire._tagged(5, len(t) + len(wire._tagged(9, len(block))) + len(block)) + t
            + wire._tagged(9, len(block))
            for t in tensors
        ]  # fmt: skip
        keep = onnx.ModelProto.FromString(small).graph.initializer[0].SerializeToString()
        body = len(graph) + len(wire._tagged(5, len(keep))) + len(keep)
        body += sum(len(p) + len(block) for p in parts)
        proto.ClearField("graph")
        f.write(proto.SerializeToString() + wire._tagged(7, body) + graph)
        f.write(wire._tagged(5, len(keep)) + keep)
        for part in parts:
            f.write(part + block)
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY, str(path)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 150 << 20, done.stdout
    path.unlink()


@pytest.mark.parametrize(
    "array",
    [
        np.array(3.5, np.float32),
        np.arange(-4, 4, dtype=np.int8),
        np.arange(5, dtype=np.uint16),
        np.array([True, False]),
        np.arange(4, dtype=np.float16),
        np.arange(4, dtype=np.float64),
        np.arange(-2, 2, dtype=np.int64),
        np.zeros((0, 3), np.float32),
    ],
    ids=str,
)
@pytest.mark.parametrize("form", ["raw", "typed", "external"])
def test_element_types(array: np.ndarray[Any, Any], form: str, tmp_path: Path) -> None:
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    if form == "typed":
        tensor = helper.make_tensor("c", kind, array.shape, array.ravel())
    else:
        tensor = numpy_helper.from_array(array, "c")
    proto = dense(weights(4, 4))
    proto.graph.initializer.append(tensor)
    proto.graph.output.append(helper.make_tensor_value_info("z", kind, array.shape))
    proto.graph.node.append(helper.make_node("Identity", ["c"], ["z"], name="copy"))
    path = tmp_path / "m.onnx"
    external = {"save_as_external_data": True, "size_threshold": 0} if form == "external" else {}
    onnx.save(proto, path, location="m.data", **external)
    model = frontend.load(path)
    check_model(model)
    loaded = model.graph.initializers["c"].const_value
    assert loaded is not None
    np.testing.assert_array_equal(loaded.numpy(), array)
    assert loaded.numpy().shape == array.shape
    np.testing.assert_array_equal(answers(model)["z"], array)


def test_four_bit_weights_outside(tmp_path: Path) -> None:
    numbers = [-8, 7, 3, -1, 5]
    tensor = helper.make_tensor("c", T.INT4, [5], numbers)
    raw = numpy_helper.from_array(numpy_helper.to_array(tensor), "c")
    proto = dense(weights(4, 4))
    proto.graph.initializer.append(raw)
    onnx.save(
        proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0
    )
    loaded = frontend.load(tmp_path / "m.onnx").graph.initializers["c"].const_value
    assert loaded is not None and loaded.dtype == ir.DataType.INT4
    assert loaded.numpy().astype(int).tolist() == numbers


def test_external_data_and_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    proto = proto_of("tiny-resnet")
    onnx.save(proto, path, save_as_external_data=True, location="sub.data", size_threshold=64)
    source = frontend.load_source(path)
    assert_same(source.model, zoo.build("tiny-resnet"))
    data = (tmp_path / "sub.data").read_bytes()
    (tmp_path / "sub.data").unlink()
    (tmp_path / "sub.data").write_bytes(bytes([data[0] ^ 1]) + data[1:])
    assert frontend.load_source(path).sha256 != source.sha256


def test_link_inside_the_folder_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    proto = proto_of("tiny-mlp")
    onnx.save(proto, path, save_as_external_data=True, location="m.data", size_threshold=64)
    (tmp_path / "m.data").rename(tmp_path / "real.data")
    (tmp_path / "m.data").symlink_to("real.data")
    assert_same(frontend.load(path), zoo.build("tiny-mlp"))


def test_functions_are_inlined(tmp_path: Path) -> None:
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    scale = helper.make_node("Constant", [], ["k"], value_float=2.0)
    scale.attribute[0].ref_attr_name = "factor"
    scale.attribute[0].ClearField("f")
    double = helper.make_function(
        "local", "Scale", ["x"], ["y"],
        [scale, helper.make_node("Mul", ["x", "k"], ["y"])],
        imports, attributes=["factor"],
    )  # fmt: skip
    twice = helper.make_function(
        "local", "Twice", ["x"], ["y"],
        [
            helper.make_node("Scale", ["x"], ["m"], domain="local", factor=2.0),
            helper.make_node("Scale", ["m"], ["y"], domain="local", factor=5.0),
        ],
        imports,
    )  # fmt: skip
    weight = weights(4, 3)
    proto = dense(weight, opset_imports=imports, functions=[double, twice])
    proto.graph.node[0].output[0] = "d"
    proto.graph.node.append(helper.make_node("Twice", ["d"], ["y"], domain="local", name="t"))
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    source = frontend.load_source(path)
    assert not source.model.functions and source.notes == ("2 functions inlined",)
    assert all(n.domain == "" for n in source.model.graph)
    x = random_feeds(source.model, 1)[0]["x"]
    np.testing.assert_allclose(answers(source.model)["y"], x @ weight * 10, rtol=1e-5)


@pytest.mark.parametrize(("version", "noted"), [(3, False), (9, True)])
def test_inputs_with_a_default_are_bound(version: int, noted: bool, tmp_path: Path) -> None:
    proto = dense(weights(4, 3), ir_version=version, opset_imports=[helper.make_opsetid("", 9)])
    proto.graph.input.append(helper.make_tensor_value_info("w", T.FLOAT, [4, 3]))
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    source = frontend.load_source(path)
    assert [v.name for v in source.model.graph.inputs] == ["x"]
    assert bool(source.notes) is noted
    assert "'w'" in "".join(source.notes) or not noted
    assert (source.model.ir_version or 0) >= 4  # before, every initializer had to be an input


def test_a_default_that_no_node_reads(tmp_path: Path) -> None:
    """Old exporters list blobs that nothing uses; onnxruntime runs such files."""
    unused = numpy_helper.from_array(np.zeros(1, np.float32), "unused")
    proto = dense(weights(4, 3), ir_version=3, opset_imports=[helper.make_opsetid("", 9)])
    proto.graph.initializer.append(unused)
    for name, shape in (("w", [4, 3]), ("unused", [1])):
        proto.graph.input.append(helper.make_tensor_value_info(name, T.FLOAT, shape))
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    source = frontend.load_source(path)
    assert answers(source.model).keys() == {"y"}


def test_names_and_order(tmp_path: Path) -> None:
    """Nodes without a name or with a taken one get their own; a wrong order is sorted."""
    nodes = [
        helper.make_node("Relu", ["d"], ["e"], name=""),
        helper.make_node("Neg", ["e"], ["y"], name="same"),
        helper.make_node("MatMul", ["x", "w"], ["c"], name="same"),
        helper.make_node("Relu", ["c"], ["d"], name="Relu_0"),
    ]
    proto = dense(weights(4, 3))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    model = frontend.load(path)
    assert [n.op_type for n in model.graph] == ["MatMul", "Relu", "Relu", "Neg"]
    names = [n.name for n in model.graph]
    assert len(set(names)) == 4 and {"same", "Relu_0"} < set(names)


def test_source_lines_are_kept(tmp_path: Path) -> None:
    proto = dense(weights(4, 3))
    trace = (
        'File "/home/a/net.py", line 12, in forward\\n    return self.fc(x)\\n'
        'File "/usr/lib/python3/site-packages/torch/nn/linear.py", line 125, in forward'
    )
    proto.graph.node[0].metadata_props.add(key="pkg.torch.onnx.stack_trace", value=trace)
    proto.graph.node[0].metadata_props.add(
        key="pkg.torch.onnx.name_scopes", value="['', 'head.fc', 'linear']"
    )
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    assert place_of(frontend.load(path).graph[0]) == "/home/a/net.py:12 (head.fc)"


def test_custom_domain_by_permission(tmp_path: Path) -> None:
    proto = dense(weights(4, 3), opset_imports=[helper.make_opsetid(d, 1) for d in ("", "mine")])
    proto.opset_import[0].version = 18
    proto.graph.node[0].domain = "mine"
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(FrontendError, match="custom domain 'mine'"):
        frontend.load(path)
    assert frontend.load(path, allow_domains=("mine",)).graph[0].domain == "mine"


def test_an_infinite_bound_is_no_broken_weight(tmp_path: Path) -> None:
    """Masks and bounds hold infinities on purpose; only trained numbers may not."""
    mask = numpy_helper.from_array(np.array([0, -np.inf, 0], np.float32), "mask")
    proto = dense(weights(4, 3))
    proto.graph.node[0].output[0] = "d"
    proto.graph.node.append(helper.make_node("Add", ["d", "mask"], ["y"], name="masked"))
    proto.graph.initializer.append(mask)
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    check_model(frontend.load(path))


def test_100_000_nodes(tmp_path: Path) -> None:
    """A chain as long as that loads and is checked; nothing recurses along it."""
    nodes = [helper.make_node("Neg", [f"v{i}"], [f"v{i + 1}"]) for i in range(100_000)]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("v0", T.FLOAT, [1])],
        [helper.make_tensor_value_info("v100000", T.FLOAT, [1])],
    )  # fmt: skip
    path = tmp_path / "m.onnx"
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path.write_bytes(proto.SerializeToString())
    model = frontend.load(path)
    assert len(model.graph) == 100_000
    check_model(model)


def test_loop_without_end_is_structurally_fine(tmp_path: Path) -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Neg", ["a"], ["b"])],
        "body",
        [
            helper.make_tensor_value_info("i", T.INT64, []),
            helper.make_tensor_value_info("go", T.BOOL, []),
            helper.make_tensor_value_info("a", T.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", T.BOOL, []),
            helper.make_tensor_value_info("b", T.FLOAT, None),
        ],
    )
    trips = numpy_helper.from_array(np.array((1 << 63) - 1, np.int64), "trips")
    loop = helper.make_node("Loop", ["trips", "", "x"], ["y"], name="loop", body=body)
    graph = helper.make_graph(
        [loop], "g", [helper.make_tensor_value_info("x", T.FLOAT, [2])],
        [helper.make_tensor_value_info("y", T.FLOAT, [2])], [trips],
    )  # fmt: skip
    path = tmp_path / "m.onnx"
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path.write_bytes(proto.SerializeToString())
    check_model(frontend.load(path))
