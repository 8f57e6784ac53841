"""What an operator is to the lowering: a rule over scalars, or a kernel of its own.

A *rule* maps the lazy values of a node's inputs to those of its outputs: elementwise operators and
pure data movement. Rules compose, so a chain of them is one kernel, or the epilogue of one. A *kernel
builder* makes the kernel of an operator that has to see many elements (reductions, normalizations, ...).

Rules name intermediate values (`tir.let`), so whoever evaluates a Lazy does it inside `tir.lanes`: store
epilogue results with `tir.lanes(16, lambda lane: BufferStore(out, lazy(index(lane)), [at(lane)]))`.
Indices that a rule passes to its inputs are always inside their shapes, wherever its own index is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import tirx

from effc.backends.tvm.kernels.choice import Blocking
from effc.backends.tvm.layout import PLAIN, Layout, TensorType
from effc.backends.tvm.program import Kernel
from effc.backends.tvm.tir import let

Expr = Any
Lazy = Callable[[tuple[Expr, ...]], Expr]
"""Logical index -> scalar expression of the tensor's dtype (TIR `bool` for ONNX bool)."""


class Refused(Exception):
    """This operator can't be lowered with these attributes, types or shapes; says why and what to do.

    The lowering turns it into a `Problem` located at the node.
    """

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class OpNode:
    """A node as rules see it. Shapes are static; an absent optional input is None in `inputs`."""

    op_type: str
    domain: str
    name: str
    attributes: Mapping[str, Any]
    inputs: tuple[TensorType | None, ...]
    outputs: tuple[TensorType, ...]
    constants: Mapping[int, npt.NDArray[Any]] = field(default_factory=dict)  # logical order
    opset: int = 0  # of the operator's domain; 0: the newest
    blocking: Blocking | None = None  # how its kernel is cut; None: by rule

    def attr(self, name: str, default: Any = None) -> Any:
        """The value of an attribute, strings decoded."""
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def has(self, i: int) -> bool:
        """Whether input `i` is given."""
        return i < len(self.inputs) and self.inputs[i] is not None

    def input(self, i: int) -> TensorType:
        """The type of a required input."""
        found = self.inputs[i] if i < len(self.inputs) else None
        if found is None:
            raise Refused(f"input {i} is missing", "give the input that the operator requires")
        return found

    def const(self, i: int, what: str) -> npt.NDArray[Any] | None:
        """The value of input `i`, which must be constant; None where the input is absent."""
        if not self.has(i):
            return None
        if i not in self.constants:
            raise Refused(
                f"{what} (input {i}) is computed at run time",
                f"make {what} a constant: fix the input shapes (--shape) so that it folds, or let larger "
                "constants fold (--pass 'fold-constants{max-growth-bytes=100000000}')",
            )
        return np.asarray(self.constants[i])

    def required(self, i: int, what: str) -> npt.NDArray[Any]:
        """The value of the required constant input `i`."""
        value = self.const(i, what)
        if value is None:
            raise Refused(f"{what} (input {i}) is missing", f"give {what} as a constant")
        return value

    def newer(self, opset: int) -> bool:
        """Whether the node follows the operator's text of this opset, or of a later one."""
        return not self.opset or self.opset >= opset


Rule = Callable[[OpNode, Sequence[Lazy | None]], "Lazy | tuple[Lazy, ...]"]


@dataclass(frozen=True, slots=True)
class RuleEntry:
    """A registered rule. `static` inputs are read at compile time only and are no operands of a kernel.

    `by_shape`: of these inputs only the shape matters, or what they say stands in the output's shape;
    else their values must be constants.
    `kind`: "elementwise" (output index = input index, up to broadcasting), or "map" (data movement).
    `cost`: about how many vector instructions an element takes; a value read by several consumers is
    recomputed in each only where it is cheap.
    """

    run: Rule
    static: tuple[int, ...]
    kind: str
    cost: int
    by_shape: bool = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """The layouts in which a kernel takes its operands (non-static inputs) and gives its outputs."""

    inputs: tuple[Layout, ...]
    outputs: tuple[Layout, ...]


KernelBuilder = Callable[..., Kernel]
"""`(node, name, isa, epilogue) -> Kernel`. Params: outputs, operands (the given non-static inputs in
order), then the epilogue's own operands. The types in `node` carry the planned layouts. The epilogue
(kernels/epilogue.py) applies to output 0 at its logical index; builders whose entry says `fuses=False`
get the identity."""


@dataclass(frozen=True, slots=True)
class KernelEntry:
    """A registered kernel builder. `wants(node, block)` gives the layouts it is best at for `node`."""

    build: KernelBuilder
    static: tuple[int, ...]
    fuses: bool
    wants: Callable[[OpNode, int], Wanted]
    template: str = ""  # what the report calls it; "": the operator


RULES: dict[str, RuleEntry] = {}
KERNELS: dict[str, KernelEntry] = {}


def operator_key(op_type: str, domain: str) -> str:
    """What an operator is registered as: its name, behind `domain::` outside of ONNX's domain."""
    return op_type if domain in ("", "ai.onnx") else f"{domain}::{op_type}"


def rule(
    *op_types: str,
    static: Sequence[int] = (),
    kind: str = "elementwise",
    cost: int = 1,
    by_shape: bool = False,
) -> Callable[[Rule], Rule]:
    """Register a rule for these operators."""

    def register(run: Rule) -> Rule:
        for op_type in op_types:
            RULES[op_type] = RuleEntry(run, tuple(static), kind, cost, by_shape)
        return run

    return register


def operands(node: OpNode) -> tuple[int, ...]:
    """The indices of the inputs that a kernel of `node` reads at run time, in order."""
    entry = RULES.get(operator_key(node.op_type, node.domain)) or KERNELS.get(
        operator_key(node.op_type, node.domain)
    )
    static = entry.static if entry else ()
    return tuple(i for i, t in enumerate(node.inputs) if t is not None and i not in static)


def all_plain(node: OpNode, block: int) -> Wanted:
    """Every operand and output plain."""
    return Wanted((PLAIN,) * len(operands(node)), (PLAIN,) * len(node.outputs))


def kernel(
    *op_types: str,
    static: Sequence[int] = (),
    fuses: bool = False,
    wants: Callable[[OpNode, int], Wanted] = all_plain,
    template: str = "",
) -> Callable[[KernelBuilder], KernelBuilder]:
    """Register a kernel builder for these operators."""

    def register(build: KernelBuilder) -> KernelBuilder:
        for op_type in op_types:
            KERNELS[op_type] = KernelEntry(
                build, tuple(static), fuses, wants, template.format(op=op_type)
            )
        return build

    return register


DTYPES = frozenset(
    "float32 float16 float64 bfloat16 bool int8 int16 int32 int64 uint8 uint16 uint32 uint64".split()
)


def _check_types(node: OpNode) -> None:
    for tensor in (*node.inputs, *node.outputs):
        if tensor is not None and tensor.dtype not in DTYPES:
            raise Refused(
                f"its data is {tensor.dtype}, which has no kernels here",
                "convert the model to float32, float16, bfloat16 or 8- to 64-bit integers",
            )


def find_rule(node: OpNode) -> RuleEntry | None:
    """The rule of the node's operator, if it has one; refuses element types without kernels."""
    _check_types(node)
    return RULES.get(operator_key(node.op_type, node.domain))


def find_kernel(node: OpNode) -> KernelEntry | None:
    """The kernel builder of the node's operator, if it has one; refuses types like `find_rule`."""
    _check_types(node)
    return KERNELS.get(operator_key(node.op_type, node.domain))


def apply_rule(node: OpNode, inputs: Sequence[Lazy | None]) -> tuple[Lazy, ...]:
    """The lazy outputs of `node`; raises Refused with the reason."""
    entry = find_rule(node)
    if entry is None:
        raise Refused(f"no rule for {node.op_type}")
    out = entry.run(node, inputs)
    return out if isinstance(out, tuple) else (out,)


def storage_dtype(dtype: str) -> str:
    """The TIR dtype of a tensor's elements in memory."""
    return {"bool": "uint8", "bfloat16": "uint16"}.get(dtype, dtype)


def loaded(value: Expr, dtype: str) -> Expr:
    """An element as rules see it: bool as TIR bool, bfloat16 as float32."""
    if dtype == "bool":
        return tirx.NE(value, tirx.const(0, "uint8"))
    if dtype == "bfloat16":
        wide = tirx.Cast("uint32", value) << tirx.const(16, "uint32")
        return tirx.reinterpret("float32", wide)
    return value


def load(buffer: Any, tensor: TensorType) -> Lazy:
    """Reads `tensor` from the flat `buffer`."""

    def read(index: tuple[Expr, ...]) -> Expr:
        value = tirx.BufferLoad(buffer, [tensor.layout.flat_index(tensor.shape, index)])
        return loaded(value, tensor.dtype)

    return read


def stored(value: Expr, dtype: str) -> Expr:
    """`value` as it is written to a tensor of `dtype` (bfloat16: rounded to nearest even)."""
    if dtype == "bool":
        return tirx.Select(value, tirx.const(1, "uint8"), tirx.const(0, "uint8"))
    if dtype == "bfloat16":

        def rounded(v: Expr) -> Expr:
            odd = (v >> tirx.const(16, "uint32")) & tirx.const(1, "uint32")
            up = (v + tirx.const(0x7FFF, "uint32") + odd) >> tirx.const(16, "uint32")
            is_nan = (v & tirx.const(0x7FFFFFFF, "uint32")) > tirx.const(0x7F800000, "uint32")
            return tirx.Cast("uint16", tirx.Select(is_nan, tirx.const(0x7FC0, "uint32"), up))

        return let(tirx.reinterpret("uint32", value), rounded)
    return value
