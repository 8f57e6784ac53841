"""lint-quantization: a Q/DQ model is held to the rules of a scheme."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import onnx_ir as ir

from effc.core.check_quantization import check_quantization
from effc.core.errors import UnsupportedOpError
from effc.core.passinfra import Effect, Pass, PassContext
from effc.core.schemes import scheme


@dataclass(frozen=True, slots=True)
class LintQuantization(Pass):
    """Changes nothing; UnsupportedOpError lists every quantizer that the scheme does not allow."""

    id: ClassVar[str] = "lint-quantization"
    effect: ClassVar[Effect] = Effect.EXACT

    scheme: str = field(
        default="vnni", metadata={"help": "whose rules: vnni, ort, tensorrt, coreml or integer"}
    )

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        problems = check_quantization(model.graph, scheme(self.scheme))
        if problems:
            raise UnsupportedOpError(f"the quantization scheme {self.scheme}", problems)
        return 0
