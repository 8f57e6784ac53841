"""What a model goes through before it is lowered for a CPU."""

from __future__ import annotations

_WEIGHT_BYTES = 1 << 29


def cpu(*, x86: bool = True) -> str:
    """Pipeline text. Quantized operators compute with integers, which is what Q/DQ there becomes; what
    is left of it computes with floats. x86 multiplies unsigned bytes by signed ones, so inner activations
    become unsigned there.

    Attention has no kernel of its own: matrix products and a softmax have.
    Other functions of the ONNX text without a kernel become their bodies, which are tidied up again.
    Weights that a model computes from a few numbers (ConstantOfShape) are computed here: kernels pack
    their weights when they are built.
    """
    return (
        f"integerize{{activations={'unsigned' if x86 else 'keep'}}},"
        "decompose-attention,effc.backends.tvm.ops.dequantize:DequantizeWeights,"
        "effc.backends.tvm.ops.expand:ExpandFunctions,lift-constants,fold-shapes,"
        f"remove-identity,simplify-layout-ops,fold-constants{{max-growth-bytes={_WEIGHT_BYTES}}},eliminate-dead-code,repeat"
    )
