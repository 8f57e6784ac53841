"""What an operator's torch function is told of its node, beside the input tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

Result = Tensor | tuple[Tensor | None, ...]
Function = Callable[..., Result]  # (op, *inputs: Tensor | None) -> Result

# numpy's names. Types that torch stores but hardly computes with live in the next wider one; the result
# of the module has the IR's type again.
TORCH_TYPES: dict[ir.DataType, torch.dtype] = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.BOOL: torch.bool,
    ir.DataType.INT8: torch.int8,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.UINT16: torch.int32,
    ir.DataType.UINT32: torch.int64,
    ir.DataType.INT4: torch.int8,
    ir.DataType.UINT4: torch.uint8,
    ir.DataType.INT2: torch.int8,
    ir.DataType.UINT2: torch.uint8,
}


@dataclass
class Run:
    """What all operators of a module are told of the run in progress."""

    times: int = 1  # how many times the model's own batch is being run at once
    quantized: bool = True  # False: QuantizeLinear and DequantizeLinear do nothing


@dataclass(frozen=True)
class Op:
    """One node: its attributes, the opset it is of, how many results are read (by place)."""

    node: ir.Node
    opset: int
    attributes: Mapping[str, Any]
    wanted: tuple[bool, ...] = (True,)  # an output by place: whether it has a name
    run: Run = field(default_factory=lambda: Run())

    def get(self, name: str, default: Any = None) -> Any:
        """The attribute `name` (lists as tuples)."""
        return self.attributes.get(name, default)

    def ints(self, name: str, tensor: Tensor | None = None) -> tuple[int, ...] | None:
        """Integers that are an attribute in older opsets, an input in newer ones; None where neither."""
        if tensor is not None:
            return tuple(int(v) for v in tensor.reshape(-1).tolist())
        found = self.attributes.get(name)
        return None if found is None else tuple(int(v) for v in found)

    def dtype(self, code: int) -> torch.dtype:
        """The torch type of an ONNX type code."""
        kind = ir.DataType(code)
        if kind not in TORCH_TYPES:
            raise NotImplementedError(f"torch has no element type {kind.name}")
        return TORCH_TYPES[kind]


def axis_of(axis: int, rank: int) -> int:
    """A possibly negative axis, counted from the front."""
    return axis + rank if axis < 0 else axis


def shaped(vector: Tensor, rank: int, axis: int = 1) -> Tensor:
    """A vector, shaped to broadcast along `axis` of a tensor of `rank`."""
    shape = [1] * rank
    shape[axis] = -1
    return vector.reshape(shape)
