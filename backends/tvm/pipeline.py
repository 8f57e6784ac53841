"""What a model goes through before it is lowered for a CPU."""

from __future__ import annotations


def cpu() -> str:
    """Pipeline text. Attention has no kernel of its own: matrix products and a softmax have.

    Other functions of the ONNX text without a kernel become their bodies, which are tidied up again.
    """
    return (
        "decompose-attention,effc.backends.tvm.ops.expand:ExpandFunctions,lift-constants,fold-shapes,"
        "remove-identity,simplify-layout-ops,fold-constants,eliminate-dead-code,repeat"
    )
