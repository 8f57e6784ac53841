"""Shapes and types of every value: the shape contract, and inference that raises where it fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
import onnx_ir as ir

from effc.core.artifact import TensorSpec
from effc.core.errors import ConfigError, FrontendError
from effc.core.ir import shape_of

# larger initializers travel to the inference as types only: it reads values only of shapes and axes
_KEEP_BYTES = 4096


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


def static_specs(values: Sequence[ir.Value]) -> tuple[TensorSpec, ...]:
    """Inputs or outputs of a graph as their user sees them; ConfigError where a shape is dynamic."""
    specs = []
    for v in values:
        shape = shape_of(v)
        if shape is None or v.dtype is None:
            raise ConfigError(
                f"{v.name!r} has the dynamic shape {v.shape}: an artifact has static shapes",
                hint=f"fix it with --shape INPUT=1,3,224,224 (it depends on {v.name!r})",
            )
        specs.append(TensorSpec(str(v.name), v.dtype.numpy().name, shape))
    return tuple(specs)


def infer_shapes(model: ir.Model) -> None:
    """Infer shape and type of every value by the ONNX schemas, in place; a contradiction raises.

    What the model claims about intermediate values is thrown away, except behind operators that have
    no schema. Large weights take no part: only their shapes do.
    Source: onnx.shape_inference in strict mode with data propagation.
    """
    proto = onnx.ModelProto(ir_version=model.ir_version)
    for domain, version in model.opset_imports.items():
        proto.opset_import.append(onnx.helper.make_opsetid(domain, version))
    for function in model.functions.values():
        ir.serde.serialize_function_into(proto.functions.add(), function)
    _serialize(model.graph, proto.graph)
    try:
        inferred = onnx.shape_inference.infer_shapes(
            proto, check_type=True, strict_mode=True, data_prop=True
        )
    except Exception as error:  # InferenceError, or a ValueError of the bindings
        first = str(error).strip().splitlines()[0]
        raise FrontendError(
            f"shapes do not fit: {first[:300]}",
            hint="the model contradicts the ONNX specification there, or --shape does not suit it",
        ) from error
    _copy(inferred.graph, model.graph)


def _serialize(graph: ir.Graph, proto: onnx.GraphProto) -> None:
    proto.name = graph.name or "graph"
    for value in graph.inputs:
        ir.serde.serialize_value_into(proto.input.add(), value)
    for value in graph.outputs:
        ir.serde.serialize_value_into(proto.output.add(), value)
    inputs = {v.name for v in graph.inputs}
    for name, value in graph.initializers.items():
        tensor = value.const_value
        if tensor is None or name in inputs:
            continue
        if tensor.nbytes <= _KEEP_BYTES:
            ir.serde.serialize_tensor_into(proto.initializer.add(), tensor)
            proto.initializer[-1].name = name
        else:
            typed = ir.Value(
                name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype)
            )
            ir.serde.serialize_value_into(proto.input.add(), typed)
    for node in graph:
        ir.serde.serialize_node_into(proto.node.add(), node)
        if node.domain not in ("", "ai.onnx"):
            for value in node.outputs:
                if value.type is not None and not value.is_graph_output():
                    ir.serde.serialize_value_into(proto.value_info.add(), value)


def _copy(proto: onnx.GraphProto, graph: ir.Graph) -> None:
    found = {v.name: v for v in (*proto.value_info, *proto.output)}
    for node, node_proto in zip(graph, proto.node, strict=True):
        for value in node.outputs:
            info = found.get(value.name or "")
            if info is not None:
                ir.serde.deserialize_value_info_proto(info, value)
        subgraphs = {a.name: a for a in node_proto.attribute if a.HasField("g") or a.graphs}
        for name, attribute in subgraphs.items():
            own = node.attributes[name]
            pairs = (
                [(attribute.g, own.as_graph())]
                if attribute.HasField("g")
                else list(zip(attribute.graphs, own.as_graphs(), strict=True))
            )
            for inner_proto, inner in pairs:
                _copy(inner_proto, inner)
