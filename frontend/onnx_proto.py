"""Faults of a ModelProto that can't be seen any more once it is in the IR.

The IR keeps one of two values of the same name, drops sparse initializers, and reads a tensor's data
only when somebody asks for it; so names, attribute fields and data sizes are checked on the message.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import onnx
import onnx_ir as ir
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from effc.core.check_ops import quoted
from effc.core.errors import FrontendError
from effc.frontend.external_data import byte_count

_A = onnx.AttributeProto
_FIELD = {
    _A.FLOAT: "f", _A.INT: "i", _A.STRING: "s", _A.TENSOR: "t", _A.GRAPH: "g",
    _A.SPARSE_TENSOR: "sparse_tensor", _A.TYPE_PROTO: "tp", _A.FLOATS: "floats", _A.INTS: "ints",
    _A.STRINGS: "strings", _A.TENSORS: "tensors", _A.GRAPHS: "graphs",
    _A.SPARSE_TENSORS: "sparse_tensors", _A.TYPE_PROTOS: "type_protos",
}  # fmt: skip
_SPARSE = "store the weight densely: effc prunes by itself and packs what is sparse"
_T = onnx.TensorProto
_TYPED: dict[int, str] = {
    _T.FLOAT: "float_data", _T.COMPLEX64: "float_data", _T.DOUBLE: "double_data",
    _T.COMPLEX128: "double_data", _T.INT64: "int64_data", _T.UINT32: "uint64_data",
    _T.UINT64: "uint64_data", _T.STRING: "string_data",
}  # fmt: skip
# the C++ shape inference and the IR recurse into subgraphs
MAX_GRAPH_DEPTH = 16


def check_proto(proto: onnx.ModelProto, mapped: Mapping[int, int]) -> None:
    """Raise FrontendError for the first such fault.

    `mapped` gives the bytes of those initializers of the main graph, by index, whose data stayed in the
    file.
    """
    if not proto.HasField("graph"):
        raise FrontendError(
            "it is no ONNX model: it has no graph",
            hint="name an .onnx file; other protobuf files (TensorFlow, Caffe) need converting first",
        )
    _check_text(proto, *proto.metadata_props, *proto.opset_import)
    for i, tensor in enumerate(proto.graph.initializer):
        _check_tensor(tensor, f"initializer {quoted(tensor.name or f'#{i}')}", mapped.get(i))
    stack: list[tuple[str, onnx.GraphProto | onnx.FunctionProto, int]] = [("", proto.graph, 1)]
    seen: set[tuple[str, str, str]] = set()
    for function in proto.functions:
        _check_text(function, *function.opset_import)
        key = function.domain, function.name, function.overload
        if key in seen:
            raise FrontendError(f"the function {quoted(function.name)} is defined twice")
        seen.add(key)
        stack.append((f" of function {quoted(function.name)}", function, 1))
    while stack:
        place, graph, depth = stack.pop()
        if depth > MAX_GRAPH_DEPTH:
            raise FrontendError(f"subgraphs nest more than {MAX_GRAPH_DEPTH} deep{place}")
        _check_names(graph, place)
        if isinstance(graph, onnx.GraphProto) and graph is not proto.graph:
            for tensor in graph.initializer:
                _check_tensor(tensor, f"initializer {quoted(tensor.name)}{place}")
        for i, node in enumerate(graph.node):
            _check_text(node, *node.metadata_props)
            if not node.attribute:
                continue
            own = f"node {quoted(node.name or f'#{i}')} ({quoted(node.op_type)[1:-1]}){place}"
            names: set[str] = set()
            for attribute in node.attribute:
                _check_text(attribute)
                what = f"attribute {quoted(attribute.name)} of {own}"
                if attribute.name in names:
                    raise FrontendError(f"{what} is given twice")
                names.add(attribute.name)
                _check_attribute(attribute, what)
                if attribute.type == _A.GRAPH:
                    stack.append((f" in {what}", attribute.g, depth + 1))
                elif attribute.type == _A.GRAPHS:
                    stack += [(f" in {what}", g, depth + 1) for g in attribute.graphs]


def external_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of the model whose data is in another file: also in attributes and functions."""
    stack: list[onnx.GraphProto | onnx.FunctionProto] = [proto.graph, *proto.functions]
    while stack:
        graph = stack.pop()
        if isinstance(graph, onnx.GraphProto):
            yield from (t for t in graph.initializer if t.data_location == _T.EXTERNAL)
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == _A.TENSOR and attribute.t.data_location == _T.EXTERNAL:
                    yield attribute.t
                elif attribute.type == _A.TENSORS:
                    yield from (t for t in attribute.tensors if t.data_location == _T.EXTERNAL)
                elif attribute.type == _A.GRAPH:
                    stack.append(attribute.g)
                elif attribute.type == _A.GRAPHS:
                    stack += attribute.graphs


def _check_text(*messages: Message) -> None:
    """Every string is UTF-8; protobuf hands over as bytes what is not."""
    for message in messages:
        for field, value in message.ListFields():
            if field.cpp_type != FieldDescriptor.CPPTYPE_STRING or field.type == field.TYPE_BYTES:
                continue
            for text in (value,) if isinstance(value, (str, bytes)) else value:
                if isinstance(text, bytes):
                    raise FrontendError(
                        f"the field {field.name} of a {message.DESCRIPTOR.name} holds text that is not "
                        f"UTF-8: {quoted(text)}",
                        hint="the file is damaged: download or export it again",
                    )


def _check_names(graph: onnx.GraphProto | onnx.FunctionProto, place: str) -> None:
    made: dict[str, str] = {}

    def define(name: str, what: str) -> None:
        if name in made:
            raise FrontendError(
                f"the value {quoted(name)} is defined twice{place}: by {made[name]} and by {what}",
                hint="every value has one definition; export the model again",
            )
        made[name] = what

    if isinstance(graph, onnx.GraphProto):
        _check_text(graph, *graph.initializer)
        for info in (*graph.input, *graph.output, *graph.value_info):
            _check_text(info, *info.type.tensor_type.shape.dim)
        if graph.sparse_initializer:
            name = graph.sparse_initializer[0].values.name
            raise FrontendError(f"initializer {quoted(name)}{place} is sparse", hint=_SPARSE)
        for info in graph.input:
            if not info.name:
                raise FrontendError(f"an input of the graph has no name{place}")
            define(info.name, "an input")
        initializers: set[str] = set()
        for i, tensor in enumerate(graph.initializer):
            if not tensor.name:
                raise FrontendError(f"initializer #{i} has no name{place}")
            if tensor.name in initializers:
                raise FrontendError(
                    f"the initializer {quoted(tensor.name)} is defined twice{place}"
                )
            initializers.add(tensor.name)
            made[tensor.name] = "an initializer"  # an input may have one as its default
    else:
        for name in graph.input:
            define(name, "an input")
    for i, node in enumerate(graph.node):
        for name in node.output:
            if name:
                define(name, f"node {quoted(node.name or f'#{i}')} ({node.op_type})")
    listed: set[str] = set()
    for output in graph.output:
        name = output if isinstance(output, str) else output.name
        if name in listed:
            raise FrontendError(f"the output {quoted(name)} of the graph is listed twice{place}")
        listed.add(name)


def _check_attribute(attribute: onnx.AttributeProto, what: str) -> None:
    if not attribute.name:
        raise FrontendError(f"{what} has no name")
    if attribute.ref_attr_name:
        return
    field = _FIELD.get(attribute.type)
    if field is None:
        raise FrontendError(
            f"{what} has no type that ONNX knows ({attribute.type})",
            hint="very old exporters leave it out; export the model again",
        )
    if field.startswith("sparse"):
        raise FrontendError(f"{what} is a sparse tensor", hint=_SPARSE)
    held = {f.name for f, _ in attribute.ListFields()} & set(_FIELD.values())
    if held - {field} or (field in ("t", "g", "tp") and not held):
        raise FrontendError(
            f"{what} says that it is {_A.AttributeType.Name(attribute.type)} "
            f"but holds {', '.join(sorted(held)) or 'nothing'}"
        )
    if field == "t":
        _check_tensor(attribute.t, what)
    elif field == "tensors":
        for tensor in attribute.tensors:
            _check_tensor(tensor, what)


def _check_tensor(tensor: onnx.TensorProto, what: str, mapped: int | None = None) -> None:
    try:
        dtype = ir.DataType(tensor.data_type)
    except ValueError as error:
        raise FrontendError(
            f"{what} has the unknown element type {tensor.data_type}",
            hint="it was written for a newer ONNX than this one",
        ) from error
    if dtype == ir.DataType.UNDEFINED:
        raise FrontendError(f"{what} has no element type")
    dims = tuple(tensor.dims)
    if any(d < 0 for d in dims):
        raise FrontendError(f"{what} has the negative dimension {min(dims)}")
    if len(dims) > 64:
        raise FrontendError(f"{what} has {len(dims)} dimensions")
    if tensor.HasField("segment"):
        raise FrontendError(f"{what} is stored in segments, which nothing reads")
    if tensor.data_location == _T.EXTERNAL:
        if tensor.HasField("raw_data") or mapped is not None:
            raise FrontendError(f"{what} has data both inside the file and outside")
        return
    if tensor.external_data:
        raise FrontendError(f"{what} names external data but says that it has none")
    shape = f"{what} of shape {list(dims)} and type {dtype.name}"
    if tensor.HasField("raw_data") or mapped is not None:
        if dtype == ir.DataType.STRING:
            raise FrontendError(f"{what} keeps strings as raw bytes")
        needed = byte_count(dtype, dims)
        present = mapped if mapped is not None else len(tensor.raw_data)
        if needed != present:
            raise FrontendError(
                f"{shape} needs {needed} bytes of data but has {present}",
                hint="the file is damaged, or its exporter is at fault",
            )
        return
    count = math.prod(dims)
    if dtype != ir.DataType.STRING and dtype.bitwidth in (2, 4):  # packed, 6-bit ones are not
        count = byte_count(dtype, dims)
    elif dtype in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
        count *= 2
    field = _TYPED.get(tensor.data_type, "int32_data")
    held = len(getattr(tensor, field))
    if held != count:
        raise FrontendError(
            f"{shape} needs {count} elements in {field} but has {held}",
            hint="the file is damaged, or its exporter is at fault",
        )
