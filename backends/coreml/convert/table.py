"""The table of lowering functions: ONNX operator -> function of a `Call` that returns its MIL values."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from effc.backends.coreml.convert.call import Call, Var

Result = Var | tuple[Var | None, ...] | list[Var]
Lowering = Callable[[Call], Result]

OPS: dict[str, Lowering] = {}

_FAMILIES = (
    "activations", "control", "convolution", "detection", "elementwise", "gathering", "matrix", "movement",
    "normalization", "padding", "pooling", "quantized", "recurrent", "reduction", "resize",
)  # fmt: skip


def op(*names: str) -> Callable[[Lowering], Lowering]:
    """Register a function for these operators of the standard domain."""

    def register(function: Lowering) -> Lowering:
        for name in names:
            if name in OPS:
                raise ValueError(f"{name} is registered twice")
            OPS[name] = function
        return function

    return register


def load_all() -> dict[str, Lowering]:
    """The whole table."""
    for family in _FAMILIES:
        import_module(f"effc.backends.coreml.convert.{family}")
    return OPS
