"""What a kernel of its own is to the lowering, and which operators have one.

An *anchor* is what a fusion group is built around. The kernel builders of `ops` register themselves;
those of `kernels`, which pack their weights, are bound to operators in `anchors` and `anchors_int8`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from effc.backends.tvm.candidates import Space
from effc.backends.tvm.isa import Isa
from effc.backends.tvm.kernels.epilogue import Epilogue
from effc.backends.tvm.ops.contract import OpNode, Wanted, find_kernel, operands, operator_key
from effc.backends.tvm.program import Kernel

Array = npt.NDArray[Any]


def nothing(node: OpNode, isa: Isa) -> tuple[Array, ...]:
    """No constants."""
    return ()


@dataclass(frozen=True, slots=True)
class Anchor:
    """How an operator is lowered to one kernel.

    `build(node, name, isa, epilogue)` takes types with the planned layouts. The kernel's params are:
    outputs, the `runtime` inputs of the node in order, the arrays of `pack(node, isa)`, the last `beside`
    of the runtime inputs (which `build` puts in front of the epilogue), the epilogue's operands.
    `weights` are the inputs that `pack` reads; they are in `node.constants`.
    """

    template: str
    runtime: tuple[int, ...]
    wants: Callable[[OpNode, Isa], Wanted]
    build: Callable[[OpNode, str, Isa, Epilogue], Kernel]
    weights: tuple[int, ...] = ()
    pack: Callable[[OpNode, Isa], tuple[Array, ...]] = nothing
    fuses: bool = True
    beside: int = 0
    any_dtype: bool = False  # the output is of whatever type the epilogue makes
    any_layout: bool = False  # input 0 may also come in another layout, at a small cost
    tunes: Callable[[OpNode, Isa], Space | None] = lambda node, isa: None  # its blockings


Finder = Callable[[OpNode], Anchor | None]
FINDERS: dict[str, Finder] = {}


def finder(*op_types: str) -> Callable[[Finder], Finder]:
    """Register how these operators are lowered, `domain::Op` outside of ONNX's; None leaves them to `ops`."""

    def register(function: Finder) -> Finder:
        for op_type in op_types:
            FINDERS[op_type] = function
        return function

    return register


def find_anchor(node: OpNode) -> Anchor | None:
    """The kernel for `node`, if it has one. Raises Refused where its operator can't be lowered so."""
    known = FINDERS.get(operator_key(node.op_type, node.domain))
    if known is not None:
        found = known(node)
        if found is not None:
            return found
    entry = find_kernel(node)
    if entry is None:
        return None
    return Anchor(
        entry.template or node.op_type.lower(),
        operands(node),
        lambda n, isa: entry.wants(n, isa.lanes),
        lambda n, name, isa, epilogue: entry.build(n, name, isa, epilogue),
        fuses=entry.fuses,
    )
