"""The operator schemas of the onnx package, in a form that is quick to ask 100,000 times."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import onnx
import onnx_ir as ir


@dataclass(frozen=True, slots=True)
class FormalValue:
    """One formal input or output."""

    name: str
    required: bool
    homogeneous: bool  # for a variadic: all values are of one type
    variable: str  # the type variable ("T"), empty where the type is fixed
    allowed: frozenset[str]  # type names such as "tensor(float)"


@dataclass(frozen=True, slots=True)
class FormalAttribute:
    """One formal attribute; `type` is the name of an ir.AttributeType."""

    type: str
    required: bool


@dataclass(frozen=True, slots=True)
class OpSchema:
    """What an operator takes at one opset. The last formal value of a variadic one repeats."""

    min_inputs: int
    max_inputs: int
    min_outputs: int
    max_outputs: int
    inputs: tuple[FormalValue, ...]
    outputs: tuple[FormalValue, ...]
    attributes: dict[str, FormalAttribute]


def opset_range(domain: str) -> tuple[int, int] | None:
    """The oldest and newest opset of a domain that the onnx package defines; None for any other."""
    return _ranges().get(domain)


@cache
def _ranges() -> dict[str, tuple[int, int]]:
    ranges: dict[str, tuple[int, int]] = {"": (1, onnx.defs.onnx_opset_version())}
    for schema in onnx.defs.get_all_schemas_with_history():
        low, high = ranges.get(schema.domain, (1, 1))
        ranges[schema.domain] = low, max(high, schema.since_version)
    # newer than the last change of an operator, but a valid number
    ranges["ai.onnx.ml"] = 1, max(ranges["ai.onnx.ml"][1], 5)
    return ranges


def element_type(dtype: ir.DataType) -> str:
    """The name that schemas give to a tensor of `dtype`: "tensor(float)"."""
    return f"tensor({dtype.name.lower()})"


@cache
def schema_of(op_type: str, opset: int, domain: str) -> OpSchema | None:
    """The schema of an operator at an opset; None where there is none, or only a deprecated one."""
    try:
        found = onnx.defs.get_schema(op_type, opset, domain)
    except onnx.defs.SchemaError:
        return None
    if found.deprecated:
        return None
    constraints = {c.type_param_str: frozenset(c.allowed_type_strs) for c in found.type_constraints}
    return OpSchema(
        found.min_input,
        found.max_input,
        found.min_output,
        found.max_output,
        tuple(_formal(v, constraints) for v in found.inputs),
        tuple(_formal(v, constraints) for v in found.outputs),
        {
            name: FormalAttribute(str(a.type).rpartition(".")[2], a.required)
            for name, a in found.attributes.items()
        },
    )


def _formal(
    value: onnx.defs.OpSchema.FormalParameter, constraints: dict[str, frozenset[str]]
) -> FormalValue:
    variable = value.type_str if value.type_str in constraints else ""
    return FormalValue(
        value.name,
        value.option == onnx.defs.OpSchema.FormalParameterOption.Single,
        value.is_homogeneous,
        variable,
        constraints.get(value.type_str) or frozenset({value.type_str}),
    )


def why_no_schema(op_type: str, opset: int, domain: str) -> tuple[str, str]:
    """The reason and the remedy for an operator that has no schema at `opset`."""
    versions = sorted(
        s.since_version
        for s in onnx.defs.get_all_schemas_with_history()
        if s.name == op_type and s.domain == domain
    )
    label = f"opset {opset}" + (f" of {domain}" if domain else "")
    if not versions:
        import difflib

        names = {s.name for s in onnx.defs.get_all_schemas() if s.domain == domain}
        close = difflib.get_close_matches(op_type, names, 1)
        return (
            f"ONNX has no operator of that name ({label})",
            f"did you mean {close[0]}?"
            if close
            else "an operator of your own needs a domain of its own and a function that defines it",
        )
    if versions[0] > opset:
        return (
            f"the operator came with opset {versions[0]}, but the model imports {label}",
            f"export the model for opset {versions[0]} or later",
        )
    return (
        f"the operator is deprecated in {label}",
        "export the model again: a newer operator took its place",
    )
