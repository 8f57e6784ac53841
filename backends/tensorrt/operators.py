"""Which ONNX operators TensorRT's parser takes, by name.

Sources: `OnnxParser.supports_operator` of TensorRT for RTX 1.7.1 (a test asks it again), and the support
matrix of onnx-tensorrt 10.1 (docs/operators.md) for the oldest TensorRT 10 on a Jetson.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_ir as ir

from effc.core.errors import Problem
from effc.core.ir import subgraphs
from effc.core.source import place_of

UNSUPPORTED = frozenset(
    """AffineGrid Bernoulli BitCast BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor CenterCropPad Col2Im
    Compress ConcatFromSequence ConvInteger CumProd DFT Det DynamicQuantizeLinear ImageDecoder MatMulInteger
    MaxRoiPool MaxUnpool MelWeightMatrix Multinomial NegativeLogLikelihoodLoss Optional OptionalGetElement
    OptionalHasElement QLinearConv QLinearMatMul RegexFullMatch SequenceAt SequenceConstruct SequenceEmpty
    SequenceErase SequenceInsert SequenceLength SequenceMap SoftmaxCrossEntropyLoss SplitToSequence
    StringConcat StringNormalizer StringSplit SwiGLU TfIdfVectorizer Unique""".split()
)
# the parser knows them, and this product has no kernel or no parser for them
ONLY_FULL = frozenset({"DeformConv", "NonMaxSuppression"})
ONLY_RTX = frozenset(
    """Attention BlackmanWindow CausalConvWithState HammingWindow HannWindow LinearAttention
    RMSNormalization RotaryEmbedding STFT Swish TensorScatter""".split()
)
PLUGINS = frozenset({"EfficientNMS_TRT", "EfficientNMS_ONNX_TRT"})

_REMEDIES = {
    "Col2Im": "write it as ConvTranspose with a constant identity kernel, or cut the model there",
    "NonMaxSuppression": "cut the model before it and suppress on the host, or take product=bundle",
    "DynamicQuantizeLinear": "quantize with constant parameters: --precision int8 on the float model",
    "MatMulInteger": "let effc quantize the float model instead",
    "ConvInteger": "let effc quantize the float model instead",
    "RMSNormalization": "add --skip recognize-normalization: its parts are taken",
    "Unique": "its output has a shape that depends on data: do it on the host",
    "Compress": "its output has a shape that depends on data: do it on the host",
}
_CUT = "cut the model there, or write it with other operators"


def unsupported_operators(graph: ir.Graph, product: str) -> Iterator[Problem]:
    """Every node, of subgraphs too, whose operator `product` (rtx, full, bundle) does not take."""
    for node in graph:
        reason = _reason(node, product)
        if reason:
            remedy = _REMEDIES.get(node.op_type, _CUT)
            if node.domain:
                remedy = "export it with standard operators, or cut the model there"
            yield Problem(str(node.name), node.op_type, reason, remedy, place_of(node))
        for inner in subgraphs(node):
            yield from unsupported_operators(inner, product)


def _reason(node: ir.Node, product: str) -> str:
    if node.domain:
        if node.op_type in PLUGINS and product != "rtx":
            return ""
        return f"its domain {node.domain!r} is not standard, and TensorRT has no such plugin"
    if not onnx.defs.has(node.op_type) and node.op_type not in PLUGINS:
        return "there is no such operator in ONNX"
    if node.op_type in UNSUPPORTED:
        return f"TensorRT has no {node.op_type}"
    if product == "rtx" and node.op_type in ONLY_FULL | PLUGINS:
        return f"TensorRT for RTX has no kernel for {node.op_type}"
    if product != "rtx" and node.op_type in ONLY_RTX:
        return f"TensorRT 10 has no {node.op_type}"
    return ""
