"""TFLite files into plain data, every offset and count checked against the bytes that are there.

The flatbuffer is walked once; nothing of it is trusted and nothing is allocated on its word. Source:
the schema (tensorflow/compiler/mlir/lite/schema/schema.fbs), as the package `tflite` ships it.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from effc.core.errors import FrontendError

Array = npt.NDArray[Any]

MAX_TENSORS = 500_000
MAX_OPERATORS = 500_000
MAX_RANK = 8
# tensors named by operators, dimensions, options and names together; a real model has a few for each
MAX_ITEMS = 20_000_000
DAMAGED = "the file is damaged: download or convert it again"
# what the flatbuffers library raises where an offset leads out of the buffer
_OUT_OF_BOUNDS = (struct.error, IndexError, ValueError, TypeError, OverflowError)

_DTYPES: dict[str, Any] = {
    "FLOAT32": np.float32, "FLOAT16": np.float16, "FLOAT64": np.float64, "BOOL": np.bool_,
    "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64,
    "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Quantization:
    """real = scale * (stored - zero_point); one of each, or one for each index along `axis`."""

    scale: Array  # float32 [n]
    zero_point: Array  # int64 [n]
    axis: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """`dtype` is None for types that numpy has not (see `type_name`), `data` unless it is constant."""

    name: str
    type_name: str
    dtype: Any
    shape: tuple[int, ...]
    dynamic: bool
    quantization: Quantization | None
    data: Array | None


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator. `inputs` are indices of tensors, -1 where an optional one is absent."""

    index: int
    op: str
    custom: bool
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def place(self) -> str:
        return f"operator #{self.index} ({self.op})"

    def input(self, k: int) -> int:
        """The index of the tensor that is input `k`; FrontendError where there is none."""
        if k >= len(self.inputs) or self.inputs[k] < 0:
            raise FrontendError(f"{self.place} lacks its input {k}", hint=DAMAGED)
        return self.inputs[k]

    def optional(self, k: int) -> int | None:
        """The index of the tensor that is input `k`, if it is given."""
        return self.inputs[k] if k < len(self.inputs) and self.inputs[k] >= 0 else None

    def output(self, k: int = 0) -> int:
        """The index of the tensor that is output `k`; FrontendError where there is none."""
        if k >= len(self.outputs):
            raise FrontendError(f"{self.place} lacks its output {k}", hint=DAMAGED)
        return self.outputs[k]


@dataclass(frozen=True, slots=True)
class Contents:
    """The main subgraph of a file."""

    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    name: str
    subgraphs: int


def read(schema: Any, data: bytes) -> Contents:
    """Parse a whole file; `schema` is the module `tflite`. FrontendError where it is malformed."""
    return _Reader(schema, data).read()


class _Reader:
    def __init__(self, schema: Any, data: bytes) -> None:
        self.schema = schema
        self.data = data
        self.at = "the header"
        self.items = 0

    def read(self) -> Contents:
        try:
            return self._read()
        except _OUT_OF_BOUNDS as error:
            raise FrontendError(
                f"the flatbuffer is malformed at {self.at}: {type(error).__name__}: {error}",
                hint=DAMAGED,
            ) from error

    def _read(self) -> Contents:
        model = self.schema.Model.GetRootAs(self.data, 0)
        if model.Version() != 3:
            raise FrontendError(
                f"this TensorFlow Lite file has the schema version {model.Version()}; effc reads version 3",
                hint="convert the model again with a current TensorFlow",
            )
        self.at = "the table of operator codes"
        codes = [
            self._code(self._present(model.OperatorCodes(i)))
            for i in range(self._count(model.OperatorCodesLength()))
        ]
        self.at = "the table of subgraphs"
        subgraphs = self._count(model.SubgraphsLength())
        if subgraphs == 0:
            raise FrontendError("the file holds no graph", hint=DAMAGED)
        graph = self._present(model.Subgraphs(0))
        buffers = self._count(model.BuffersLength())
        count = self._count(graph.TensorsLength(), MAX_TENSORS)
        tensors = tuple(self._tensor(model, graph, i, buffers) for i in range(count))
        total = self._count(graph.OperatorsLength(), MAX_OPERATORS)
        operators = tuple(self._operator(graph, i, codes, count) for i in range(total))
        self.at = "the interface"
        inputs = self._indices(graph.InputsLength(), graph.InputsAsNumpy, count)
        outputs = self._indices(graph.OutputsLength(), graph.OutputsAsNumpy, count)
        if -1 in inputs or -1 in outputs:
            raise FrontendError("an input or output of the graph is no tensor", hint=DAMAGED)
        return Contents(tensors, operators, inputs, outputs, _text(graph.Name()), subgraphs)

    def _count(self, length: int, limit: int = MAX_ITEMS) -> int:
        """A vector's length: it must fit in the file, and all of them together in MAX_ITEMS."""
        self.items += length
        if length < 0 or length > len(self.data) or length > limit or self.items > MAX_ITEMS:
            raise FrontendError(
                f"the flatbuffer is malformed at {self.at}: it claims {length:,} entries",
                hint=DAMAGED,
            )
        return length

    def _present(self, table: Any) -> Any:
        if table is None:
            raise FrontendError(
                f"the flatbuffer is malformed at {self.at}: an entry is missing", hint=DAMAGED
            )
        return table

    def _code(self, code: Any) -> tuple[str, bool]:
        # ops over 127 are only in the new field, files before 2.4 have only the old
        number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        name = _names(self.schema, "BuiltinOperator").get(number, f"builtin {number}")
        if name == "CUSTOM":
            return _text(code.CustomCode()) or "unnamed", True
        return name, False

    def _tensor(self, model: Any, graph: Any, index: int, buffers: int) -> Tensor:
        self.at = f"tensor #{index}"
        tensor = self._present(graph.Tensors(index))
        name = _text(tensor.Name()) or f"tensor_{index}"
        rank = self._count(tensor.ShapeLength())
        shape = tuple(int(d) for d in tensor.ShapeAsNumpy()) if rank else ()
        signature = self._count(tensor.ShapeSignatureLength())
        dynamic = bool(signature and (tensor.ShapeSignatureAsNumpy() < 0).any())
        if (
            rank > MAX_RANK
            or any(d < 0 for d in shape)
            or math.prod(d for d in shape if d) > 1 << 40
        ):
            raise FrontendError(f"tensor {name!r} has the shape {list(shape)[:9]}", hint=DAMAGED)
        type_name = _names(self.schema, "TensorType").get(tensor.Type(), f"type {tensor.Type()}")
        dtype = _DTYPES.get(type_name)
        if tensor.Sparsity() is not None:
            type_name, dtype = f"sparse {type_name}", None
        data = self._data(model, tensor, buffers, name, shape, dtype)
        return Tensor(
            name, type_name, dtype, shape, dynamic,
            self._quantization(tensor.Quantization(), name, shape), data,
        )  # fmt: skip

    def _data(
        self, model: Any, tensor: Any, buffers: int, name: str, shape: tuple[int, ...], dtype: Any
    ) -> Array | None:
        number = tensor.Buffer()
        if not 0 <= number < max(buffers, 1):
            raise FrontendError(f"tensor {name!r} names buffer {number} of {buffers}", hint=DAMAGED)
        if number == 0:  # by convention the empty one, for what is computed
            return None
        buffer = self._present(model.Buffers(number))
        start, size = buffer.Offset(), buffer.Size()
        if start > 1:  # outside of the flatbuffer, in files over 2 GB
            if start + size > len(self.data):
                raise FrontendError(
                    f"the {size:,} bytes of tensor {name!r} are not in the file", hint=DAMAGED
                )
            content = np.frombuffer(self.data, np.uint8, size, start)
        else:
            length = buffer.DataLength()
            if length == 0:
                return None
            if length > len(self.data):
                raise FrontendError(
                    f"tensor {name!r} claims {length:,} bytes, more than the file has", hint=DAMAGED
                )
            content = buffer.DataAsNumpy()
        if dtype is None:
            return content
        needed = math.prod(shape) * np.dtype(dtype).itemsize
        if needed != content.size:
            raise FrontendError(
                f"tensor {name!r} has {content.size:,} bytes of data where its shape "
                f"{list(shape)} needs {needed:,}",
                hint=DAMAGED,
            )
        return np.frombuffer(content.tobytes(), np.dtype(dtype).newbyteorder("<")).reshape(shape)

    def _quantization(self, found: Any, name: str, shape: tuple[int, ...]) -> Quantization | None:
        if found is None or found.ScaleLength() == 0:
            return None
        count = self._count(found.ScaleLength())
        scale = found.ScaleAsNumpy().astype(np.float32)
        zeros = self._count(found.ZeroPointLength())
        zero = found.ZeroPointAsNumpy().astype(np.int64) if zeros else np.zeros(count, np.int64)
        axis = found.QuantizedDimension()
        if zero.size == 1 and count > 1:
            zero = np.repeat(zero, count)
        if zero.size != count or (
            count > 1 and not (0 <= axis < len(shape) and shape[axis] == count)
        ):
            raise FrontendError(
                f"tensor {name!r} of shape {list(shape)} has {count} scales and {zero.size} zero "
                f"points on axis {axis}",
                hint=DAMAGED,
            )
        return Quantization(scale, zero, axis)

    def _operator(
        self, graph: Any, index: int, codes: list[tuple[str, bool]], tensors: int
    ) -> Operator:
        self.at = f"operator #{index}"
        operator = self._present(graph.Operators(index))
        code = operator.OpcodeIndex()
        if code >= len(codes):
            raise FrontendError(
                f"operator #{index} names code {code} of {len(codes)}", hint=DAMAGED
            )
        name, custom = codes[code]
        self.at = f"operator #{index} ({name})"
        return Operator(
            index,
            name,
            custom,
            self._indices(operator.InputsLength(), operator.InputsAsNumpy, tensors),
            self._indices(operator.OutputsLength(), operator.OutputsAsNumpy, tensors),
            self._options(operator),
        )

    def _indices(self, length: int, get: Any, tensors: int) -> tuple[int, ...]:
        if self._count(length) == 0:
            return ()
        indices = tuple(int(i) for i in get())
        if not all(-1 <= i < tensors for i in indices):
            raise FrontendError(
                f"{self.at} names a tensor that is none of the {tensors}", hint=DAMAGED
            )
        return indices

    def _options(self, operator: Any) -> dict[str, Any]:
        kind = _names(self.schema, "BuiltinOptions").get(operator.BuiltinOptionsType(), "NONE")
        table = operator.BuiltinOptions()
        made = getattr(self.schema, kind, None)
        if table is None or made is None:
            return {}
        options = made()
        options.Init(table.Bytes, table.Pos)
        values: dict[str, Any] = {}
        for name, is_vector in _fields(made):
            if not is_vector:
                values[name] = getattr(options, name)()
            elif self._count(getattr(options, f"{name}Length")()):
                values[name] = [int(v) for v in getattr(options, f"{name}AsNumpy")()]
        return values


@cache
def _names(schema: Any, enumeration: str) -> dict[int, str]:
    members = vars(getattr(schema, enumeration))
    return {v: k for k, v in members.items() if isinstance(v, int) and not k.startswith("_")}


@cache
def _fields(table: Any) -> tuple[tuple[str, bool], ...]:
    """The fields of a table that are numbers, and those that are vectors of numbers."""
    methods = {
        k
        for k in vars(table)
        if k[0].isupper() and not k.startswith("GetRootAs") and not k.endswith("HasIdentifier")
    }
    vectors = {m for m in methods if f"{m}AsNumpy" in methods}
    parts = {m + end for m in methods for end in ("AsNumpy", "Length", "IsNone")}
    plain = methods - vectors - parts - {"Init"}
    # vectors of strings or tables have a Length, too, but no numbers
    plain = {m for m in plain if f"{m}Length" not in methods}
    return tuple((m, False) for m in sorted(plain)) + tuple((m, True) for m in sorted(vectors))


def _text(raw: bytes | None) -> str:
    return (raw or b"")[:1024].decode("utf-8", "replace")
