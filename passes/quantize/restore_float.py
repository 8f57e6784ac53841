"""restore-float: chosen nodes of a quantized model compute on reals again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import onnx_ir as ir

from effc.core.errors import ConfigError
from effc.core.passinfra import Effect, Pass, PassContext
from effc.core.quant_units import quantized_nodes, restore


@dataclass(frozen=True, slots=True)
class RestoreFloat(Pass):
    """Takes the Q/DQ pairs from in front of the nodes `nodes`, and puts their float weights back.

        conv(DQ(Q(x)), DQ(w8))   ->   conv(x, w)

    A pair stays where another quantized node reads it. ConfigError where a name is no quantized node.
    """

    id: ClassVar[str] = "restore-float"
    effect: ClassVar[Effect] = Effect.EXACT

    nodes: tuple[str, ...] = field(
        default=(), metadata={"help": "names of the nodes, joined by +", "unit": ""}
    )

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        known = {str(n.name) for n in quantized_nodes(model)}
        unknown = [n for n in self.nodes if n not in known]
        if unknown:
            raise ConfigError(
                f"restore-float: {unknown[0]!r} is no quantized node of this model",
                hint="effc blame lists the quantized nodes",
            )
        return restore(model, self.nodes)
