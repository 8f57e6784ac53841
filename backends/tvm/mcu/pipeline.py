"""What a model goes through before it is lowered for a microcontroller."""

from __future__ import annotations

PIPELINE = (
    "integerize{activations=signed,rounding=fixed},lift-constants,fold-shapes,remove-identity,"
    "simplify-layout-ops,fold-constants,eliminate-dead-code,repeat"
)
