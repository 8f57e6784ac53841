"""ONNX files into the IR: binary or textual, with external data, functions inlined.

Source: https://onnx.ai/onnx/repo-docs/IR.html, https://onnx.ai/onnx/repo-docs/Syntax.html
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import mmap
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx.parser
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx_ir.passes.common import InlinePass

from effc.core.check import MAX_NODES, check_model, normalize
from effc.core.errors import FrontendError
from effc.core.ir import no_garbage_collection
from effc.core.source import Source
from effc.frontend import wire
from effc.frontend.external_data import ExternalData, map_tensor
from effc.frontend.files import HEAD_BYTES, open_regular, printable, refuse_other_formats
from effc.frontend.onnx_proto import check_proto, external_tensors

# protobuf's limit for one message
MAX_FILE_BYTES = (1 << 31) - 1
MAX_TEXT_BYTES = 64 << 20
MAX_TEXT_DEPTH = 64
# below this size a file can't grow into much memory and is not worth mapping
_SMALL_BYTES = 2 << 20
_DAMAGED = "the file is damaged or not an ONNX model: download or export it again"


def load(
    path: str | os.PathLike[str],
    *,
    allow_domains: Collection[str] = (),
) -> ir.Model:
    """The model in an ONNX file, its structure checked (`effc.core.check.check_model`).

    The numbers of the weights are not read, let alone judged: call `check_model` for that. Weights
    over 64 KiB stay in their file, mapped, and are read when they are used: the file must not be
    changed in place meanwhile. Functions are inlined, inputs that have a default are bound to it, nodes
    get unique names and stand in topological order. FrontendError for anything else than a valid
    model, within seconds and without allocating what the file merely claims.
    """
    return load_source(path, allow_domains=allow_domains).model


def load_source(
    path: str | os.PathLike[str],
    *,
    allow_domains: Collection[str] = (),
) -> Source:
    """`load`, with the SHA-256 of what was read and notes about what the import did."""
    file = Path(path)
    descriptor = open_regular(file)
    try:
        with _quiet(), no_garbage_collection():
            proto, payloads, data, digest = _read(file, descriptor)
            check_proto(proto, {i: p.length for i, p in payloads.items()})
            external = ExternalData(file.parent)
            model = _to_ir(proto, payloads, data, external)
            notes = _normalize(model)
            check_model(model, allow_domains=allow_domains, allow_nonfinite=True, allow_empty=True)
            normalize(model)
    except FrontendError as error:
        raise FrontendError(f"{printable(file)}: {error}", hint=error.hint) from error
    except UnicodeDecodeError as error:
        raise FrontendError(
            f"{printable(file)}: a name in it is not UTF-8", hint=_DAMAGED
        ) from error
    except (OSError, MemoryError) as error:
        raise FrontendError(f"{printable(file)} can't be read: {error}") from error
    if digests := external.digests():
        digest = hashlib.sha256("\n".join([digest, *digests]).encode()).hexdigest()
    return Source(model, "onnx", str(path), digest, tuple(notes))


def _read(
    file: Path, descriptor: int
) -> tuple[onnx.ModelProto, dict[int, wire.Payload], wire.Buffer, str]:
    with os.fdopen(descriptor, "rb") as stream:
        size = os.fstat(descriptor).st_size
        head = stream.read(HEAD_BYTES)
        refuse_other_formats(file, head)
        if size > MAX_FILE_BYTES:
            raise FrontendError(
                f"it has {size / 1e9:.1f} GB, over protobuf's limit of 2 GB",
                hint="save the weights as external data: onnx.save(m, path, save_as_external_data=True)",
            )
        stream.seek(0)
        # by reading: pages of a mapping would count as memory of this process
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        stream.seek(0)
        data: wire.Buffer
        if size < _SMALL_BYTES:
            data = stream.read(size)
        else:
            data = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    if _is_text(file, head):
        return _parse_text(data[:size]), {}, data, digest
    try:
        if size >= _SMALL_BYTES:
            wire.measure(data, size)
        skeleton, payloads = wire.split(data, size)
        proto = onnx.ModelProto.FromString(skeleton)
    except wire.WireError as error:
        raise FrontendError(f"the protobuf can't be parsed: {error}", hint=_DAMAGED) from error
    except DecodeError as error:
        raise FrontendError(
            f"the protobuf can't be parsed: {_where(data, size) or error}", hint=_DAMAGED
        ) from error
    return proto, payloads, data, digest


def _where(data: wire.Buffer, size: int) -> str:
    try:
        wire.measure(data, size)
    except wire.WireError as error:
        return str(error)
    return ""


def _is_text(file: Path, head: bytes) -> bool:
    if file.suffix.lower() in (".onnxtxt", ".txt"):
        return True
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    return start.startswith(b"<") and all(b >= 32 or b in b"\t\r\n" for b in start)


def _parse_text(data: bytes) -> onnx.ModelProto:
    if len(data) > MAX_TEXT_BYTES:
        raise FrontendError(
            f"it has {len(data) >> 20} MB of text, over the limit of {MAX_TEXT_BYTES >> 20} MB",
            hint="save it as binary ONNX",
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FrontendError(f"it is no text: byte {error.start} is not UTF-8") from error
    depth = deepest = 0
    for character in text:  # onnx's parser recurses
        if character in "([{<":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}>":
            depth -= 1
    if deepest > MAX_TEXT_DEPTH:
        raise FrontendError(f"its brackets nest {deepest} deep, over the limit of {MAX_TEXT_DEPTH}")
    try:
        return onnx.parser.parse_model(text)
    except Exception as error:  # ParseError, or a RuntimeError of the bindings
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = next(
            (line for line in lines if "Error" not in line[:12]), lines[0] if lines else ""
        )
        raise FrontendError(
            f"the ONNX text can't be parsed: {' '.join(lines)[:300] or reason}",
            hint="the syntax is that of onnx.printer.to_text",
        ) from error


def _to_ir(
    proto: onnx.ModelProto,
    payloads: Mapping[int, wire.Payload],
    data: wire.Buffer,
    external: ExternalData,
) -> ir.Model:
    mapped = {
        proto.graph.initializer[i].name: (proto.graph.initializer[i], p)
        for i, p in payloads.items()
    }
    outside: dict[int, ir.TensorProtocol] = {}
    for i, tensor in enumerate(external_tensors(proto)):
        found = external.tensor(tensor, f"tensor {printable(tensor.name or f'#{i}')}")
        # the IR makes one ExternalTensor of each; its location leads back to what was mapped here
        outside[i] = found
        del tensor.external_data[:]
        tensor.external_data.add(key="location", value=str(i))
    try:
        model = ir.from_proto(proto)
    except Exception as error:  # whatever the IR finds wrong first
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0][:300]
        raise FrontendError(f"the model is malformed: {reason}", hint=_DAMAGED) from error
    for name, (tensor, payload) in mapped.items():
        model.graph.initializers[name].const_value = map_tensor(
            data, payload.offset, ir.DataType(tensor.data_type), tuple(tensor.dims), name
        )
    if outside:
        _replace_external(model, outside)
    return model


def _replace_external(model: ir.Model, outside: Mapping[int, ir.TensorProtocol]) -> None:
    def mapped(tensor: Any) -> Any:
        return (
            outside[int(str(tensor.location))] if isinstance(tensor, ir.ExternalTensor) else tensor
        )

    bodies: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for body in list(bodies):
        bodies += body.subgraphs()
    for body in bodies:
        if isinstance(body, ir.Graph):
            for value in body.initializers.values():
                value.const_value = mapped(value.const_value)
        for node in body:
            for name, attribute in list(node.attributes.items()):
                if attribute.is_ref():
                    continue
                if attribute.type == ir.AttributeType.TENSOR:
                    node.attributes[name] = ir.AttrTensor(name, mapped(attribute.value))
                elif attribute.type == ir.AttributeType.TENSORS:
                    node.attributes[name] = ir.AttrTensors(
                        name, [mapped(t) for t in attribute.as_tensors()]
                    )


def _normalize(model: ir.Model) -> list[str]:
    """Inline functions, bind defaults, in place; returns the notes."""
    notes = []
    for table in (model.opset_imports, *(f.opset_imports for f in model.functions.values())):
        if "ai.onnx" in table:
            table[""] = table.pop("ai.onnx")
    if model.functions:
        count = len(model.functions)
        _inline(model)
        notes.append(f"{count} functions inlined")
    bound = [v for v in model.graph.inputs if v.name in model.graph.initializers]
    for value in bound:
        model.graph.inputs.remove(value)
    # before IR version 4 every weight had to be listed as an input as well
    if (model.ir_version or 0) == 3:
        model.ir_version = 4
    elif bound:
        names = ", ".join(printable(v.name) for v in bound[:3])
        more = f" and {len(bound) - 3} more" if len(bound) > 3 else ""
        notes.append(f"inputs with a default are bound to it: {names}{more}")
    return notes


def _inline(model: ir.Model) -> None:
    sizes = _expanded_sizes(model)
    total = sum(sizes.get(n.op_identifier(), 1) for n in model.graph.all_nodes())
    if total > MAX_NODES:
        raise FrontendError(
            f"inlining its functions would make {total:.3g} nodes, over the limit of {MAX_NODES}"
        )
    model.graph.name = model.graph.name or "graph"
    try:
        InlinePass()(model)
    except Exception as error:  # PassError around whatever the inliner finds wrong
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0][:300]
        raise FrontendError(
            f"its functions can't be inlined: {reason}",
            hint="export it without functions, or with the opset that they were written for",
        ) from error
    for key in list(model.functions):  # those that nothing calls
        del model.functions[key]


def _expanded_sizes(model: ir.Model) -> dict[ir.OperatorIdentifier, int]:
    """The nodes that one call of each function becomes; a cycle raises."""
    calls = {k: [n.op_identifier() for n in f.all_nodes()] for k, f in model.functions.items()}
    sizes: dict[ir.OperatorIdentifier, int] = {}
    opened: set[ir.OperatorIdentifier] = set()
    for root in calls:
        stack = [root]
        while stack:
            key = stack[-1]
            if key in sizes:
                stack.pop()
                continue
            pending = [c for c in set(calls[key]) if c in calls and c not in sizes]
            if not pending:
                sizes[key] = sum(sizes.get(c, 1) for c in calls[key])
                opened.discard(key)
                stack.pop()
                continue
            opened.add(key)
            for callee in pending:
                if callee in opened:
                    raise FrontendError(f"the function {printable(callee[1])} calls itself")
            stack += pending
    return sizes


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the IR's warnings about faults that the checks report as errors."""
    logger = logging.getLogger("onnx_ir")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
