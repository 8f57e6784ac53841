"""What a lowering function sees of its node: MIL values, constants, attributes, shapes; and how it refuses.

Types. MIL computes in fp32, fp16, int32 and bool. Every integer type of the IR is carried by int32 (int8
and uint8 stay what they are only between quantize and dequantize); float64, bfloat16, 8-bit floats,
strings and complex numbers are refused. A value of rank 0 is rank 0 in MIL, too; at the interface it is
[1], because a model's inputs and outputs have at least one dimension. Core ML takes no more than rank 5:
a value of a higher rank is carried flat, and only operators that move elements take it (`Call.flat`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import onnx_ir as ir

from effc.core.ir import Array, attr, const, shape_of

MAX_RANK = 5
INT32 = np.iinfo(np.int32)

Var = Any  # coremltools.converters.mil.mil.Var

FLOATS = {ir.DataType.FLOAT: "fp32", ir.DataType.FLOAT16: "fp16"}
INTEGERS = (
    ir.DataType.INT64, ir.DataType.INT32, ir.DataType.INT16, ir.DataType.INT8, ir.DataType.UINT8,
    ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64, ir.DataType.INT4, ir.DataType.UINT4,
    ir.DataType.INT2, ir.DataType.UINT2,
)  # fmt: skip
CARRIERS: Mapping[ir.DataType, str] = {
    **FLOATS, **dict.fromkeys(INTEGERS, "int32"), ir.DataType.BOOL: "bool"
}  # fmt: skip
NARROW = tuple(d for d in INTEGERS if d not in (ir.DataType.INT64, ir.DataType.INT32))
NUMPY = {"fp32": np.float32, "fp16": np.float16, "int32": np.int32, "bool": np.bool_}


class Refusal(Exception):
    """A node that can't be lowered: the reason, and what its user can do."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy or "leave this part of the model to the application"


def saturate(values: Any) -> Array:
    """int64 numbers as int32: beyond its range the nearest (INT64_MAX is how ONNX writes `to the end`)."""
    return np.clip(np.asarray(values, np.int64), INT32.min, INT32.max).astype(np.int32)


@dataclass
class Scope:
    """The MIL values of IR values so far; a subgraph's scope sees its parent's."""

    mb: Any  # coremltools' Builder
    ios: int  # 16, 17, 18: the version of the operators
    vars: dict[ir.Value, Var] = field(default_factory=dict)
    facts: dict[str, int] = field(default_factory=dict)  # for the report
    parent: Scope | None = None
    run: Callable[[Scope, ir.Graph], Sequence[Var]] | None = None  # lowers a subgraph in place
    # of values by name: which axes have other extents at other sizes of the input
    open: Mapping[str, tuple[bool, ...]] = field(default_factory=dict)

    def find(self, value: ir.Value) -> Var | None:
        scope: Scope | None = self
        while scope is not None:
            if value in scope.vars:
                return scope.vars[value]
            scope = scope.parent
        return None

    def count(self, fact: str) -> None:
        self.facts[fact] = self.facts.get(fact, 0) + 1


class Call:
    """One node while it is lowered."""

    def __init__(self, node: ir.Node, scope: Scope) -> None:
        self.node = node
        self.scope = scope
        self.mb = scope.mb
        self.ios = scope.ios

    # -- what is there ---------------------------------------------------------------------------

    def has(self, index: int) -> bool:
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def value(self, index: int) -> ir.Value:
        found = self.node.inputs[index] if index < len(self.node.inputs) else None
        if found is None:
            raise Refusal(f"input {index} is absent")
        return found

    def attr(self, name: str, default: Any = None) -> Any:
        return attr(self.node, name, default)

    def text(self, name: str, default: str = "") -> str:
        found = self.attr(name, default)
        return found.decode() if isinstance(found, bytes) else str(found)

    def const(self, index: int) -> Array | None:
        """The array that an input always holds."""
        return const(self.value(index)) if self.has(index) else None

    def need(self, index: int, what: str) -> Array:
        """A constant input, or a refusal that names it."""
        found = self.const(index)
        if found is None:
            raise Refusal(
                f"its {what} is computed at run time, and Core ML wants it at conversion",
                f"make {what} a constant of the model, or fix the shapes with --shape",
            )
        return found

    def ints(self, index: int, what: str) -> list[int]:
        return [int(i) for i in self.need(index, what).reshape(-1)]

    def shape(self, index: int = 0) -> tuple[int, ...]:
        return self.static(self.value(index))

    def out_shape(self, index: int = 0) -> tuple[int, ...]:
        return self.static(self.node.outputs[index])

    def static(self, value: ir.Value) -> tuple[int, ...]:
        found = shape_of(value)
        if found is None:
            raise Refusal(
                f"the shape of {value.name!r} is known only at run time",
                "fix the shapes with --shape, or cut the model before that",
            )
        return found

    def open(self, value: ir.Value) -> tuple[bool, ...]:
        """Which axes of `value` have other extents at other sizes; () where none has."""
        flags = self.scope.open.get(str(value.name), ())
        return flags if any(flags) else ()

    def rank(self, index: int = 0) -> int:
        return len(self.shape(index))

    def dtype(self, index: int = 0) -> ir.DataType:
        return self.value(index).dtype or ir.DataType.FLOAT

    def out_dtype(self, index: int = 0) -> ir.DataType:
        return self.node.outputs[index].dtype or ir.DataType.FLOAT

    def carrier(self, index: int = 0) -> str:
        return carrier(self.value(index))

    def is_float(self, index: int = 0) -> bool:
        return self.dtype(index) in FLOATS

    def numpy(self, index: int = 0) -> Any:
        return NUMPY[self.carrier(index)]

    def axis(self, axis: int, rank: int | None = None) -> int:
        rank = self.rank() if rank is None else rank
        return axis + rank if axis < 0 else axis

    def wanted(self, output: int) -> bool:
        """Whether anything reads this output."""
        outputs = self.node.outputs
        if output >= len(outputs) or not outputs[output].name:
            return False
        return bool(outputs[output].uses()) or outputs[output].is_graph_output()

    # -- MIL values ------------------------------------------------------------------------------

    def x(self, index: int = 0) -> Var:
        """The MIL value of an input, in its carrier type; rank at most 5."""
        value = self.value(index)
        shape = shape_of(value)
        if shape is not None and len(shape) > MAX_RANK:
            raise Refusal(
                f"{value.name!r} has rank {len(shape)}, and Core ML takes at most {MAX_RANK}",
                "reshape it to fewer dimensions before this node",
            )
        return self.plain(self.raw(index))

    def xs(self) -> list[Var]:
        return [self.x(i) for i in range(len(self.node.inputs)) if self.has(i)]

    def flat(self, index: int = 0) -> Var:
        """The elements of an input, in one dimension."""
        var = self.plain(self.raw(index))
        size = math.prod(self.shape(index))
        return var if tuple(var.shape) == (size,) else self.reshaped(var, (size,))

    def raw(self, index: int = 0) -> Var:
        """As it is: quantized integers are int8 or uint8, and a rank over 5 is flat."""
        value = self.value(index)
        found = self.scope.find(value)
        if found is not None:
            return found
        array = const(value)
        if array is None:
            raise Refusal(f"{value.name!r} is neither computed nor constant")
        var = self.constant(array, carrier(value), str(value.name))
        self.scope.vars[value] = var
        return var

    def plain(self, var: Var) -> Var:
        """Quantized integers as int32."""
        kind = kind_of(var)
        return self.mb.cast(x=var, dtype="int32") if kind in ("int8", "uint8") else var

    def constant(self, array: Any, kind: str = "", name: str = "") -> Var:
        """A constant of the carrier `kind`; integers have to fit."""
        array = np.asarray(array)
        kind = kind or kind_of_array(array)
        if kind == "int32" and array.dtype.kind in "iu" and array.size:
            wide = array.astype(np.int64) if array.dtype != np.uint64 else array.astype(object)
            if wide.max() > INT32.max or wide.min() < INT32.min:
                raise Refusal(
                    f"the constant {name!r} holds {int(abs(wide).max())}, which int32 does not: "
                    "Core ML has no int64",
                    "use smaller numbers, or floats",
                )
        typed = array.astype(NUMPY[kind])
        if typed.ndim > MAX_RANK:
            typed = typed.reshape(-1)
        if typed.size == 0:
            raise Refusal(
                "it takes an empty tensor, which Core ML does not have", "leave the empty part out"
            )
        legal = {"name": mil_name(name)} if name else {}
        return self.mb.const(val=typed, **legal)

    def like(self, value: Any, var: Var) -> Any:
        """A number in the numpy type of `var`, for parameters that must match it."""
        return NUMPY[kind_of(var)](value)

    def reshaped(self, var: Var, shape: Sequence[int]) -> Var:
        """`var` in another shape; one of over rank 5 stays flat."""
        wanted = tuple(int(d) for d in shape)
        if 0 in wanted:
            raise Refusal(
                f"it makes an empty tensor {list(wanted)}, which Core ML does not have",
                "leave the empty part out",
            )
        if len(wanted) > MAX_RANK:
            wanted = (math.prod(wanted),)
        if tuple(var.shape) == wanted:
            return var
        if not wanted:
            if len(var.shape) == 0:
                return var
            if len(var.shape) > 1:
                var = self.mb.reshape(x=var, shape=np.array([1], np.int32))
            return self.mb.squeeze(x=var, axes=np.array([0], np.int32))
        return self.mb.reshape(x=var, shape=np.array(wanted, np.int32))

    def at_least_1d(self, var: Var) -> Var:
        return var if len(var.shape) else self.mb.expand_dims(x=var, axes=np.array([0], np.int32))

    def cast(self, var: Var, kind: str) -> Var:
        return var if kind_of(var) == kind else self.mb.cast(x=var, dtype=kind)

    def as_int(self, var: Var, function: Callable[[Var], Var]) -> Var:
        """`function` of a bool in int32, for operators that take no bool."""
        if kind_of(var) != "bool":
            return function(var)
        return self.mb.cast(x=function(self.mb.cast(x=var, dtype="int32")), dtype="bool")

    def as_pair(self, function: Callable[[Var, Var], Var]) -> Var:
        """`function` of data (input 0) and updates (input 2), of booleans in int32."""
        x, u = self.x(0), self.x(2)
        if kind_of(x) != "bool":
            return function(x, u)
        return self.cast(function(self.cast(x, "int32"), self.cast(u, "int32")), "bool")

    def only_float(self, what: str = "") -> None:
        if not self.is_float():
            raise Refusal(
                f"it is of {self.dtype().name.lower()}{what}, and Core ML has it for floats only",
                "cast to float before and back after it",
            )

    def no_wrap(self) -> None:
        """Refuse arithmetic that wraps around at a width that int32 does not."""
        if self.dtype() in NARROW:
            raise Refusal(
                f"it computes in {self.dtype().name.lower()}, which wraps around where Core ML's int32 "
                "does not",
                "cast to int32 or float before it",
            )


def carrier(value: ir.Value) -> str:
    """The MIL type that carries an IR value."""
    if value.dtype is None:
        raise Refusal(f"{value.name!r} has no type")
    if value.dtype not in CARRIERS:
        raise Refusal(
            f"{value.name!r} is of {value.dtype.name.lower()}, which Core ML does not have",
            "use float32, float16, integers of at most 32 bits, or bool",
        )
    return CARRIERS[value.dtype]


def kind_of(var: Var) -> str:
    """ "fp32", "fp16", "int32", "bool", "int8", ..."""
    from coremltools.converters.mil.mil import types

    return str(types.builtin_to_string(var.dtype))


def kind_of_array(array: Array) -> str:
    kinds = {"b": "bool", "i": "int32", "u": "int32"}
    if array.dtype == np.float16:
        return "fp16"
    return kinds.get(array.dtype.kind, "fp32")


def mil_name(name: str) -> str:
    """A name as MIL takes it: letters, digits and `_`, no digit first."""
    text = "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in name)
    return f"_{text}" if not text or text[0].isdigit() else text


def unsupported(reason: str, remedy: str = "") -> NoReturn:
    raise Refusal(reason, remedy)
