"""What half-precision floats can't hold: ranges measured on samples, and the nodes that need more."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np
import onnx
import onnx_ir as ir

from effc.core.data import Samples
from effc.core.ir import Array, attr, const, is_op, shape_of, subgraphs
from effc.core.reference import OnnxRuntimeRunner
from effc.passes.quantize.calibrate import with_outputs

LARGEST = 65504.0
SMALLEST_NORMAL = 2.0**-14
_AT_ONCE = 64 << 20  # bytes of values that one run returns
_LOSS = 2e-3  # of a constant, relative; rounding alone costs at most 5e-4
# exponentials, logarithms and sums of squares, which lose what half has before they are done
PRECISE = frozenset({
    "LayerNormalization", "RMSNormalization", "InstanceNormalization", "GroupNormalization",
    "MeanVarianceNormalization", "LpNormalization", "LRN", "Softmax", "LogSoftmax", "Exp", "Log", "CumSum",
    "ReduceSumSquare", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceProd", "Reciprocal",
    "LpPool", "GlobalLpPool", "DFT", "STFT", "Det", "Erf",
})  # fmt: skip
_SUMS = frozenset(
    {"ReduceSum", "ReduceMean", "ReduceL1", "GlobalAveragePool", "AveragePool", "Sum", "Mean"}
)
_NEVER = frozenset({
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Cast", "CastLike", "ConstantOfShape",
    "RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "EyeLike", "Constant",
})  # fmt: skip


@dataclass(slots=True)
class Range:
    """Of one tensor over all samples: the largest |x|, and the largest |x| of any sample's quietest."""

    largest: float = 0.0
    finite: bool = True

    def see(self, array: Array) -> None:
        if array.size:
            top = float(np.abs(array).max())
            self.finite &= math.isfinite(top)
            self.largest = max(self.largest, top)


def measure(model: ir.Model, samples: Samples, count: int) -> dict[str, Range]:
    """The range of every float32 value of the main graph, on the first `count` samples.

    In parts, so that memory does not grow with the model's depth.
    """
    values = [
        o
        for n in model.graph
        for o in n.outputs
        if o.name and o.dtype == ir.DataType.FLOAT and not is_op(n, "Constant")
    ]
    parts: list[list[str]] = [[]]
    room = _AT_ONCE
    for value in values:
        size = 4 * math.prod(shape_of(value) or (1,))
        if parts[-1] and size > room:
            parts.append([])
            room = _AT_ONCE
        parts[-1].append(str(value.name))
        room -= size
    found: dict[str, Range] = {}
    for number, names in enumerate(parts):
        if not names:
            continue
        with OnnxRuntimeRunner(with_outputs(model, names)) as runner:
            for feeds in islice(samples, count):
                seen = {**runner.infer(feeds), **(feeds if number == 0 else {})}
                for name, array in seen.items():
                    if array.dtype == np.float32:
                        found.setdefault(name, Range()).see(array)
    return found


def reason_to_stay(node: ir.Node, ranges: Mapping[str, Range], margin: float) -> str:
    """Why `node` needs float32; "" where half precision will do."""
    if node.domain != "" or subgraphs(node):
        return "its operator is not known to take half precision"
    if node.op_type in _NEVER:
        return "its type is its meaning"
    if node.op_type in PRECISE:
        return f"{node.op_type} loses too much inside"
    if not takes_half(node):
        return f"{node.op_type} does not take half precision"
    limit = LARGEST / margin
    for value in (*node.inputs, *node.outputs):
        if value is None or value.dtype != ir.DataType.FLOAT:
            continue
        array = const(value)
        if array is not None:
            why = _constant_loss(array)
            if why and not _literal(node, value):
                return f"constant {value.name!r} {why}"
            continue
        known = ranges.get(str(value.name))
        if known is None:
            return f"the range of {value.name!r} is not known"
        if not known.finite or known.largest > limit:
            return f"{value.name!r} reaches {known.largest:.3g}"
        if 0 < known.largest < 16 * SMALLEST_NORMAL:
            return f"{value.name!r} is at most {known.largest:.3g}, where half has few bits"
    total = _largest_sum(node, ranges)
    if total > limit:
        return f"its sums may reach {total:.3g}"
    return ""


def takes_half(node: ir.Node) -> bool:
    """Whether the standard allows float16 wherever the node has float32."""
    schema = onnx.defs.get_schema(node.op_type, 23)
    allowed = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}
    found = False
    for values, formals in ((node.inputs, schema.inputs), (node.outputs, schema.outputs)):
        for i, value in enumerate(values):
            if value is None or value.dtype != ir.DataType.FLOAT or not formals:
                continue
            kind = formals[min(i, len(formals) - 1)].type_str
            if kind.startswith("tensor("):  # always float32: it stays so
                continue
            if "tensor(float16)" not in allowed.get(kind, set()):
                return False
            found = True
    return found


def _literal(node: ir.Node, value: ir.Value) -> bool:
    """Whether the standard wants this input in float32 in any case (the scales of Resize)."""
    formals = onnx.defs.get_schema(node.op_type, 23).inputs
    at = next(i for i, v in enumerate(node.inputs) if v is value)
    return formals[min(at, len(formals) - 1)].type_str.startswith("tensor(")


def _constant_loss(array: Array) -> str:
    top = float(np.abs(array).max(initial=0))
    if not top <= LARGEST:
        return f"reaches {top:.3g}"
    half = array.astype(np.float16).astype(np.float64)
    energy = float(np.square(array, dtype=np.float64).sum())
    loss = math.sqrt(float(np.square(half - array).sum()) / energy) if energy else 0.0
    return f"loses {100 * loss:.2g} % of itself" if loss > _LOSS else ""


def _largest_sum(node: ir.Node, ranges: Mapping[str, Range]) -> float:
    """A bound of the partial sums inside."""
    data = [v for v in node.inputs if v is not None and v.dtype == ir.DataType.FLOAT]
    tops = [ranges[str(v.name)].largest for v in data if str(v.name) in ranges]
    if is_op(node, "Conv", "ConvTranspose", "Gemm", "MatMul") and len(data) > 1:
        for value, other in ((data[1], data[0]), (data[0], data[1])):
            weight, known = const(value), ranges.get(str(other.name))
            if weight is not None and known is not None:
                return float(known.largest * _row_sum(node, weight, value is data[1]))
        extent = (shape_of(data[0]) or (1,))[-1]
        return math.prod(tops[:2]) * extent
    if node.op_type in _SUMS and tops:
        if node.op_type in ("Sum", "Mean"):
            return sum(tops)
        whole, part = shape_of(data[0]), shape_of(node.outputs[0])
        if whole is None or part is None:
            return math.inf
        if is_op(node, "AveragePool"):
            return float(tops[0] * math.prod(attr(node, "kernel_shape", (1,))))
        return tops[0] * math.prod(whole) / max(1, math.prod(part))
    return 0.0


def _row_sum(node: ir.Node, weight: Array, second: bool) -> float:
    """The largest sum of |w| that one output element is made of."""
    size = np.abs(weight.astype(np.float64))
    if is_op(node, "Conv"):
        axes: tuple[int, ...] = tuple(range(1, size.ndim))
    elif is_op(node, "ConvTranspose"):
        axes = (0, *range(2, size.ndim))
    else:
        turned = bool(attr(node, "transB" if second else "transA", 0))
        axes = (size.ndim - 2 if second != turned else size.ndim - 1,)
    return float(size.sum(axis=axes).max(initial=0))
