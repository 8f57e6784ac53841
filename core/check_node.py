"""Whether a node fits the schema of its operator."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from effc.core.check_graph import Scope
from effc.core.check_ops import check_op, quoted, where
from effc.core.errors import FrontendError
from effc.core.qoperators import VENDOR_DOMAIN, VENDOR_QOPERATORS
from effc.core.schema import OpSchema, element_type, opset_range, schema_of, why_no_schema


def check_node(
    node: ir.Node,
    scope: Scope,
    model: ir.Model,
    domains: Collection[str],
    types: dict[int, ir.DataType],
) -> None:
    for i, value in enumerate(node.inputs):
        if value is None:
            continue
        producer = value.producer()
        if producer is None and not value.is_graph_input() and not value.is_initializer():
            raise FrontendError(
                f"{where(node)}{scope.place} reads {quoted(value.name)} (input {i}), which nothing makes",
                hint="the model was cut in two or its exporter is at fault",
            )
        owner = producer.graph if producer is not None else value.graph
        if owner is None or id(owner) not in scope.visible:
            raise FrontendError(
                f"{where(node)}{scope.place} reads {quoted(value.name)} (input {i}), which is made "
                "inside another subgraph",
            )
    if node.op_identifier() in model.functions:
        return
    domain = "" if node.domain == "ai.onnx" else node.domain
    if opset_range(domain) is None:
        if domain in domains or (domain == VENDOR_DOMAIN and node.op_type in VENDOR_QOPERATORS):
            return
        raise FrontendError(
            f"{where(node)}{scope.place} is of the custom domain {quoted(domain)}, whose meaning "
            "ONNX doesn't define",
            hint="quantize again with quant_format=QuantFormat.QDQ"
            if domain == VENDOR_DOMAIN and node.op_type.startswith(("Q", "DynamicQ"))
            else "export with standard operators (no onnxruntime or vendor fusions), or give the "
            "model the function that defines it",
        )
    opset = scope.opsets.get(domain)
    if opset is None:
        raise FrontendError(
            f"{where(node)}{scope.place} is of the domain {quoted(domain or 'ai.onnx')}, of which "
            "the model imports no opset",
            hint="its exporter is at fault: add the opset_import that it was written for",
        )
    schema = schema_of(node.op_type, opset, domain)
    if schema is None:
        reason, hint = why_no_schema(node.op_type, opset, domain)
        raise FrontendError(f"{where(node)}{scope.place}: {reason}", hint=hint)
    _check_signature(node, schema, scope.place)
    _check_types(node, schema, scope.place, types)
    check_op(node, scope.place)


def _check_signature(node: ir.Node, schema: OpSchema, place: str) -> None:
    for noun, values, low, high in (
        ("inputs", node.inputs, schema.min_inputs, schema.max_inputs),
        ("outputs", node.outputs, schema.min_outputs, schema.max_outputs),
    ):
        given = len(values)
        while given and (values[given - 1] is None or not values[given - 1].name):  # type: ignore[union-attr]
            given -= 1
        if not low <= given <= high:
            allowed = (
                f"{low}" if low == high else f"{low} to {high}" if high < 1000 else f"{low} or more"
            )
            raise FrontendError(
                f"{where(node)}{place} has {given} {noun}; the operator takes {allowed}"
            )
    for i, value in enumerate(node.inputs):
        if value is None and i < len(schema.inputs) and schema.inputs[i].required:
            raise FrontendError(
                f"{where(node)}{place} lacks its input {i} ({schema.inputs[i].name})"
            )
    for name, attribute in node.attributes.items():
        expected = schema.attributes.get(name)
        if expected is None:
            if name.startswith("__"):  # internal marks of exporters, as onnx's own checker has it
                continue
            raise FrontendError(
                f"{where(node)}{place} has the attribute {quoted(name)}, which the operator has not",
                hint=f"its attributes: {', '.join(schema.attributes) or 'none'}",
            )
        if attribute.type.name != expected.type:
            raise FrontendError(
                f"the attribute {quoted(name)} of {where(node)}{place} is of type {attribute.type.name}, not "
                f"{expected.type}"
            )
    for name, expected in schema.attributes.items():
        if expected.required and name not in node.attributes:
            raise FrontendError(f"{where(node)}{place} lacks its attribute {quoted(name)}")


def _check_types(
    node: ir.Node, schema: OpSchema, place: str, types: dict[int, ir.DataType]
) -> None:
    """Element types by the schema's constraints, carried forward to values that declare none."""
    bound: dict[str, tuple[ir.DataType, int]] = {}
    for i, value in enumerate(node.inputs):
        if value is None:
            continue
        formal = schema.inputs[min(i, len(schema.inputs) - 1)]
        known = value.dtype if isinstance(value.type, ir.TensorType) else types.get(id(value))
        if known is None or known == ir.DataType.UNDEFINED:
            continue
        text = element_type(known)
        if formal.allowed and text not in formal.allowed:
            raise FrontendError(
                f"{where(node)}{place} takes no {known.name} as input {i} ({quoted(value.name)})",
                hint=f"{node.op_type} takes {', '.join(sorted(formal.allowed)[:6])}",
            )
        if not formal.variable or not formal.homogeneous:
            continue
        first = bound.setdefault(formal.variable, (known, i))
        if first[0] != known:
            raise FrontendError(
                f"{where(node)}{place} has inputs of different types: input {first[1]} is "
                f"{first[0].name}, input {i} ({quoted(value.name)}) is {known.name}",
                hint="the operator wants one type: cast one of them",
            )
    for i, value in enumerate(node.outputs):
        if value.type is not None or not schema.outputs:
            continue
        formal = schema.outputs[min(i, len(schema.outputs) - 1)]
        if formal.variable in bound and formal.homogeneous:
            types[id(value)] = bound[formal.variable][0]
