"""Whether the numbers of the weights are numbers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from effc.core.check_graph import Scope
from effc.core.check_ops import quoted, where
from effc.core.errors import FrontendError

_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
# operators whose constant inputs are trained numbers; elsewhere an infinity can be meant (masks, bounds)
_TRAINED = frozenset(
    "Conv ConvTranspose Gemm MatMul BatchNormalization InstanceNormalization LayerNormalization "
    "GroupNormalization RMSNormalization PRelu LSTM GRU RNN QuantizeLinear DequantizeLinear "
    "Embedding QLinearConv QLinearMatMul ConvInteger MatMulInteger".split()
)
_NAN_HINT = "the training diverged or the file is damaged: export the model from a good checkpoint"


def check_numbers(scope: Scope) -> None:
    """No NaN in any weight; no infinity where a number was trained."""
    if isinstance(scope.graph, ir.Graph):
        for name, value in scope.graph.initializers.items():
            if value.const_value is not None:
                trained = any(u.node.op_type in _TRAINED for u in value.uses())
                _check_finite(value.const_value, f"the weight {quoted(name)}{scope.place}", trained)
    for node in scope.graph:
        if node.op_type != "Constant":
            continue
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                trained = any(u.node.op_type in _TRAINED for u in node.outputs[0].uses())
                _check_finite(attribute.as_tensor(), f"{where(node)}{scope.place}", trained)


def _check_finite(tensor: ir.TensorProtocol, name: str, trained: bool) -> None:
    if tensor.dtype not in _FLOATS or tensor.size == 0:
        return
    flat = tensor.numpy().reshape(-1)
    piece = 1 << 20
    for start in range(0, flat.size, piece):
        part = flat[start : start + piece]
        finite = np.isfinite(part)
        if finite.all():
            continue
        bad = np.isnan(part) if not trained else ~finite
        if bad.any():
            first = int(np.flatnonzero(bad)[0])
            index = tuple(int(i) for i in np.unravel_index(start + first, tensor.shape.numpy()))
            raise FrontendError(
                f"{name} holds {float(part[first])} at {list(index)}",
                hint=_NAN_HINT + "; --allow-nonfinite takes it as it is",
            )
