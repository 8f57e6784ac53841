"""Padding, output sizes and taps that convolutions and pools share."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from effc.backends.coreml.interpret.ops.registry import Undefined
from effc.core.measure import Array


def ints(values: Any, default: Sequence[int]) -> list[int]:
    return list(default) if values is None else [int(v) for v in np.asarray(values).reshape(-1)]


def paddings(
    pad_type: str,
    pad: Any,
    sizes: Sequence[int],
    reach: Sequence[int],
    strides: Sequence[int],
) -> list[tuple[int, int]]:
    """Elements added before and after each spatial dimension; `reach` is the dilated kernel.

    `same` gives outputs of ceil(size / stride), the odd element after (`same_lower`: before).
    """
    if pad_type == "valid":
        return [(0, 0)] * len(sizes)
    if pad_type == "custom":
        flat = ints(pad, [0] * 2 * len(sizes))
        return [(flat[2 * i], flat[2 * i + 1]) for i in range(len(sizes))]
    if pad_type not in ("same", "same_lower"):
        raise Undefined(f"pad_type {pad_type!r}")
    result = []
    for size, kernel, stride in zip(sizes, reach, strides, strict=True):
        total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
        small, large = total // 2, total - total // 2
        result.append((large, small) if pad_type == "same_lower" else (small, large))
    return result


def taps(
    x: Array,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    out: Sequence[int],
) -> Iterator[tuple[tuple[int, ...], Array]]:
    """For each kernel position, the view of the padded `x` [n, c, *spatial] that it meets."""
    for position in itertools.product(*(range(k) for k in kernel)):
        spatial = tuple(
            slice(p * d, p * d + (o - 1) * s + 1, s)
            for p, d, s, o in zip(position, dilations, strides, out, strict=True)
        )
        yield position, x[(slice(None), slice(None), *spatial)]


def padded(x: Array, pads: Sequence[tuple[int, int]], value: float = 0.0) -> Array:
    """`x` [n, c, *spatial] with constant borders; a negative padding cuts."""
    cut = tuple(
        slice(max(0, -before), size - max(0, -after))
        for (before, after), size in zip(pads, x.shape[2:], strict=True)
    )
    grown = [(0, 0), (0, 0)] + [(max(0, b), max(0, a)) for b, a in pads]
    x = x[(slice(None), slice(None), *cut)]
    return x if not any(map(any, grown)) else np.pad(x, grown, constant_values=value)
