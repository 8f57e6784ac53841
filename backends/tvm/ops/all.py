"""Registers every rule and kernel builder of this folder."""

from effc.backends.tvm.ops import binary, convert, movement, normalize, reduce, resize, unary

__all__ = ["binary", "convert", "movement", "normalize", "reduce", "resize", "unary"]
