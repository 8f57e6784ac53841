"""What a model goes through before it is lowered for a CPU."""

from __future__ import annotations

_WEIGHT_BYTES = 1 << 29


def cpu(activations: str = "unsigned") -> str:
    """Pipeline text. Quantized operators compute with integers, which is what Q/DQ there becomes; what
    is left of it computes with floats. x86 multiplies unsigned bytes by signed ones, and ARM signed by
    signed ones, so inner activations become "unsigned" or "signed".

    Attention has no kernel of its own: matrix products and a softmax have.
    Other functions of the ONNX text without a kernel become their bodies, which are tidied up again.
    Weights that a model computes from a few numbers (ConstantOfShape) are computed here: kernels pack
    their weights when they are built.
    """
    return (
        f"integerize{{activations={activations}}},"
        "decompose-attention,effc.backends.tvm.ops.dequantize:DequantizeWeights,"
        "effc.backends.tvm.ops.expand:ExpandFunctions,lift-constants,fold-shapes,"
        f"remove-identity,simplify-layout-ops,fold-constants{{max-growth-bytes={_WEIGHT_BYTES}}},eliminate-dead-code,repeat"
    )
