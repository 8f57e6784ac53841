"""Values and types of MIL (MIL.proto) as numpy arrays."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from effc.backends.coreml.interpret.blob import unpack
from effc.core.errors import FrontendError
from effc.core.measure import Array

# MIL.proto's DataType -> (its name, bits, numpy type that holds it); numpy has no types under a byte
DATA_TYPES: dict[int, tuple[str, int, str]] = {
    1: ("bool", 8, "bool"),
    2: ("string", 0, "str"),
    10: ("fp16", 16, "float16"),
    11: ("fp32", 32, "float32"),
    12: ("fp64", 64, "float64"),
    21: ("int8", 8, "int8"),
    22: ("int16", 16, "int16"),
    23: ("int32", 32, "int32"),
    24: ("int64", 64, "int64"),
    25: ("int4", 4, "int8"),
    31: ("uint8", 8, "uint8"),
    32: ("uint16", 16, "uint16"),
    33: ("uint32", 32, "uint32"),
    34: ("uint64", 64, "uint64"),
    35: ("uint4", 4, "uint8"),
    36: ("uint2", 2, "uint8"),
    37: ("uint1", 1, "uint8"),
    38: ("uint6", 6, "uint8"),
    39: ("uint3", 3, "uint8"),
}
NUMPY_TYPES = {name: numpy for name, _, numpy in DATA_TYPES.values()}
# larger would be no model of a phone; a wrong size must not take the machine's memory
MOST_ELEMENTS = 1 << 31

ReadBlob = Callable[[str, int, int, str, int], Array]  # file name, offset, bits, dtype, count


@dataclass(frozen=True, slots=True)
class TensorType:
    """A declared type: MIL's name of the element type, and a shape with None where a size is open."""

    name: str
    bits: int
    dtype: str
    shape: tuple[int | None, ...]
    is_state: bool = False
    variadic: bool = False  # not even the rank is known

    def accepts(self, shape: tuple[int, ...]) -> bool:
        if self.variadic:
            return True
        return len(shape) == len(self.shape) and all(
            want is None or want == got for want, got in zip(self.shape, shape, strict=True)
        )

    def __str__(self) -> str:
        return f"{self.name}[{','.join('?' if d is None else str(d) for d in self.shape)}]"


def tensor_type(proto: Any, where: str) -> TensorType | None:
    """The type of a tensor or of a state of a tensor; None for lists, tuples and dictionaries."""
    kind = proto.WhichOneof("type")
    is_state = kind == "stateType"
    if is_state:
        proto = proto.stateType.wrappedType
        kind = proto.WhichOneof("type")
    if kind != "tensorType":
        return None
    tensor = proto.tensorType
    if tensor.dataType not in DATA_TYPES:
        raise FrontendError(f"{where}: element type {tensor.dataType} is not known")
    name, bits, dtype = DATA_TYPES[tensor.dataType]
    shape: list[int | None] = []
    variadic = tensor.rank < 0
    for dimension in tensor.dimensions:
        if dimension.WhichOneof("dimension") == "constant":
            shape.append(int(dimension.constant.size))
        else:
            shape.append(None)
            variadic |= dimension.unknown.variadic
    return TensorType(name, bits, dtype, tuple(shape), is_state, variadic)


def constant(proto: Any, read_blob: ReadBlob, where: str) -> Any:
    """A Value: an array (0-d for a scalar), a str, or a list of such.

    Elements under 8 bits come as int8 or uint8. Raises FrontendError where size or type is wrong.
    """
    kind = proto.WhichOneof("value")
    if kind == "immediateValue" and proto.immediateValue.WhichOneof("value") in ("list", "tuple"):
        items = getattr(proto.immediateValue, proto.immediateValue.WhichOneof("value")).values
        return [constant(item, read_blob, where) for item in items]
    declared = tensor_type(proto.type, where)
    if declared is None or any(d is None for d in declared.shape):
        raise FrontendError(f"{where}: a constant without a fixed tensor type")
    shape = tuple(d for d in declared.shape if d is not None)
    count = math.prod(shape)
    if count > MOST_ELEMENTS:
        raise FrontendError(f"{where}: a constant of {count} elements")
    if kind == "blobFileValue":
        blob = proto.blobFileValue
        array = read_blob(blob.fileName, blob.offset, declared.bits, declared.dtype, count)
        return array.reshape(shape)
    if kind != "immediateValue":
        raise FrontendError(f"{where}: a constant without a value")
    return _immediate(proto.immediateValue.tensor, declared, shape, count, where)


def _immediate(
    tensor: Any, declared: TensorType, shape: tuple[int, ...], count: int, where: str
) -> Any:
    field = tensor.WhichOneof("value")
    values: Any = getattr(tensor, field).values if field else []
    if declared.name == "string":
        texts = [v.decode() if isinstance(v, bytes) else str(v) for v in values]
        if len(texts) != count:
            raise FrontendError(f"{where}: {len(texts)} texts where {count} are declared")
        return texts[0] if not shape else np.array(texts, dtype=object).reshape(shape)
    if field == "bytes":
        if len(values) * 8 < count * declared.bits:
            raise FrontendError(f"{where}: {len(values)} bytes are too few for {declared}")
        return unpack(values, declared.bits, declared.dtype, count).reshape(shape)
    array = np.array(values).astype(declared.dtype)
    if array.size != count:
        raise FrontendError(f"{where}: {array.size} values where {declared} is declared")
    return array.reshape(shape)
