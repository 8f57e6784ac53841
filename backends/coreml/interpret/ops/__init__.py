"""MIL's operations as numpy functions, one each; importing this package fills the registry."""

from effc.backends.coreml.interpret.ops import (
    activation,
    conv,
    elementwise,
    indexing,
    linear,
    lists,
    normalization,
    pool,
    quantization,
    recurrent,
    reduction,
    resizing,
    tensor,
    transform,
)
from effc.backends.coreml.interpret.ops.registry import OPERATIONS, Undefined, find

__all__ = [
    "OPERATIONS",
    "Undefined",
    "activation",
    "conv",
    "elementwise",
    "find",
    "indexing",
    "linear",
    "lists",
    "normalization",
    "pool",
    "quantization",
    "recurrent",
    "reduction",
    "resizing",
    "tensor",
    "transform",
]
