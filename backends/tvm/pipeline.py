"""What a model goes through before it is lowered for a CPU."""

from __future__ import annotations


def cpu() -> str:
    """Pipeline text. Attention has no kernel of its own: matrix products and a softmax have."""
    return "decompose-attention,eliminate-dead-code"
