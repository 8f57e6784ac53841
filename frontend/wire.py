"""The protobuf wire format of ONNX files, walked before protobuf allocates anything.

Source: https://protobuf.dev/programming-guides/encoding/ and onnx.proto (field numbers are read from
onnx's own descriptors).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import onnx

Buffer = bytes | mmap.mmap

# Weights of the main graph from this size on stay in the file and are mapped when used.
MAPPED_BYTES = 1 << 16
# What the parsed structure may take in memory: 100,000 nodes with their shapes take about 150 MB.
MAX_STRUCTURE_BYTES = 600 << 20
MAX_FIELDS = 8_000_000  # 100,000 nodes have about 3 million; this bounds the seconds of the walk
# protobuf refuses deeper messages as well, but without a reason
MAX_DEPTH = 100

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_GRAPH, _INITIALIZER = 7, 5  # ModelProto.graph, GraphProto.initializer
_FLOAT_DATA, _DATA_TYPE, _RAW_DATA = 4, 2, 9  # of TensorProto


class WireError(Exception):
    """The bytes are no protobuf message of this type; the text says where and why."""


@dataclass(frozen=True, slots=True)
class Payload:
    """The bytes of one weight inside the file."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class _Field:
    child: _Message | None  # a sub-message
    per_byte: int  # bytes of memory for each byte on the wire, for scalars


@dataclass(slots=True)
class _Message:
    name: str
    cost: int  # bytes of memory that an empty message takes
    fields: dict[int, _Field]


@cache
def _message(descriptor: Any) -> _Message:
    made: dict[Any, _Message] = {}

    def make(d: Any) -> _Message:
        if d in made:
            return made[d]
        message = made[d] = _Message(d.name, 24 + 12 * len(d.fields), {})
        for f in d.fields:
            child = make(f.message_type) if f.message_type is not None else None
            narrow = f.type in (f.TYPE_STRING, f.TYPE_BYTES, f.TYPE_FLOAT, f.TYPE_DOUBLE)
            message.fields[f.number] = _Field(child, 1 if narrow else 8)
        return message

    return make(descriptor)


def _varint(data: Buffer, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= end:
            raise WireError(f"it is cut off at byte {at}")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise WireError(f"the number at byte {at} is longer than 64 bits")


def _next(data: Buffer, at: int, end: int) -> tuple[int, int, int, int]:
    """The field at `at`: number, wire type, and where its value starts and ends."""
    tag, start = _varint(data, at, end)
    number, kind = tag >> 3, tag & 7
    if kind == _LENGTH:
        length, start = _varint(data, start, end)
        stop = start + length
    elif kind == _VARINT:
        stop = _varint(data, start, end)[1]
    elif kind == _FIXED32:
        stop = start + 4
    elif kind == _FIXED64:
        stop = start + 8
    else:
        raise WireError(f"byte {at} starts no valid field")
    if number == 0:
        raise WireError(f"byte {at} starts no valid field")
    if stop > end:
        raise WireError(_cut_off(at, stop - end))
    return number, kind, start, stop


def fields(data: Buffer, at: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Every field in `data[at:end]`: number, wire type, where it starts, and its value's start and end."""
    while at < end:
        number, kind, start, stop = _next(data, at, end)
        yield number, kind, at, start, stop
        at = stop


def measure(data: Buffer, size: int) -> int:
    """Walk a whole ModelProto; the bytes of memory that its structure takes once parsed.

    Weights that are raw bytes do not count. WireError where the bytes are no ModelProto, or as soon as
    the structure exceeds MAX_STRUCTURE_BYTES or MAX_FIELDS.
    """
    message = _message(onnx.ModelProto.DESCRIPTOR)
    stack: list[tuple[int, _Message]] = []
    at, end, cost, count = 0, size, message.cost, 0
    while True:
        while at < end:
            tag = data[at]
            if (
                at + 1 < end
                and tag < 0x80
                and tag & 7 == _LENGTH
                and data[at + 1] < 0x80
                and tag > 7
            ):
                # the common case by far, without a call
                number, kind, start = tag >> 3, _LENGTH, at + 2
                stop = start + data[at + 1]
                if stop > end:
                    raise WireError(_cut_off(at, stop - end))
            else:
                number, kind, start, stop = _next(data, at, end)
                count += 1  # twice as slow as the others
            count += 1
            if count > MAX_FIELDS:
                raise WireError(f"it has over {MAX_FIELDS:,} fields, more than any model")
            known = message.fields.get(number)
            if known is not None:
                if kind != _LENGTH:
                    cost += 8
                elif known.child is None:
                    cost += 16 if known.per_byte == 1 else 8 * (stop - start)
                else:
                    if len(stack) >= MAX_DEPTH - 1:
                        raise WireError(f"it nests more than {MAX_DEPTH} messages deep")
                    stack.append((end, message))
                    message, at, end = known.child, start, stop
                    cost += message.cost
                    continue
            at = stop
        if cost > MAX_STRUCTURE_BYTES:
            raise WireError(
                f"its structure alone would take over {MAX_STRUCTURE_BYTES >> 20} MB of memory"
            )
        if not stack:
            return cost
        end, message = stack.pop()


def _cut_off(at: int, missing: int) -> str:
    return f"the field at byte {at} needs {missing} bytes more than there are: it is cut off"


def split(data: Buffer, size: int) -> tuple[bytes, dict[int, Payload]]:
    """Take the large weights out of a ModelProto.

    Returns the bytes of the ModelProto without them, and where they are, by the index of the
    initializer in the main graph.
    """
    graph: tuple[int, int, int] | None = None
    for number, kind, at, start, stop in fields(data, 0, size):
        if number == _GRAPH and kind == _LENGTH:
            if graph is not None:
                raise WireError("it holds two graphs")
            graph = at, start, stop
    if graph is None:
        return data[:size], {}
    payloads: dict[int, Payload] = {}
    pieces: list[bytes] = []
    index, kept = 0, graph[1]
    for number, kind, at, start, stop in fields(data, graph[1], graph[2]):
        if number != _INITIALIZER or kind != _LENGTH:
            continue
        if stop - start >= MAPPED_BYTES:
            cut = _payload(data, start, stop)
            if cut is not None:
                begin, payload = cut
                payloads[index] = payload
                rest = data[start:begin] + data[payload.offset + payload.length : stop]
                pieces += (data[kept:at], _tagged(_INITIALIZER, len(rest)), rest)
                kept = stop
        index += 1
    pieces.append(data[kept : graph[2]])
    body = sum(map(len, pieces))
    return (
        b"".join(
            (data[: graph[0]], _tagged(_GRAPH, body), *pieces, data[graph[2] : size]),
        ),
        payloads,
    )


def _payload(data: Buffer, start: int, stop: int) -> tuple[int, Payload] | None:
    """Where the only large data field of a TensorProto starts, and its bytes; None if there is none."""
    found: list[tuple[int, Payload]] = []
    is_float = False
    for number, kind, at, begin, end in fields(data, start, stop):
        if number == _DATA_TYPE and kind == _VARINT:
            is_float = _varint(data, begin, end)[0] == onnx.TensorProto.FLOAT
        elif number == _RAW_DATA and kind == _LENGTH:
            found.append((at, Payload(begin, end - begin)))
        elif number == _FLOAT_DATA and kind == _LENGTH:
            found.append((-1 if not is_float else at, Payload(begin, end - begin)))
    if len(found) != 1 or found[0][0] < 0 or found[0][1].length < MAPPED_BYTES:
        return None
    return found[0]


def _tagged(number: int, length: int) -> bytes:
    out = bytearray([number << 3 | _LENGTH])
    while length >= 0x80:
        out.append(length & 0x7F | 0x80)
        length >>= 7
    out.append(length)
    return bytes(out)
