"""Registers every rule and kernel builder of this folder."""

from effc.backends.tvm.ops import (
    binary,
    convert,
    einsum,
    fallback,
    gather,
    generate,
    integers,
    movement,
    normalize,
    reduce,
    resize,
    sample,
    scatter,
    softmax,
    topk,
    unary,
)

__all__ = [
    "binary",
    "convert",
    "einsum",
    "fallback",
    "gather",
    "generate",
    "integers",
    "movement",
    "normalize",
    "reduce",
    "resize",
    "sample",
    "scatter",
    "softmax",
    "topk",
    "unary",
]
