"""The quantized operators of onnxruntime's own domain that the pass `lower-qoperators` knows."""

from __future__ import annotations

VENDOR_DOMAIN = "com.microsoft"

# Source: onnxruntime's docs/ContribOperators.md
VENDOR_QOPERATORS = frozenset(
    {
        "DequantizeLinear",
        "DynamicQuantizeMatMul",
        "MatMulIntegerToFloat",
        "QGemm",
        "QLinearAdd",
        "QLinearAveragePool",
        "QLinearConcat",
        "QLinearConv",
        "QLinearGlobalAveragePool",
        "QLinearLeakyRelu",
        "QLinearMul",
        "QLinearSigmoid",
        "QLinearSoftmax",
        "QLinearWhere",
        "QuantizeLinear",
    }
)
