"""What the zoo knows about one of its models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True, slots=True)
class Member:
    """One model of the zoo.

    `build(seed=0, batch=1)` makes it; a batch of 0 leaves the batch size open. `input_shape` is of the
    first input at the default batch, NCHW where it has four dimensions. `parameters` counts the numbers in
    its weights, batch-norm statistics included. `preprocess` is the name that
    `--preprocess` takes.
    """

    name: str
    summary: str
    input_shape: tuple[int, ...]
    parameters: int
    reference: str
    build: Callable[..., ir.Model]
    preprocess: str = "raw"


def batch_size(batch: int) -> int | str:
    """The first dimension of an input: `batch`, or a symbol where it is 0."""
    return batch or "batch"
