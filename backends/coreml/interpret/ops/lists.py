"""Lists of tensors. A list is a Python list; an element that was never written is zero."""

from __future__ import annotations

from typing import Any

import numpy as np

from effc.backends.coreml.interpret.ops.registry import Undefined, op
from effc.backends.coreml.interpret.values import NUMPY_TYPES
from effc.core.measure import Array


@op("make_list")
def make_list(
    elem_shape: list[Any],
    init_length: Array | int = 1,
    dynamic_length: Array | bool = True,
    dtype: str = "fp32",
) -> tuple[list[Array]]:
    """A list of open length grows as it is written."""
    sizes = [int(s) for s in np.asarray(elem_shape).reshape(-1)]
    # half precision is held in float32 everywhere
    kind = "float32" if dtype == "fp16" else NUMPY_TYPES[dtype]
    return ([np.zeros(sizes, kind) for _ in range(int(init_length))],)


def _slot(ls: list[Array], index: Any) -> int:
    if not 0 <= int(index) < len(ls):
        raise Undefined(f"element {int(index)} of {len(ls)}")
    return int(index)


def _grown(ls: list[Array], size: int) -> list[Array]:
    """A copy of at least `size` elements."""
    if size > len(ls) and not ls:
        raise Undefined("an empty list of unknown elements grows")
    return [*ls, *(np.zeros_like(ls[0]) for _ in range(size - len(ls)))]


@op("list_length")
def list_length(ls: list[Array]) -> Array:
    return np.array(len(ls), np.int32)


@op("list_write")
def list_write(ls: list[Array], index: Array, value: Array) -> tuple[list[Array]]:
    ls = _grown(ls, int(index) + 1)
    ls[_slot(ls, index)] = value
    return (ls,)


@op("list_read")
def list_read(ls: list[Array], index: Array) -> Array:
    return ls[_slot(ls, index)]


@op("list_gather")
def list_gather(ls: list[Array], indices: Array) -> Array:
    return np.stack([ls[_slot(ls, i)] for i in indices])


@op("list_scatter")
def list_scatter(ls: list[Array], indices: Array, value: Array) -> tuple[list[Array]]:
    ls = _grown(ls, int(indices.max()) + 1 if indices.size else 0)
    for i, item in zip(indices, value, strict=True):
        ls[_slot(ls, i)] = item
    return (ls,)
