"""Which torch function computes which ONNX operator."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from effc.core.torch_module import (
    contract,
    elementwise,
    movement,
    quantization,
    reduce,
    resize,
    windows,
)
from effc.core.torch_module.op import Function

OPS: dict[str, Function] = {
    **elementwise.TABLE,
    **windows.TABLE,
    **contract.TABLE,
    **reduce.TABLE,
    **movement.TABLE,
    **resize.TABLE,
    **quantization.TABLE,
}

# of operators that are computed in part only: a node -> why it can't be, empty where it can
REFUSALS: dict[str, Callable[[ir.Node], str]] = {
    "Attention": contract.attention_refusal,
    "BatchNormalization": reduce.batch_norm_refusal,
    "QuantizeLinear": quantization.refusal,
    "DequantizeLinear": quantization.refusal,
}

# float inputs (by place) that describe an operator, rather than being weights that could be trained
FIXED_INPUTS: dict[str, frozenset[int]] = {
    "QuantizeLinear": frozenset({1, 2}),
    "DequantizeLinear": frozenset({1, 2}),
    "BatchNormalization": frozenset({3, 4}),
    "Clip": frozenset({1, 2}),
    "Pad": frozenset({2}),
    "Resize": frozenset({1, 2}),
    "Upsample": frozenset({1}),
    "OneHot": frozenset({1, 2}),
    "Range": frozenset({0, 1, 2}),
    "Dropout": frozenset({1}),
}
