"""Shapes and types of every value: the shape contract, and inference that raises where it fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from effc.core.check_graph import check_shapes
from effc.core.elements import Elements, extents, reshape_target
from effc.core.errors import ConfigError, FrontendError
from effc.core.ir import graphs, is_op, no_garbage_collection, shape_of

# Larger constants travel to the inference as types only: it reads values only of shapes, axes and
# indices (integers), and of the scales of Resize and the limits of Range (a few floats).
_KEEP_BYTES = 4096
_KEEP_FLOAT_BYTES = 64


def fix_shapes(model: ir.Model, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Give the graph inputs named in `shapes` these static shapes, in place.

    ConfigError where a name is no input, or a shape contradicts what the model declares.
    """
    inputs = {v.name: v for v in model.graph.inputs}
    for name, shape in shapes.items():
        value = inputs.get(name)
        if value is None:
            raise ConfigError(
                f"--shape names {name!r}, which is no input of the model",
                hint=f"its inputs: {', '.join(str(n) for n in inputs)}",
            )
        declared = value.shape
        if declared is not None and (
            len(declared) != len(shape)
            or any(isinstance(d, int) and d != s for d, s in zip(declared, shape, strict=True))
        ):
            raise ConfigError(
                f"--shape {name}={','.join(map(str, shape))} contradicts the model, which has {declared}",
                hint="only dynamic dimensions can be chosen",
            )
        value.shape = ir.Shape(shape)


@no_garbage_collection()
def infer_shapes(model: ir.Model) -> None:
    """Infer shape and type of every value by the ONNX schemas, in place; a contradiction raises.

    What the model claims about intermediate values is thrown away, except behind operators that have
    no schema. Large weights take no part: only their shapes do. Cost: linear, about 20 us a node.
    Source: onnx.shape_inference in strict mode, then our own propagation of shape arithmetic (that of
    onnx has no bound: a Range, Tile or ConstantOfShape of 10^10 integers takes all memory there is).
    """
    proto = onnx.ModelProto(ir_version=max(model.ir_version, 4))
    for domain, version in model.opset_imports.items():
        proto.opset_import.append(onnx.helper.make_opsetid(domain, version))
    for function in model.functions.values():
        ir.serde.serialize_function_into(proto.functions.add(), function)
    names = Names()
    write_graph(model.graph, proto.graph, names)
    try:
        inferred = onnx.shape_inference.infer_shapes(
            proto, check_type=True, strict_mode=True, data_prop=False
        )
    except Exception as error:  # InferenceError, or a ValueError of the bindings
        first = str(error).strip().splitlines()[0]
        raise FrontendError(
            f"shapes do not fit: {first[:300]}",
            hint="the model contradicts the ONNX specification there, or --shape does not suit it",
        ) from error
    _copy(inferred.graph, model.graph, names)
    _propagate(model)
    check_shapes(model)


def _propagate(model: ir.Model) -> None:
    """Infer again, in one sweep, the nodes whose input values follow from shapes, and what they feed."""
    opset = model.graph.opset_imports.get("")
    if opset is None:
        return
    elements = Elements()
    fresh: set[ir.Node] = set()
    for graph in graphs(model):
        for node in graph:
            elements.visit(node)
            if all(shape_of(v) is not None for v in node.outputs):
                continue
            if node in fresh or any(elements.computed(v) is not None for v in node.inputs):
                if infer_node(node, opset, elements):
                    fresh.update(n for v in node.outputs for n in v.consumers())


def infer_node(node: ir.Node, opset: int, elements: Elements | None = None) -> bool:
    """Infer the output shapes and types of one node from its inputs, in place; whether anything was learnt.

    Only adds knowledge: a dimension that is known stays. Nodes with subgraphs, of other domains, or
    whose inputs lack a type are left alone. `opset` is the model's version of the standard operators;
    `elements` knows the values of inputs that are computed from shapes.
    """
    if node.domain != "" or not onnx.defs.has(node.op_type, ""):
        return False
    if node.op_type in _ELEMENTWISE and (quick := _broadcast(node)) is not None:
        return quick
    proto = onnx.NodeProto(op_type=node.op_type, name=node.name or "")
    types: dict[str, onnx.TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    for i, value in enumerate(node.inputs):
        if value is None:
            proto.input.append("")
            continue
        if value.type is None:
            return False
        name = f"i{i}"
        proto.input.append(name)
        write_type(value, types.setdefault(name, onnx.TypeProto()))
        tensor = None if value.is_graph_input() else value.const_value
        if tensor is not None and _matters(tensor):
            _write_tensor(tensor, data.setdefault(name, onnx.TensorProto()))
        elif elements is not None and (known := elements.computed(value)) is not None:
            ints = known.ints
            if ints is None and i == 1 and node.op_type == "Reshape":
                ints = reshape_target(known, node.inputs[0])
            if ints is not None and value.dtype in (ir.DataType.INT64, ir.DataType.INT32):
                dims = [] if known.scalar else [len(ints)]
                data[name] = onnx.helper.make_tensor(name, int(value.dtype), dims, ints)
    proto.output.extend(f"o{i}" if v.name else "" for i, v in enumerate(node.outputs))
    for attribute in node.attributes.values():
        if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            return False
        ir.serde.serialize_attribute_into(proto.attribute.add(), attribute)
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    try:
        found = onnx.shape_inference.infer_node_outputs(
            schema, proto, types, data, opset_imports=[onnx.helper.make_opsetid("", opset)]
        )
    except Exception as error:  # InferenceError, or a ValueError of the bindings
        raise FrontendError(
            f"node {node.name!r} ({node.op_type}): shapes do not fit: {str(error).strip()[:300]}",
            hint="the model contradicts the ONNX specification there, or --shape does not suit it",
        ) from error
    learnt = False
    for i, value in enumerate(node.outputs):
        info = found.get(f"o{i}")
        if info is not None:
            learnt |= _refine(value, info)
    if elements is not None and node.op_type in ("Expand", "ConstantOfShape"):
        learnt |= _fill(node, elements)
    return learnt


# one output of the type and shape of the first input, or of all inputs broadcast together: most of a graph
_LIKE_FIRST = frozenset(
    {
        *(
            "Relu",
            "LeakyRelu",
            "Sigmoid",
            "Tanh",
            "Clip",
            "HardSwish",
            "HardSigmoid",
            "Elu",
            "Gelu",
        ),
        *("Exp", "Sqrt", "Abs", "Neg", "Erf", "Identity", "BatchNormalization", "Softmax", "PRelu"),
    }
)
_ELEMENTWISE = _LIKE_FIRST | {"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum"}


def _broadcast(node: ir.Node) -> bool | None:
    """`infer_node` where types are known already and the inputs are static; None where they are not."""
    output = node.outputs[0]
    used = node.inputs[:1] if node.op_type in _LIKE_FIRST else node.inputs
    shapes = [shape_of(v) for v in used]
    if output.type is None or len(node.outputs) != 1:
        return None
    known = [s for s in shapes if s is not None]
    if not known or len(known) < len(shapes):
        return None
    try:
        shape = np.broadcast_shapes(*known)
    except ValueError:
        return None  # onnx says it better
    output.shape = ir.Shape(shape)
    return True


def _fill(node: ir.Node, elements: Elements) -> bool:
    """Refine the output of Expand or ConstantOfShape by what is known in part of its target."""
    known = elements.of(node.inputs[-1])
    dims = () if node.op_type == "ConstantOfShape" else extents(node.inputs[0])
    if known is None or dims is None or len(known.elements) < len(dims):
        return False
    proto = onnx.TypeProto()
    proto.tensor_type.shape.SetInParent()
    padded = (1,) * (len(known.elements) - len(dims)) + dims
    for have, want in zip(padded, known.elements, strict=True):
        dim = proto.tensor_type.shape.dim.add()
        extent = want if have == 1 else have if want == 1 or isinstance(have, int) else None
        if extent is None:
            extent = want if isinstance(want, int) or want == have else None
        if isinstance(extent, int):
            dim.dim_value = extent
        elif extent is not None and extent.symbol:
            dim.dim_param = extent.symbol
    return _refine(node.outputs[0], proto)


class Names:
    """A unique wire name for every value, whatever the model calls it."""

    def __init__(self) -> None:
        self._names: dict[ir.Value, str] = {}
        self.root: onnx.GraphProto | None = None  # where constants without values are declared

    def __getitem__(self, value: ir.Value | None) -> str:
        if value is None:
            return ""
        name = self._names.get(value)
        if name is None:
            producer = value.producer()
            # an output without a name is an optional output that is left out
            name = "" if producer is not None and value.name == "" else f"v{len(self._names)}"
            self._names[value] = name
        return name


def write_graph(graph: ir.Graph, proto: onnx.GraphProto, names: Names) -> None:
    """Serialize `graph` for inference: types of everything, values only of small constants."""
    proto.name = graph.name or "graph"
    if names.root is None:
        names.root = proto
    for value in graph.inputs:
        write_value(value, proto.input.add(), names)
    inputs = set(graph.inputs)
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and value not in inputs:
            _write_constant(value, tensor, proto, names)
    for node in graph:
        if node.op_type == "Constant" and node.domain == "":
            attribute = node.attributes.get("value")
            tensor = attribute.value if attribute is not None else None
            if tensor is not None and not _matters(tensor):
                _write_constant(node.outputs[0], tensor, proto, names)
                continue
        write_node(node, proto.node.add(), names)
        if node.domain != "":
            for value in node.outputs:
                if value.type is not None and not value.is_graph_output():
                    write_value(value, proto.value_info.add(), names)
    for value in graph.outputs:
        write_value(value, proto.output.add(), names)


def _write_constant(
    value: ir.Value, tensor: ir.TensorProtocol, proto: onnx.GraphProto, names: Names
) -> None:
    name = names[value]
    if _matters(tensor):
        wire = proto.initializer.add()
        _write_tensor(tensor, wire)
        wire.name = name
        return
    # a subgraph sees the inputs of the graphs around it; inputs of its own would change its signature
    info = (names.root if names.root is not None else proto).input.add()
    info.name = name
    info.type.tensor_type.elem_type = int(tensor.dtype)
    shape = info.type.tensor_type.shape
    for extent in tensor.shape.numpy():
        shape.dim.add().dim_value = extent


def _matters(tensor: ir.TensorProtocol) -> bool:
    limit = _KEEP_BYTES if tensor.dtype.is_integer() else _KEEP_FLOAT_BYTES
    return tensor.dtype == ir.DataType.STRING or tensor.nbytes <= limit


def _write_tensor(tensor: ir.TensorProtocol, proto: onnx.TensorProto) -> None:
    if tensor.dtype == ir.DataType.STRING:
        ir.serde.serialize_tensor_into(proto, tensor)
        return
    proto.data_type = int(tensor.dtype)
    proto.dims.extend(tensor.shape.numpy())
    proto.raw_data = tensor.tobytes()


def write_node(node: ir.Node, proto: onnx.NodeProto, names: Names) -> None:
    """Serialize `node`, with the wire names of its values."""
    proto.op_type = node.op_type
    if node.name:
        proto.name = node.name
    if node.domain:
        proto.domain = node.domain
    if node.overload:
        proto.overload = node.overload
    proto.input.extend([names[v] for v in node.inputs])
    proto.output.extend([names[v] for v in node.outputs])
    for name, attribute in node.attributes.items():
        wire = proto.attribute.add()
        if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
            wire.name = name
            wire.type = onnx.AttributeProto.GRAPH
            write_graph(attribute.as_graph(), wire.g, names)
        elif attribute.type == ir.AttributeType.GRAPHS and not attribute.is_ref():
            wire.name = name
            wire.type = onnx.AttributeProto.GRAPHS
            for inner in attribute.as_graphs():
                write_graph(inner, wire.graphs.add(), names)
        elif (write := _SIMPLE.get(attribute.type)) is not None and not attribute.is_ref():
            wire.name = name
            write(wire, attribute.value)
        else:
            ir.serde.serialize_attribute_into(wire, attribute)


def _int(wire: onnx.AttributeProto, value: Any) -> None:
    wire.type = onnx.AttributeProto.INT
    wire.i = value


def _ints(wire: onnx.AttributeProto, value: Any) -> None:
    wire.type = onnx.AttributeProto.INTS
    wire.ints.extend(value)


# the attributes that most nodes have, written without the detour through onnx_ir's serializer
_SIMPLE: dict[ir.AttributeType, Callable[[onnx.AttributeProto, Any], None]] = {
    ir.AttributeType.INT: _int,
    ir.AttributeType.INTS: _ints,
}


def write_value(value: ir.Value, proto: onnx.ValueInfoProto, names: Names) -> None:
    """Serialize name, type and shape of `value`."""
    proto.name = names[value]
    if value.type is not None:
        write_type(value, proto.type)


def write_type(value: ir.Value, proto: onnx.TypeProto) -> None:
    """Serialize the type and shape of `value`, whose type is known."""
    if type(value.type) is not ir.TensorType:
        if value.type is not None:
            ir.serde.serialize_type_into(proto, value.type)
        return
    tensor = proto.tensor_type
    tensor.elem_type = int(value.type.dtype)
    if value.shape is None:
        return
    shape = tensor.shape
    shape.SetInParent()
    for extent in value.shape:
        dim = shape.dim.add()
        if isinstance(extent, int):
            dim.dim_value = extent
        elif extent.value is not None:
            dim.dim_param = extent.value


def _copy(proto: onnx.GraphProto, graph: ir.Graph, names: Names) -> None:
    found = {v.name: v.type for v in proto.value_info}
    found.update((v.name, v.type) for v in proto.output)
    wires = iter(proto.node)
    for node in graph:
        for value in node.outputs:
            info = found.get(names[value])
            if info is not None:
                _set(value, info)
        if is_op(node, "Constant"):  # was declared instead of written
            tensor = ir.convenience.get_const_tensor(node.outputs[0])
            if tensor is not None:
                node.outputs[0].type = ir.TensorType(tensor.dtype)
                node.outputs[0].shape = ir.Shape(tensor.shape.numpy())
        if not any(
            a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
            for a in node.attributes.values()
        ):
            continue
        wire = next(
            w for w in wires if w.op_type == node.op_type and w.output[0] == names[node.outputs[0]]
        )
        inner = {a.name: a for a in wire.attribute}
        for name, attribute in node.attributes.items():
            if attribute.type == ir.AttributeType.GRAPH:
                _copy(inner[name].g, attribute.as_graph(), names)
            elif attribute.type == ir.AttributeType.GRAPHS:
                for wire_graph, own in zip(inner[name].graphs, attribute.as_graphs(), strict=True):
                    _copy(wire_graph, own, names)


def _dims(proto: onnx.TypeProto.Tensor) -> list[int | str | None] | None:
    if not proto.HasField("shape"):
        return None
    dims: list[int | str | None] = []
    for dim in proto.shape.dim:
        kind = dim.WhichOneof("value")
        if kind == "dim_value":
            dims.append(dim.dim_value)
        elif kind == "dim_param" and not dim.dim_param.startswith("unk__"):
            dims.append(dim.dim_param)
        else:  # names that the inference made up mean nothing in its next run
            dims.append(None)
    return dims


def _set(value: ir.Value, info: onnx.TypeProto) -> None:
    if info.WhichOneof("value") != "tensor_type":
        typed = ir.serde.deserialize_type_proto_for_type(info)
        if typed is not None:
            value.type = typed
        value.shape = None  # onnx_ir would write a sequence with a shape as a tensor
        return
    tensor = info.tensor_type
    if tensor.elem_type and (value.type is None or value.type.dtype != tensor.elem_type):
        value.type = ir.TensorType(ir.DataType(tensor.elem_type))
    dims = _dims(tensor)
    if dims is None:
        if not value.is_graph_output():
            value.shape = None
        return
    old = value.shape
    if old is None or len(old) != len(dims) or any(a != b for a, b in zip(old, dims, strict=True)):
        value.shape = ir.Shape(dims)


def _refine(value: ir.Value, info: onnx.TypeProto) -> bool:
    if info.WhichOneof("value") != "tensor_type":
        return False
    tensor = info.tensor_type
    learnt = False
    if value.type is None and tensor.elem_type:
        value.type = ir.TensorType(ir.DataType(tensor.elem_type))
        learnt = True
    dims = _dims(tensor)
    if dims is None:
        return learnt
    old = value.shape
    if old is None:
        value.shape = ir.Shape(dims)
        return True
    if len(old) != len(dims):
        return learnt
    better: list[int | str | ir.SymbolicDim | None] = []
    for have, new in zip(old, dims, strict=True):
        unknown = not isinstance(have, int) and (isinstance(new, int) or have.value is None)
        better.append(new if unknown and new is not None else have)
    if any(a is not b for a, b in zip(old, better, strict=True)):
        value.shape = ir.Shape(better)
        return True
    return learnt
