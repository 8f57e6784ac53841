"""Inputs and outputs of a graph as their user sees them."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from effc.core.artifact import TensorSpec
from effc.core.errors import ConfigError
from effc.core.ir import shape_of
from effc.core.preprocess import guess_layout


def static_specs(values: Sequence[ir.Value]) -> tuple[TensorSpec, ...]:
    """Name, numpy dtype and shape of each value; ConfigError where a shape is dynamic.

    The layout of an input is stated where its shape is a picture's.
    """
    specs = []
    for v in values:
        shape = shape_of(v)
        if shape is None or v.dtype is None:
            raise ConfigError(
                f"{v.name!r} has the dynamic shape {v.shape}: an artifact has static shapes",
                hint=_remedy(v),
            )
        layout = guess_layout(shape) if v.is_graph_input() else ""
        specs.append(TensorSpec(str(v.name), v.dtype.numpy().name, shape, layout))
    return tuple(specs)


def _remedy(value: ir.Value) -> str:
    if not value.is_graph_input():
        return "its shape depends on the values of the inputs: cut the model before that"
    if value.shape is None:
        return f"give it one, like --shape {value.name}=1,3,224,224"
    wanted = ",".join(str(d) if isinstance(d, int) else "1" for d in value.shape)
    return f"fix it, like --shape {value.name}={wanted}"
