"""When two fusion groups are the same kernel: same operators, types, layouts, baked-in constants."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from effc.backends.tvm.grouping import Group, Op
from effc.backends.tvm.layout import TensorType

Signature = tuple[Any, ...]


def signature(
    group: Group, outputs: Sequence[TensorType], operands: Sequence[TensorType]
) -> Signature:
    """What the code of a group depends on; names of nodes and values are no part of it."""
    numbers: dict[ir.Value, int] = {v: i for i, v in enumerate(group.operands)}
    ops = []
    for op in group.ops:
        ops.append(_op(op, numbers))
        for v in op.outputs:
            numbers.setdefault(v, len(numbers))
    return (tuple(outputs), tuple(operands), tuple(ops))


def _op(op: Op, numbers: dict[ir.Value, int]) -> Signature:
    weights = op.anchor.weights if op.anchor is not None else ()
    baked = tuple(
        (i, _digest(array))
        for i, array in sorted(op.info.constants.items())
        if i not in weights and i not in op.runtime
    )
    attributes = tuple((k, _plain(v)) for k, v in sorted(op.info.attributes.items()))
    wiring = tuple(numbers[v] for v in op.reads)
    types = (op.info.inputs, op.info.outputs, op.output)
    return (op.info.op_type, op.info.domain, op.info.opset, attributes, types, wiring, baked)


def _plain(value: Any) -> Any:
    if isinstance(value, ir.TensorProtocol):
        return _digest(value.numpy())
    if isinstance(value, tuple):
        return tuple(_plain(v) for v in value)
    return repr(value)


def _digest(array: Any) -> tuple[Any, ...]:
    array = np.asarray(array)
    data = array.tobytes()
    return (
        array.shape,
        str(array.dtype),
        data if len(data) <= 64 else hashlib.sha256(data).digest(),
    )
