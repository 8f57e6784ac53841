"""Registers every rule and kernel builder of this folder."""

from effc.backends.tvm.ops import (
    binary,
    convert,
    fallback,
    movement,
    normalize,
    reduce,
    resize,
    sample,
    scatter,
    unary,
)

__all__ = [
    "binary",
    "convert",
    "fallback",
    "movement",
    "normalize",
    "reduce",
    "resize",
    "sample",
    "scatter",
    "unary",
]
