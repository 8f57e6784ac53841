"""What a model goes through before it is lowered for a CPU."""

from __future__ import annotations

from effc.core.passinfra import Pipeline


def cpu() -> Pipeline:
    """No pass of its own: the lowering takes every operator unfused, and plans layouts itself."""
    return Pipeline()
