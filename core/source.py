"""What a frontend hands over: the model, where it came from, and the hash that the manifest keeps."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

import onnx_ir as ir

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
_LIBRARY = re.compile(r"[/\\](site-packages|dist-packages|lib[/\\]python3)")


@dataclass(frozen=True, slots=True)
class Source:
    """A model with its origin.

    `kind` is the id of the frontend ("onnx", "torch", "zoo", ...), `name` what the user typed. `sha256`
    is of the bytes that were read (the file and its external data), or `fingerprint(model)` where there
    was no file. `notes` are facts about the import that a report should show. `preprocess` is the text of
    the preprocessing that the model is known to want, "" where that is not known.
    """

    model: ir.Model
    kind: str
    name: str
    sha256: str
    notes: tuple[str, ...] = ()
    preprocess: str = ""


def fingerprint(model: ir.Model) -> str:
    """The hex SHA-256 of everything that `model` computes: interface, nodes, weights, opsets.

    Doc strings and metadata take no part. Weights are hashed one after the other, so the cost in memory
    is that of the largest.
    """
    digest = hashlib.sha256()

    def add(*parts: object) -> None:
        for part in parts:
            data = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(8, "little"))
            digest.update(data)

    def tensor(value: ir.TensorProtocol) -> None:
        add("tensor", value.dtype.name, tuple(value.shape))
        if value.dtype == ir.DataType.STRING:
            add(*value.numpy().reshape(-1).tolist())
        else:
            add(value.tobytes())

    def graph(g: ir.Graph | ir.Function) -> None:
        for role, values in (("input", g.inputs), ("output", g.outputs)):
            for value in values:
                add(role, value.name, value.dtype, value.shape)
        if isinstance(g, ir.Graph):
            for name, value in sorted(g.initializers.items()):
                add("initializer", name)
                if value.const_value is not None:
                    tensor(value.const_value)
        for node in g:
            add("node", node.domain, node.op_type, node.overload)
            add(*(v.name if v is not None else "" for v in node.inputs))
            add("->", *(v.name for v in node.outputs))
            for name, attribute in sorted(node.attributes.items()):
                add("attribute", name, attribute.type.name)
                if attribute.is_ref():
                    add("reference", attribute.ref_attr_name)
                elif attribute.type == ir.AttributeType.GRAPH:
                    graph(attribute.as_graph())
                elif attribute.type == ir.AttributeType.GRAPHS:
                    for inner in attribute.as_graphs():
                        graph(inner)
                elif attribute.type == ir.AttributeType.TENSOR:
                    tensor(attribute.as_tensor())
                elif attribute.type == ir.AttributeType.TENSORS:
                    for item in attribute.as_tensors():
                        tensor(item)
                else:
                    # as it would be written: 1e-5 and its float32 are the same attribute
                    proto = ir.serde.serialize_attribute(attribute)
                    proto.ClearField("doc_string")
                    add(proto.SerializeToString(deterministic=True))

    for domain, version in sorted(model.opset_imports.items()):
        add("opset", domain, version)
    graph(model.graph)
    for key, function in sorted(model.functions.items()):
        add("function", *key)
        graph(function)
    return digest.hexdigest()


def place_of(node: ir.Node) -> str:
    """Where in the user's code `node` comes from, as `file:line (module path)`; empty if unknown.

    Read from what torch's exporter writes: `pkg.torch.onnx.stack_trace` (the innermost frame outside of
    installed packages) and `pkg.torch.onnx.name_scopes` (the module that was running).
    """
    trace = node.metadata_props.get("pkg.torch.onnx.stack_trace", "")
    frames = [(m["file"], m["line"]) for m in _FRAME.finditer(trace)]
    own = [f for f in frames if not _LIBRARY.search(f[0])] or frames
    place = f"{own[-1][0]}:{own[-1][1]}" if own else ""
    scopes = re.findall(r"'([^']*)'", node.metadata_props.get("pkg.torch.onnx.name_scopes", ""))
    module = scopes[-2] if len(scopes) > 1 else ""
    return f"{place} ({module})" if place and module else place or module
