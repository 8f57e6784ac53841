"""The passes that make a valid model one that TensorRT takes, as pipeline text."""

from __future__ import annotations

from effc.core.target import Target


def pipeline(target: Target, product: str) -> str:
    return "eliminate-dead-code"
