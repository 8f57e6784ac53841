"""The table of MIL operations: one function each, chosen by name and opset.

A function takes MIL's parameters by name as numpy arrays (0-d for scalars), texts as str, tuples as
lists, and returns an array or a tuple of arrays. Half precision never reaches it: the interpreter widens
fp16 to float32 before, and rounds the result to the declared type after. What is missing has MIL's
default.

The meaning of every operation is that of Apple's documentation (docstrings of coremltools' operation
definitions, MIL.proto, NeuralNetwork.proto); where that is silent, of the expectations in coremltools'
own tests, which Apple runs on macOS.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Operation = Callable[..., Any]

OPERATIONS: dict[str, dict[int, Operation]] = {}


class Undefined(ValueError):
    """The documentation gives no meaning to these arguments."""


def op(name: str, since: int = 15) -> Callable[[Operation], Operation]:
    """Register a function for `name` from iOS `since` on."""

    def register(function: Operation) -> Operation:
        versions = OPERATIONS.setdefault(name, {})
        assert since not in versions, f"{name} is registered twice for iOS {since}"
        versions[since] = function
        return function

    return register


def find(name: str, opset: int) -> Operation | None:
    """The newest function of `name` that opset has; None where there is none."""
    versions = [since for since in OPERATIONS.get(name, ()) if since <= opset]
    return OPERATIONS[name][max(versions)] if versions else None
