"""Every bad input ends in one clear line: an EffcError with exit code 2 or 3, a reason and a place.

Each case writes its file below tmp_path and names what the message must say. The heaviest also run in
a process of their own, which must end within 10 seconds and 1 GB.
"""

from __future__ import annotations

import gzip
import json
import os
import pickle
import re
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper

from effc.core.check import check_model
from effc.core.errors import EffcError
from effc.frontend import load_source

Make = Callable[[Path], str | Path]
CASES: dict[str, tuple[Make, str]] = {}


def case(says: str) -> Callable[[Make], Make]:
    def register(make: Make) -> Make:
        CASES[make.__name__] = make, says
        return make

    return register


def conv_model(**changes: Any) -> onnx.ModelProto:
    """conv -> relu on [1, 3, 8, 8], with `changes` to the pieces that it is made of."""
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    parts: dict[str, Any] = {
        "inputs": [helper.make_tensor_value_info("x", T.FLOAT, [1, 3, 8, 8])],
        "outputs": [helper.make_tensor_value_info("y", T.FLOAT, None)],
        "initializers": [numpy_helper.from_array(weight, "w")],
        "nodes": [
            helper.make_node("Conv", ["x", "w"], ["c"], name="conv1"),
            helper.make_node("Relu", ["c"], ["y"], name="relu1"),
        ],
        "opsets": [helper.make_opsetid("", 18)],
        "ir_version": 9,
        "functions": [],
    } | changes
    graph = helper.make_graph(
        parts["nodes"], "g", parts["inputs"], parts["outputs"], parts["initializers"]
    )
    model = helper.make_model(
        graph, opset_imports=parts["opsets"], ir_version=parts["ir_version"],
        functions=parts["functions"],
    )  # fmt: skip
    if not parts["opsets"]:
        del model.opset_import[:]
    return model


def save(folder: Path, model: onnx.ModelProto, name: str = "m.onnx") -> Path:
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def write(folder: Path, data: bytes, name: str = "m.onnx") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def nodes(*given: onnx.NodeProto, **changes: Any) -> onnx.ModelProto:
    return conv_model(nodes=list(given), **changes)


def conv(*outputs: str, inputs: tuple[str, ...] = ("x", "w"), **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(
        "Conv", list(inputs), list(outputs or ("y",)), name="conv1", **attributes
    )


# 1. what is no readable file


@case("no model")
def missing(folder: Path) -> Path:
    return folder / "nothing.onnx"


@case("can't be read: embedded null byte")
def null_byte_in_path(folder: Path) -> str:
    return str(folder / "a\0b.onnx")


@case("empty file")
def empty(folder: Path) -> Path:
    return write(folder, b"")


@case("empty file")
def name_with_newline_and_unicode(folder: Path) -> Path:
    return write(folder, b"", "a b\nc \u00e9\u6f22\u202e.onnx")


@case("a directory")
def directory(folder: Path) -> Path:
    (folder / "m.onnx").mkdir()
    return folder / "m.onnx"


@case("a pipe, socket or device")
def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "m.onnx")
    return folder / "m.onnx"


@case("a pipe, socket or device")
def device(folder: Path) -> Path:
    return Path("/dev/zero")


@case("a pipe, socket or device")
def unix_socket(folder: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as s:
        here = os.getcwd()
        os.chdir(folder)  # a socket's path may have 107 bytes only
        try:
            s.bind("m.onnx")
        finally:
            os.chdir(here)
    return folder / "m.onnx"


@case("a pipe, socket or device|can't be read")
def link_to_device(folder: Path) -> Path:
    (folder / "m.onnx").symlink_to("/dev/urandom")
    return folder / "m.onnx"


@case("can't be read")
def link_to_itself(folder: Path) -> Path:
    (folder / "m.onnx").symlink_to(folder / "m.onnx")
    return folder / "m.onnx"


@case("can't be read")
def name_too_long(folder: Path) -> Path:
    return folder / ("x" * 5000 + ".onnx")


# 2. other formats


@case("HTML page")
def html(folder: Path) -> Path:
    return write(folder, b"\n<!DOCTYPE html><html><body>Not found</body></html>")


@case("Git LFS pointer")
def lfs(folder: Path) -> Path:
    return write(folder, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


@case("zip archive with a model inside")
def zipped(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "m.onnx", "w") as z:
        z.writestr("inner.onnx", conv_model().SerializeToString())
    return folder / "m.onnx"


@case("damaged zip")
def half_a_zip(folder: Path) -> Path:
    path = zipped(folder)
    return write(folder, path.read_bytes()[:200], "half.onnx")


@case("PyTorch checkpoint")
def torch_checkpoint(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "m.pt", "w") as z:
        z.writestr("archive/data.pkl", pickle.dumps({"w": 1}))
    return folder / "m.pt"


class _Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("unpickled",)


@case("pickle")
def pickled(folder: Path) -> Path:
    return write(folder, pickle.dumps(_Bomb()), "m.pth")


@case("gzip")
def gzipped(folder: Path) -> Path:
    return write(folder, gzip.compress(conv_model().SerializeToString()))


@case("TensorFlow Lite")
def tflite(folder: Path) -> Path:
    return write(folder, b"\x1c\0\0\0TFL3" + bytes(100), "m.bin")


@case("safetensors")
def safetensors(folder: Path) -> Path:
    return write(folder, (40).to_bytes(8, "little") + b'{"w":{"dtype":"F32"}}' + bytes(50))


@case("JSON")
def json_file(folder: Path) -> Path:
    return write(folder, b'{"format": "graph-model"}')


@case("HDF5")
def keras(folder: Path) -> Path:
    return write(folder, b"\x89HDF\r\n\x1a\n" + bytes(100))


@case("zero bytes")
def zeros(folder: Path) -> Path:
    return write(folder, bytes(5000))


@case("protobuf|graph|IR version")
def noise(folder: Path) -> Path:
    return write(folder, np.random.default_rng(0).bytes(10_000))


@case("protobuf|graph|IR version")
def prose(folder: Path) -> Path:
    return write(folder, b"Dear reader, this is a letter and no model at all.\n" * 20)


@case("text can't be parsed")
def text_with_a_fault(folder: Path) -> Path:
    return write(
        folder, b'<ir_version: 9, opset_import: ["" : 18]>\ng (float[1] x) => (float[1] y)'
    )


@case("nest")
def text_too_deep(folder: Path) -> Path:
    return write(folder, b"<ir_version: 9>" + b"seq(" * 100_000, "m.onnxtxt")


@case("not UTF-8")
def text_not_utf8(folder: Path) -> Path:
    return write(folder, b"<ir_version: 9>\xff\xfe", "m.onnxtxt")


# 3. damaged protobuf


@case("cut off")
def truncated(folder: Path) -> Path:
    data = conv_model().SerializeToString()
    return write(folder, data[: len(data) // 2])


@case("cut off")
def truncated_large(folder: Path) -> Path:
    weight = numpy_helper.from_array(np.ones((1024, 3, 32, 32), np.float32), "w")
    data = conv_model(initializers=[weight]).SerializeToString()
    return write(folder, data[: len(data) // 2])


@case("over protobuf's limit")
def over_two_gigabytes(folder: Path) -> Path:
    path = save(folder, conv_model())
    os.truncate(path, (1 << 31) + 5)
    return path


@case("two graphs")
def two_graphs(folder: Path) -> Path:
    data = conv_model().SerializeToString()
    return write(folder, data + data)


@case("the field name of a NodeProto holds text that is not UTF-8")
def name_not_utf8(folder: Path) -> Path:
    data = conv_model().SerializeToString().replace(b"conv1", b"co\xff\xfe1")
    return write(folder, data)


# 4. operators, domains, versions


@case(r"node 'conv1' \(Convolve\): ONNX has no operator of that name \(opset 18\)")
def unknown_operator(folder: Path) -> Path:
    return save(folder, nodes(helper.make_node("Convolve", ["x", "w"], ["y"], name="conv1")))


@case("came with opset 20")
def operator_of_a_later_opset(folder: Path) -> Path:
    return save(folder, nodes(helper.make_node("Gelu", ["x"], ["y"], name="g")))


@case("deprecated in opset 18")
def deprecated_operator(folder: Path) -> Path:
    return save(folder, nodes(helper.make_node("Upsample", ["x", "w"], ["y"], name="u")))


@case("custom domain 'com.microsoft'")
def custom_domain(folder: Path) -> Path:
    node = helper.make_node("FusedConv", ["x", "w"], ["y"], name="f", domain="com.microsoft")
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return save(folder, nodes(node, opsets=opsets))


@case("of which the model imports no opset")
def domain_not_imported(folder: Path) -> Path:
    node = helper.make_node("Scaler", ["x"], ["y"], name="s", domain="ai.onnx.ml")
    return save(folder, nodes(node))


@case("opset 99")
def future_opset(folder: Path) -> Path:
    return save(folder, conv_model(opsets=[helper.make_opsetid("", 99)]))


@case("opset -1")
def negative_opset(folder: Path) -> Path:
    return save(folder, conv_model(opsets=[helper.make_opsetid("", -1)]))


@case("IR version 99")
def future_ir_version(folder: Path) -> Path:
    return save(folder, conv_model(ir_version=99))


@case("imports no operator set")
def no_opset(folder: Path) -> Path:
    return save(folder, conv_model(opsets=[]))


@case("no graph")
def no_graph(folder: Path) -> Path:
    return save(folder, onnx.ModelProto(ir_version=9, producer_name="nobody"))


@case("attribute 'kernel'")
def unknown_attribute(folder: Path) -> Path:
    return save(folder, nodes(conv(kernel=[3, 3])))


@case("attribute 'group' of node 'conv1'.* type FLOAT, not INT")
def attribute_of_wrong_type(folder: Path) -> Path:
    return save(folder, nodes(conv(group=1.0)))


@case("lacks its attribute 'axis'")
def missing_attribute(folder: Path) -> Path:
    return save(folder, nodes(helper.make_node("Concat", ["x", "x"], ["y"], name="c")))


@case("says that it is INTS but holds")
def attribute_with_two_values(folder: Path) -> Path:
    model = nodes(conv(strides=[1, 1]))
    model.graph.node[0].attribute[0].f = 2.0
    return save(folder, model)


@case("given twice")
def attribute_twice(folder: Path) -> Path:
    model = nodes(conv(strides=[1, 1]))
    model.graph.node[0].attribute.append(model.graph.node[0].attribute[0])
    return save(folder, model)


@case("has 1 inputs; the operator takes 2 to 3")
def too_few_inputs(folder: Path) -> Path:
    return save(folder, nodes(conv(inputs=("x",))))


@case("has 4 inputs")
def too_many_inputs(folder: Path) -> Path:
    return save(folder, nodes(conv(inputs=("x", "w", "w", "w"))))


@case(r"lacks its input 0 \(X\)")
def input_left_out(folder: Path) -> Path:
    return save(folder, nodes(conv(inputs=("", "w"))))


@case("has 2 outputs; the operator takes 1")
def too_many_outputs(folder: Path) -> Path:
    return save(folder, nodes(conv("y", "z")))


@case("sparse")
def sparse_initializer(folder: Path) -> Path:
    model = conv_model()
    values = helper.make_tensor("s", T.FLOAT, [1], [1.0])
    indices = helper.make_tensor("i", T.INT64, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    return save(folder, model)


# 5. the graph


@case("cycle of 2 nodes")
def cycle(folder: Path) -> Path:
    a = helper.make_node("Add", ["x", "b"], ["y"], name="a")
    b = helper.make_node("Relu", ["y"], ["b"], name="b")
    return save(folder, nodes(a, b))


@case("cycle of 1 nodes")
def node_reads_itself(folder: Path) -> Path:
    return save(folder, nodes(helper.make_node("Add", ["x", "y"], ["y"], name="a")))


@case("'c' is defined twice")
def duplicate_outputs(folder: Path) -> Path:
    relu = helper.make_node("Relu", ["x"], ["c"], name="relu2")
    model = conv_model()
    model.graph.node.append(relu)
    return save(folder, model)


@case("'x' is defined twice")
def output_overwrites_input(folder: Path) -> Path:
    return save(folder, nodes(conv("x"), helper.make_node("Relu", ["x"], ["y"])))


@case("'w' is defined twice")
def duplicate_initializers(folder: Path) -> Path:
    model = conv_model()
    model.graph.initializer.append(model.graph.initializer[0])
    return save(folder, model)


@case("'x' is defined twice")
def duplicate_inputs(folder: Path) -> Path:
    model = conv_model()
    model.graph.input.append(model.graph.input[0])
    return save(folder, model)


@case("'y' of the graph is listed twice")
def output_listed_twice(folder: Path) -> Path:
    model = conv_model()
    model.graph.output.append(model.graph.output[0])
    return save(folder, model)


@case(r"node 'conv1' \(Conv\) reads 'weight' \(input 1\), which nothing makes")
def dangling_input(folder: Path) -> Path:
    return save(folder, nodes(conv(inputs=("x", "weight"))))


@case(r"node #1 \(Relu\) reads 'z'")
def dangling_input_of_unnamed_node(folder: Path) -> Path:
    return save(folder, nodes(conv("c"), helper.make_node("Relu", ["z"], ["y"])))


@case("no outputs")
def no_outputs(folder: Path) -> Path:
    return save(folder, conv_model(outputs=[]))


@case("output 'y' is made by no node")
def output_of_nobody(folder: Path) -> Path:
    return save(folder, nodes(conv("c")))


@case("input 'x' has no type")
def input_without_type(folder: Path) -> Path:
    return save(folder, conv_model(inputs=[onnx.ValueInfoProto(name="x")]))


@case("output 'y' has no type")
def output_without_type(folder: Path) -> Path:
    return save(folder, conv_model(outputs=[onnx.ValueInfoProto(name="y")]))


@case("has no name")
def input_without_name(folder: Path) -> Path:
    return save(folder, conv_model(inputs=[helper.make_tensor_value_info("", T.FLOAT, [1])]))


@case("control characters")
def control_bytes_in_a_name(folder: Path) -> Path:
    model = conv_model()
    model.graph.node[0].output[0] = model.graph.node[1].input[0] = "c\x1b[31m\x00"
    return save(folder, model)


@case("control characters")
def control_bytes_in_an_operator(folder: Path) -> Path:
    return save(folder, nodes(helper.make_node("Conv\n", ["x", "w"], ["y"], name="c")))


@case("of different types: input 0 is FLOAT, input 1 \\('w'\\) is INT64")
def dtype_mismatch(folder: Path) -> Path:
    weight = numpy_helper.from_array(np.ones((1, 3, 8, 8), np.int64), "w")
    node = helper.make_node("Add", ["x", "w"], ["y"], name="a")
    return save(folder, nodes(node, initializers=[weight]))


@case("takes no INT64 as input 0")
def dtype_not_taken(folder: Path) -> Path:
    inputs = [helper.make_tensor_value_info("x", T.INT64, [1, 3, 8, 8])]
    return save(folder, nodes(helper.make_node("Sigmoid", ["x"], ["y"], name="s"), inputs=inputs))


@case("of different types")
def dtype_mismatch_behind_untyped_values(folder: Path) -> Path:
    inputs = [
        helper.make_tensor_value_info("x", T.FLOAT, [1, 3]),
        helper.make_tensor_value_info("z", T.DOUBLE, [1, 3]),
    ]
    given = [
        helper.make_node("Relu", ["x"], ["a"], name="r1"),
        helper.make_node("Relu", ["z"], ["b"], name="r2"),
        helper.make_node("Mul", ["a", "b"], ["y"], name="m"),
    ]
    return save(folder, nodes(*given, inputs=inputs))


@case("group=7, made for 21 channels|group=7, which doesn't divide")
def group_does_not_fit(folder: Path) -> Path:
    return save(folder, nodes(conv(group=7)))


@case("made for 3 channels, but its input has 5")
def channels_do_not_fit(folder: Path) -> Path:
    inputs = [helper.make_tensor_value_info("x", T.FLOAT, [1, 5, 8, 8])]
    return save(folder, conv_model(inputs=inputs))


@case("group=0")
def group_zero(folder: Path) -> Path:
    return save(folder, nodes(conv(group=0)))


@case(r"strides=\[0, 0\]")
def stride_zero(folder: Path) -> Path:
    return save(folder, nodes(conv(strides=[0, 0])))


@case("kernel_shape")
def kernel_differs_from_weight(folder: Path) -> Path:
    return save(folder, nodes(conv(kernel_shape=[5, 5])))


# 6. sizes and data


@case("over 2\\^31 elements")
def huge_input(folder: Path) -> Path:
    inputs = [helper.make_tensor_value_info("x", T.FLOAT, [1, 3, 1 << 31, 1 << 31])]
    return save(folder, conv_model(inputs=inputs))


@case("negative dimension -1")
def negative_input(folder: Path) -> Path:
    return save(
        folder, conv_model(inputs=[helper.make_tensor_value_info("x", T.FLOAT, [-1, 3, 8, 8])])
    )


@case("holds no elements")
def zero_input(folder: Path) -> Path:
    return save(
        folder, conv_model(inputs=[helper.make_tensor_value_info("x", T.FLOAT, [0, 3, 8, 8])])
    )


def _weight(data: bytes, dims: list[int], data_type: int = T.FLOAT) -> onnx.ModelProto:
    tensor = onnx.TensorProto(name="w", data_type=data_type, dims=dims, raw_data=data)
    return conv_model(initializers=[tensor])


@case("initializer 'w' of shape .* needs 432 bytes of data but has 400")
def raw_data_too_short(folder: Path) -> Path:
    return save(folder, _weight(bytes(400), [4, 3, 3, 3]))


@case("needs 432 bytes of data but has 500")
def raw_data_too_long(folder: Path) -> Path:
    return save(folder, _weight(bytes(500), [4, 3, 3, 3]))


@case("needs .* bytes")
def huge_weight_without_data(folder: Path) -> Path:
    return save(folder, _weight(b"", [1 << 20, 1 << 20, 3, 3]))


@case("needs 8589934592 elements in float_data but has 0")
def huge_typed_weight_without_data(folder: Path) -> Path:
    tensor = onnx.TensorProto(name="w", data_type=T.FLOAT, dims=[1 << 33])
    return save(folder, conv_model(initializers=[tensor]))


@case("negative dimension")
def negative_weight(folder: Path) -> Path:
    return save(folder, _weight(bytes(432), [-4, -3, 3, 3]))


@case("unknown element type 77")
def unknown_element_type(folder: Path) -> Path:
    return save(folder, _weight(bytes(432), [4, 3, 3, 3], 77))


@case("no element type")
def undefined_element_type(folder: Path) -> Path:
    return save(folder, _weight(bytes(432), [4, 3, 3, 3], 0))


@case("bytes of data but has 262144")
def large_raw_data_too_short(folder: Path) -> Path:
    model = _weight(bytes(1 << 18), [1 << 17])
    model.doc_string = "x" * (4 << 20)  # over the size from which weights are mapped
    return save(folder, model)


@case("declared with shape")
def initializer_contradicts_input(folder: Path) -> Path:
    model = conv_model()
    model.graph.input.append(helper.make_tensor_value_info("w", T.FLOAT, [4, 3, 5, 5]))
    return save(folder, model)


@case("declared as INT8")
def initializer_type_contradicts_input(folder: Path) -> Path:
    model = conv_model()
    model.graph.input.append(helper.make_tensor_value_info("w", T.INT8, [4, 3, 3, 3]))
    return save(folder, model)


# 7. external data


def external(
    folder: Path, *, place: str = "initializer", data: bytes | None = None, **entries: Any
) -> Path:
    """A model in folder/model whose weight is external with `entries`; `data` becomes w.bin there."""
    home = folder / "model"
    home.mkdir(exist_ok=True)
    if data is not None:
        (home / "w.bin").write_bytes(data)
    tensor = onnx.TensorProto(name="w", data_type=T.FLOAT, dims=[4, 3, 3, 3])
    tensor.data_location = T.EXTERNAL
    for key, value in ({"location": "w.bin"} | entries).items():
        tensor.external_data.add(key=key, value=str(value))
    constant = helper.make_node("Constant", [], ["w"], name="constant1", value=tensor)
    if place == "initializer":
        model = conv_model(initializers=[tensor])
    elif place == "attribute":
        model = nodes(constant, conv(), initializers=[])
    elif place == "function":
        body = [constant, helper.make_node("Conv", ["x", "w"], ["y"], name="inner")]
        function = helper.make_function(
            "local", "F", ["x"], ["y"], body, [helper.make_opsetid("", 18)]
        )
        call = helper.make_node("F", ["x"], ["y"], name="call", domain="local")
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
        model = nodes(call, initializers=[], functions=[function], opsets=opsets)
    else:
        out = helper.make_tensor_value_info("b", T.FLOAT, None)
        inner = helper.make_node("Conv", ["x", "w"], ["b"], name="inner")
        then = helper.make_graph([constant, inner], "then", [], [out])
        other = helper.make_graph(
            [helper.make_node("Relu", ["x"], ["b"], name="o")], "else", [], [out]
        )
        condition = helper.make_tensor("c", T.BOOL, [], [True])
        branch = helper.make_node(
            "If", ["c"], ["y"], name="if1", then_branch=then, else_branch=other
        )
        model = nodes(branch, initializers=[condition])
    return save(home, model)


def _secret(folder: Path) -> Path:
    (folder / "secret.bin").write_bytes(bytes(432))
    return folder / "secret.bin"


@case("outside the model's folder")
def external_parent(folder: Path) -> Path:
    _secret(folder)
    return external(folder, location="../secret.bin")


@case("outside the model's folder")
def external_parent_inside_path(folder: Path) -> Path:
    _secret(folder)
    return external(folder, location="a/../../secret.bin")


@case("outside the model's folder")
def external_backslashes(folder: Path) -> Path:
    return external(folder, location="..\\secret.bin")


@case("outside the model's folder")
def external_drive(folder: Path) -> Path:
    return external(folder, location="C:\\secret.bin")


@case("outside the model's folder")
def external_absolute(folder: Path) -> Path:
    return external(folder, location=str(_secret(folder)))


@case("outside the model's folder")
def external_without_location(folder: Path) -> Path:
    return external(folder, location="")


@case("outside the model's folder")
def external_null_byte(folder: Path) -> Path:
    return external(folder, location="w.bin\0.txt", data=bytes(432))


@case("a link out of the model's folder")
def external_symlink(folder: Path) -> Path:
    path = external(folder)
    (path.parent / "w.bin").symlink_to(_secret(folder))
    return path


@case("a link out of the model's folder")
def external_symlinked_folder(folder: Path) -> Path:
    _secret(folder)
    path = external(folder, location="sub/secret.bin")
    (path.parent / "sub").symlink_to(folder)
    return path


@case("hard links")
def external_hard_link(folder: Path) -> Path:
    path = external(folder)
    os.link(_secret(folder), path.parent / "w.bin")
    return path


@case("no data file")
def external_missing(folder: Path) -> Path:
    return external(folder)


@case("is a directory")
def external_directory(folder: Path) -> Path:
    path = external(folder)
    (path.parent / "w.bin").mkdir()
    return path


@case("is a pipe")
def external_fifo(folder: Path) -> Path:
    path = external(folder)
    os.mkfifo(path.parent / "w.bin")
    return path


@case("needs 432 bytes")
def external_too_short(folder: Path) -> Path:
    return external(folder, data=bytes(100))


@case("reads bytes 400 to 832 of 'w.bin', which has 432")
def external_past_the_end(folder: Path) -> Path:
    return external(folder, data=bytes(432), offset=400, length=432)


@case("reads bytes|needs 432")
def external_offset_past_the_end(folder: Path) -> Path:
    return external(folder, data=bytes(432), offset=10**17)


@case("offset '-8'")
def external_negative_offset(folder: Path) -> Path:
    return external(folder, data=bytes(432), offset=-8)


@case("length '1e3'")
def external_odd_length(folder: Path) -> Path:
    return external(folder, data=bytes(432), length="1e3")


@case("needs 432 bytes, its external data has 400")
def external_wrong_length(folder: Path) -> Path:
    return external(folder, data=bytes(432), length=400)


@case("key '__class__'")
def external_odd_key(folder: Path) -> Path:
    return external(folder, data=bytes(432), __class__="x")


@case("outside the model's folder")
def external_in_attribute(folder: Path) -> Path:
    _secret(folder)
    return external(folder, place="attribute", location="../secret.bin")


@case("outside the model's folder")
def external_in_subgraph(folder: Path) -> Path:
    _secret(folder)
    return external(folder, place="subgraph", location="../secret.bin")


@case("outside the model's folder")
def external_in_function(folder: Path) -> Path:
    _secret(folder)
    return external(folder, place="function", location="../secret.bin")


# 8. too much


@case("nest|deep")
def nested_too_deep(folder: Path) -> Path:
    # one branch carries the depth: with both the message would double at every level
    leaf = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["b"], name="leaf")], "g", [],
        [helper.make_tensor_value_info("b", T.FLOAT, None)],
    )  # fmt: skip
    body = leaf
    for _ in range(25):
        node = helper.make_node("If", ["c"], ["b"], name="if", then_branch=body, else_branch=leaf)
        body = helper.make_graph(
            [node], "g", [], [helper.make_tensor_value_info("b", T.FLOAT, None)]
        )
    node = helper.make_node("If", ["c"], ["y"], name="if", then_branch=body, else_branch=leaf)
    return save(folder, nodes(node, initializers=[helper.make_tensor("c", T.BOOL, [], [True])]))


def _wrap(data: bytes, *numbers: int) -> bytes:
    """`data` as the value of nested length-delimited fields, innermost first."""
    for number in numbers:
        size, length = bytearray(), len(data)
        while length >= 0x80:
            size.append(length & 0x7F | 0x80)
            length >>= 7
        size.append(length)
        data = bytes([number << 3 | 2]) + bytes(size) + data
    return data


@case("protobuf")
def protobuf_nested_1000_deep(folder: Path) -> Path:
    # graph 7 > node 1 > attribute 5 > graph 6 > node 1 > ...
    return write(folder, b"\x08\x09" + _wrap(b"", *([6, 5, 1] * 1000), 7))


@case("protobuf")
def protobuf_types_nested_deep(folder: Path) -> Path:
    # graph 7 > input 11 > type 2 > sequence_type 4 > elem_type 1 > ...
    return write(folder, b"\x08\x09" + _wrap(b"", *([1, 4] * 5000), 2, 11, 7))


@case("would take over")
def protobuf_of_empty_nodes(folder: Path) -> Path:
    return write(folder, b"\x08\x09" + _wrap(b"\x0a\x00" * 20_000_000, 7))


@case("would take over")
def protobuf_of_empty_attributes(folder: Path) -> Path:
    return write(folder, b"\x08\x09" + _wrap(b"\x2a\x00" * 20_000_000, 1, 7))


@case("over 8,000,000 fields")
def protobuf_of_empty_strings(folder: Path) -> Path:
    return write(folder, b"\x08\x09" + _wrap(b"\x32\x00" * 20_000_000, 5, 7))


@case("over 8,000,000 fields")
def protobuf_of_unknown_fields(folder: Path) -> Path:
    return write(folder, b"\x08\x09" + b"\xf8\x06\x01" * 20_000_000)


@case("would take over")
def protobuf_of_dims(folder: Path) -> Path:
    return write(folder, b"\x08\x09" + _wrap(b"\x01" * 100_000_000, 1, 5, 7))


@case("over 2\\^31 elements")
def constant_of_shape_bomb(folder: Path) -> Path:
    shape = numpy_helper.from_array(np.array([1 << 20, 1 << 20], np.int64), "s")
    node = helper.make_node("ConstantOfShape", ["s"], ["y"], name="bomb")
    return save(folder, nodes(node, initializers=[shape]))


def _functions(count: int, calls: int) -> onnx.ModelProto:
    """f0 calls f1 `calls` times, which calls f2 ..."""
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    functions = []
    for i in range(count):
        name = f"F{i + 1}" if i + 1 < count else "Relu"
        domain = "local" if i + 1 < count else ""
        body = [
            helper.make_node(name, [f"v{j}" if j else "x"], [f"v{j + 1}"], domain=domain)
            for j in range(calls)
        ]
        functions.append(
            helper.make_function("local", f"F{i}", ["x"], [f"v{calls}"], body, imports)
        )
    call = helper.make_node("F0", ["x"], ["y"], name="call", domain="local")
    return nodes(call, initializers=[], functions=functions, opsets=imports)


@case("inlining its functions would make")
def functions_that_multiply(folder: Path) -> Path:
    return save(folder, _functions(30, 10))


@case("calls itself")
def function_calls_itself(folder: Path) -> Path:
    model = _functions(2, 1)
    model.functions[1].node[0].op_type = "F0"
    model.functions[1].node[0].domain = "local"
    return save(folder, model)


@case("can't be inlined")
def function_of_another_opset(folder: Path) -> Path:
    model = _functions(2, 1)
    model.functions[0].opset_import[0].version = 11
    return save(folder, model)


# 9. weights


def _with(value: float, name: str = "w") -> onnx.ModelProto:
    weight = np.ones((4, 3, 3, 3), np.float32)
    weight[2, 1, 0, 2] = value
    return conv_model(initializers=[numpy_helper.from_array(weight, name)])


@case(r"weight 'w' holds nan at \[2, 1, 0, 2\]")
def nan_weight(folder: Path) -> Path:
    return save(folder, _with(float("nan")))


@case("weight 'w' holds -inf")
def infinite_weight(folder: Path) -> Path:
    return save(folder, _with(float("-inf")))


@case(r"node 'k' \(Constant\) holds nan")
def nan_in_constant(folder: Path) -> Path:
    weight = numpy_helper.from_array(np.full((4, 3, 3, 3), np.nan, np.float32))
    constant = helper.make_node("Constant", [], ["w"], name="k", value=weight)
    return save(folder, nodes(constant, conv(), initializers=[]))


def _batch_norm(variance: list[float], epsilon: float = 1e-5) -> onnx.ModelProto:
    ones = [numpy_helper.from_array(np.ones(3, np.float32), n) for n in "sbm"]
    variances = numpy_helper.from_array(np.array(variance, np.float32), "v")
    node = helper.make_node(
        "BatchNormalization", ["x", "s", "b", "m", "v"], ["y"], name="bn1", epsilon=epsilon
    )
    return nodes(node, initializers=[*ones, variances])


@case(r"node 'bn1' \(BatchNormalization\) has the negative variance -0.5 in channel 1")
def negative_variance(folder: Path) -> Path:
    return save(folder, _batch_norm([1, -0.5, 1]))


@case("divides by zero: channel 2")
def zero_variance_without_epsilon(folder: Path) -> Path:
    return save(folder, _batch_norm([1, 1, 0], epsilon=0.0))


@case("has 5 numbers of variance for 3 channels")
def variance_of_wrong_length(folder: Path) -> Path:
    return save(folder, _batch_norm([1] * 5))


# names of Python objects


@case("can't be imported")
def no_such_module(folder: Path) -> str:
    return "no_such_package_anywhere.models:net"


@case("no file")
def no_such_python_file(folder: Path) -> str:
    return str(folder / "nothing.py:net")


@case("no torch.nn.Module|needs torch")
def python_object_of_another_kind(folder: Path) -> str:
    (folder / "models.py").write_text("net = 3\n")
    return str(folder / "models.py:net")


@case("division by zero|needs torch")
def python_file_that_fails(folder: Path) -> str:
    (folder / "broken.py").write_text("1 / 0\n")
    return str(folder / "broken.py:net")


HEAVY = [
    "device", "fifo", "over_two_gigabytes", "truncated_large", "text_too_deep",
    "huge_weight_without_data", "huge_typed_weight_without_data", "nested_too_deep",
    "protobuf_nested_1000_deep", "protobuf_types_nested_deep", "protobuf_of_empty_nodes",
    "protobuf_of_empty_attributes", "protobuf_of_empty_strings", "protobuf_of_unknown_fields",
    "protobuf_of_dims", "functions_that_multiply", "constant_of_shape_bomb", "external_fifo",
]  # fmt: skip


def refuse(text: str | Path) -> EffcError:
    with pytest.raises(EffcError) as caught:
        check_model(load_source(str(text)).model)
    return caught.value


@pytest.mark.parametrize("name", [n for n in CASES if n not in HEAVY])
def test_one_line_with_reason_and_remedy(name: str, tmp_path: Path) -> None:
    make, says = CASES[name]
    error = refuse(make(tmp_path))
    assert error.exit_code in (2, 3)
    assert re.search(says, str(error)), str(error)
    assert "\n" not in str(error) and "\x1b" not in str(error) and len(str(error)) < 1000
    assert not (tmp_path / "unpickled").exists() and not Path("unpickled").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(tmp_path: Path) -> None:
    path = save(tmp_path, conv_model())
    path.chmod(0)
    assert "Permission denied" in str(refuse(path))


_CHILD = """
import json, sys, time
from effc.core.check import check_model
from effc.core.errors import EffcError
from effc.frontend import load_source
start = time.process_time()
try:
    check_model(load_source(sys.argv[1]).model)
    message = ""
except EffcError as error:
    message = str(error)
# not ru_maxrss: that starts at the size of the process that forked this one
peak = next(int(s.split()[1]) for s in open("/proc/self/status") if s.startswith("VmHWM")) * 1024
print(json.dumps([message, time.process_time() - start, peak]))
"""


@pytest.mark.parametrize("name", HEAVY)
def test_bounded_time_and_memory(name: str, tmp_path: Path) -> None:
    path = CASES[name][0](tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(path)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    message, seconds, peak = json.loads(done.stdout)
    assert re.search(CASES[name][1], message), message
    assert seconds < 10
    assert peak < 1 << 30
    assert done.stderr == ""


@pytest.mark.parametrize("name", [n for n in CASES if n not in HEAVY])
def test_on_the_command_line(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The same as one JSON document, with the exit code, and without a traceback."""
    from effc.cli import main

    path = str(CASES[name][0](tmp_path))
    with pytest.raises(SystemExit) as ended:
        main(["inspect", path, "--json"])
    assert ended.value.code in (2, 3)
    out, err = capfd.readouterr()
    error = json.loads(out)["error"]
    assert error["kind"].endswith(("Error", "Unavailable")) and error["message"]
    assert "Traceback" not in err


@pytest.mark.parametrize("name", ["cycle", "html", "external_symlink", "nan_weight"])
@pytest.mark.parametrize("command", ["build", "check", "bench"])
def test_other_commands(
    command: str, name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from effc.cli import main

    path = str(CASES[name][0](tmp_path))
    out = ["-o", str(tmp_path / "out")] if command == "build" else []
    with pytest.raises(SystemExit) as ended:
        main([command, path, *out])
    assert ended.value.code in (2, 3)
    text = capfd.readouterr().err
    assert "Traceback" not in text and re.search(CASES[name][1], " ".join(text.split()))
    assert not (tmp_path / "out").exists()
