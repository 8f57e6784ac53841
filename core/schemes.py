"""Quantization schemes: which quantizers a target allows at which inputs of which operators, as data.

A scheme is a table op type -> `OpRule`, with what holds for all operators: the types of activations and
weights, what becomes of biases and residual adds, whether inputs and outputs of the model are quantized.
`passes/quantize` places Q/DQ by it and `core/check_quantization.py` holds any Q/DQ model to it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
import onnx_ir as ir

from effc.core.errors import ConfigError
from effc.core.ir import attr, const, is_op, scalar


class Kind(enum.Enum):
    """What an operator does with quantized tensors."""

    MULTIPLY = "multiply"  # sums of products: always worth quantizing
    COMBINE = "combine"  # elementwise, of two tensors
    REDUCE = "reduce"  # average pools
    MOVE = "move"  # moves or chooses elements: inputs and output share one scale
    FUNCTION = "function"  # an elementwise function of one tensor: a table
    CLAMP = (
        "clamp"  # Relu, Clip: part of the node before it where that can take it, else a FUNCTION
    )


@dataclass(frozen=True, slots=True)
class TensorRule:
    """The quantizers allowed for one role of tensors; `dtype` is what effc places."""

    dtype: ir.DataType
    symmetric: bool  # zero is stored as 0
    per_channel: bool = False
    others: tuple[ir.DataType, ...] = ()  # types that the target also takes

    @property
    def dtypes(self) -> tuple[ir.DataType, ...]:
        return (self.dtype, *self.others)


class Law(enum.Enum):
    """What only some targets insist on; the value says it."""

    JOINED = "inputs of a Concat have the scale and zero point of its output"
    SHARED = "inputs and output of an operator that only moves elements have the same scale and zero point"
    CLAMP = "no Q between a node and the Relu or Clip behind it"
    RESIDUAL = "of a residual add only the branch that is no multiplication's result is quantized"
    BOTH = "a multiplication has all its inputs quantized, or none but its weight"
    INTERFACE = "inputs and outputs of the model are quantized"


@dataclass(frozen=True, slots=True)
class OpRule:
    """How one op type is quantized.

    `output`: "wanted" quantizes the output where a quantized reader wants it (kinds other than MULTIPLY
    are quantized only then), "always" also before the model's outputs and float readers.
    """

    kind: Kind
    output: Literal["wanted", "always"] = "wanted"


@dataclass(frozen=True, slots=True)
class Scheme:
    """The quantizers that a family of targets computes with."""

    id: str
    help: str
    activation: TensorRule
    weight: TensorRule
    ops: Mapping[str, OpRule]
    bias: Literal["int32", "float"]  # int32: DequantizeLinear with scale sx * sw, zero point 0
    # fused: the multiplication before an Add adds the other branch, which is quantized, to its sums;
    # identity: only such an Add is quantized; separate: every Add is an operator on two quantized tensors
    residual: Literal["fused", "identity", "separate"]
    every_reader: bool = True  # a quantized tensor is stored as integers: float readers see those
    # FUNCTIONs of one tensor without Q/DQ between them are one table, like x * Sigmoid(x)
    composite: bool = False
    bias_add: bool = True  # an Add of a constant behind MatMul is its bias, and no Add of its own
    laws: frozenset[Law] = frozenset()

    @property
    def interface(self) -> bool:
        """Whether the model's inputs and outputs are quantized too."""
        return Law.INTERFACE in self.laws

    def rule(self, node: ir.Node) -> OpRule | None:
        """The rule for `node`; None where it can't be quantized: `why_float` says why."""
        found = self.ops.get(node.op_type) if node.domain == "" else None
        return None if found is None or refusal(node) else found

    def why_float(self, node: ir.Node) -> str:
        """Why `node` computes on floats under this scheme, "" if it need not."""
        if node.domain or node.op_type not in self.ops:
            return f"{node.op_type} is not quantized by the scheme {self.id}"
        return refusal(node)


def refusal(node: ir.Node) -> str:  # noqa: PLR0911 - one line an operator
    """Why a node of a quantizable op type can't be quantized whatever the scheme, "" if it can."""
    if any(v is not None and v.dtype not in (None, ir.DataType.FLOAT) for v in node.outputs[:1]):
        return "it does not compute float32"
    match node.op_type:
        case "Gemm":
            if (
                attr(node, "transA", 0)
                or attr(node, "alpha", 1.0) != 1
                or attr(node, "beta", 1.0) != 1
            ):
                return "Gemm with transA, alpha or beta"
            bias = const(node.inputs[2]) if len(node.inputs) > 2 else None
            if len(node.inputs) > 2 and node.inputs[2] is not None and bias is None:
                return "its bias is computed"
            if const(node.inputs[1]) is None:
                return "its weight is computed"
        case "Conv" | "ConvTranspose":
            if const(node.inputs[1]) is None:
                return "its weight is computed"
            if (
                len(node.inputs) > 2
                and node.inputs[2] is not None
                and const(node.inputs[2]) is None
            ):
                return "its bias is computed"
        case "MatMul":
            ranks = [
                v.shape.rank() if v is not None and v.shape is not None else 0 for v in node.inputs
            ]
            if min(ranks) < 2:
                return "an operand is a vector"
        case "Resize":
            if attr(node, "mode", "nearest") != "nearest":
                return "only nearest Resize chooses elements"
        case "Pad":
            if attr(node, "mode", "constant") == "constant" and _pad_value(node) != 0:
                return "it pads with another constant than 0"
        case "MaxPool":
            if len(node.outputs) > 1 and node.outputs[1].uses():
                return "its indices are used"
        case "Clip":
            low, high = clip_bounds(node)
            if low is None or high is None or not low <= 0 <= high:
                return "its bounds are computed or leave out 0"
        case "PRelu" if const(node.inputs[1]) is None or scalar(node.inputs[1]) is None:
            return "its slopes differ by channel"
    return ""


def _pad_value(node: ir.Node) -> float | None:
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return 0.0
    return scalar(node.inputs[2])


def clip_bounds(node: ir.Node) -> tuple[float | None, float | None]:
    """The bounds of a Clip, infinite where it has none; None where they are computed."""
    found: list[float | None] = []
    for index, none in ((1, -np.inf), (2, np.inf)):
        value = node.inputs[index] if len(node.inputs) > index else None
        found.append(none if value is None else scalar(value))
    return found[0], found[1]


_INFINITE = (-np.inf, np.inf)
_BOUNDS = {
    "Relu": (0.0, np.inf),
    "Sigmoid": (0.0, 1.0),
    "HardSigmoid": (0.0, 1.0),
    "Softmax": (0.0, 1.0),
    "Tanh": (-1.0, 1.0),
}


def bounds(value: ir.Value) -> tuple[float, float]:
    """What is known about the least and greatest number in `value` from the node that makes it."""
    node = value.producer()
    if is_op(node, "Clip") and node is not None:
        low, high = clip_bounds(node)
        return (-np.inf if low is None else low), (np.inf if high is None else high)
    return (
        _BOUNDS.get(node.op_type, _INFINITE)
        if node is not None and node.domain == ""
        else _INFINITE
    )


def weight_axis(node: ir.Node) -> int:
    """The axis of the weight (input 1) that counts the output's channels.

    For a grouped ConvTranspose [IC, OC/g, ...] it counts those of one group.
    """
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if attr(node, "transB", 0) else 1
    weight = node.inputs[1]
    rank = weight.shape.rank() if weight is not None and weight.shape is not None else 2
    return 1 if node.op_type == "ConvTranspose" else rank - 1


def activation_inputs(node: ir.Node, rule: OpRule) -> list[int]:
    """The inputs of a node that hold tensors to quantize; weights are among them only for MULTIPLY."""
    if rule.kind is Kind.MULTIPLY:
        return [0, 1]
    if rule.kind is Kind.COMBINE:
        return [0, 1]
    return list(range(len(node.inputs))) if node.op_type == "Concat" else [0]


_MULTIPLY = ("Conv", "Gemm", "MatMul")
_MOVE = (
    "MaxPool Concat Reshape Flatten Transpose Slice Split Gather Pad Squeeze Unsqueeze Expand Resize "
    "DepthToSpace SpaceToDepth"
).split()
MOVES: Mapping[str, OpRule] = MappingProxyType({op: OpRule(Kind.MOVE) for op in _MOVE})
_FUNCTION = (
    "Sigmoid HardSigmoid HardSwish Tanh Gelu LeakyRelu Elu Selu Celu Mish Softplus Softsign Erf Exp PRelu "
    "Abs Neg Sqrt Reciprocal ThresholdedRelu"
).split()


def _table(
    kinds: Mapping[Kind, list[str] | tuple[str, ...]], *, always: tuple[str, ...] = ()
) -> Mapping[str, OpRule]:
    return MappingProxyType(
        {
            op: OpRule(kind, "always" if op in always else "wanted")
            for kind, ops in kinds.items()
            for op in ops
        }
    )


_UINT8 = TensorRule(ir.DataType.UINT8, symmetric=False, others=(ir.DataType.INT8,))
_INT8_OR_UINT8 = TensorRule(ir.DataType.INT8, symmetric=False, others=(ir.DataType.UINT8,))
_PLACEMENT = _table(  # of TVM's kernels
    {
        Kind.MULTIPLY: _MULTIPLY,
        Kind.COMBINE: ("Add", "Mul"),
        Kind.REDUCE: ("AveragePool", "GlobalAveragePool"),
        Kind.MOVE: _MOVE,
        Kind.FUNCTION: _FUNCTION,
        Kind.CLAMP: ("Relu", "Clip"),
    }
)
_INT8 = TensorRule(ir.DataType.INT8, symmetric=False)
_INT8_SYMMETRIC = TensorRule(ir.DataType.INT8, symmetric=True)
_WEIGHT = TensorRule(
    ir.DataType.INT8,
    symmetric=True,
    per_channel=True,
    others=(ir.DataType.INT4, ir.DataType.INT2),
)

SCHEMES: Mapping[str, Scheme] = MappingProxyType(
    {
        s.id: s
        for s in (
            Scheme(
                "vnni",
                "x86: uint8 asymmetric activations, int8 symmetric weights by channel; float outputs",
                _UINT8,
                _WEIGHT,
                _PLACEMENT,
                bias="int32",
                residual="fused",
                composite=True,
                laws=frozenset({Law.JOINED}),
            ),
            Scheme(
                "arm",
                "AArch64: as vnni, with int8 asymmetric activations, as sdot multiplies signed bytes",
                _INT8_OR_UINT8,
                _WEIGHT,
                _PLACEMENT,
                bias="int32",
                residual="fused",
                composite=True,
                laws=frozenset({Law.JOINED}),
            ),
            Scheme(
                "ort",
                "onnxruntime's CPU kernels: as vnni, but every operator between its own Q and DQ",
                _UINT8,
                _WEIGHT,
                # what its QDQ transformer fuses; ConvTranspose has no integer kernel there
                _table(
                    {
                        Kind.MULTIPLY: _MULTIPLY,
                        Kind.COMBINE: ("Add", "Mul"),
                        Kind.REDUCE: ("AveragePool", "GlobalAveragePool"),
                        Kind.MOVE: [op for op in _MOVE if op not in ("Pad", "Expand")],
                        Kind.FUNCTION: ("Sigmoid", "LeakyRelu"),
                        Kind.CLAMP: ("Relu", "Clip"),
                    },
                    always=("Conv",),
                ),
                bias="int32",
                residual="separate",
                bias_add=False,
            ),
            Scheme(
                "tensorrt",
                "TensorRT's explicit quantization: symmetric int8 at the inputs of multiplications only",
                _INT8_SYMMETRIC,
                _WEIGHT,
                _table(
                    {
                        Kind.MULTIPLY: (*_MULTIPLY, "ConvTranspose"),
                        Kind.COMBINE: ("Add",),
                        Kind.CLAMP: ("Relu", "Clip"),
                    }
                ),
                bias="float",
                residual="identity",
                every_reader=False,
                laws=frozenset({Law.SHARED, Law.JOINED, Law.CLAMP, Law.RESIDUAL, Law.BOTH}),
            ),
            Scheme(
                "coreml",
                "CoreML W8A8: symmetric int8 activations and weights by channel",
                _INT8_SYMMETRIC,
                _WEIGHT,
                _table(
                    {
                        Kind.MULTIPLY: (*_MULTIPLY, "ConvTranspose"),
                        Kind.COMBINE: ("Add",),
                        Kind.REDUCE: ("AveragePool", "GlobalAveragePool"),
                        Kind.MOVE: _MOVE,
                        Kind.CLAMP: ("Relu", "Clip"),
                    }
                ),
                bias="float",
                residual="separate",
                laws=frozenset({Law.SHARED, Law.JOINED}),
            ),
            Scheme(
                "integer",
                "ARM and microcontrollers, as TFLite: int8 asymmetric, every tensor, inputs and outputs too",
                _INT8,
                _WEIGHT,
                _table(
                    {
                        Kind.MULTIPLY: _MULTIPLY,
                        Kind.COMBINE: ("Add", "Mul"),
                        Kind.REDUCE: ("AveragePool", "GlobalAveragePool"),
                        Kind.MOVE: _MOVE,
                        Kind.FUNCTION: _FUNCTION,
                        Kind.CLAMP: ("Relu", "Clip"),
                    }
                ),
                bias="int32",
                residual="separate",
                laws=frozenset({Law.SHARED, Law.JOINED, Law.INTERFACE}),
            ),
        )
    }
)


def scheme(name: str) -> Scheme:
    """The scheme called `name`."""
    found = SCHEMES.get(name)
    if found is None:
        raise ConfigError(
            f"there is no quantization scheme {name!r}", hint=f"the schemes: {', '.join(SCHEMES)}"
        )
    return found
