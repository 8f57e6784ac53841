"""lower-qoperators: operators on integers with scales of their own become real ones between DQ and Q."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from effc.core.errors import PassError
from effc.core.ir import WORKING_OPSET, graphs
from effc.core.passinfra import Effect, Pass, PassContext
from effc.core.qoperators import VENDOR_DOMAIN, VENDOR_QOPERATORS
from effc.passes.fuse.rewriting import name_apart
from effc.passes.quantize.qoperator_forms import LOWER
from effc.passes.quantize.qoperator_site import Declined, Site

_OLDEST_OPSET = 13  # the first with a scale a channel
_STANDARD = frozenset({"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"})


@dataclass(frozen=True, slots=True)
class LowerQoperators(Pass):
    """QLinearConv(x, w, b) -> Q(Conv(DQ(x), DQ(w), DQ(b))), and so on, with the same parameters, bit by bit.

    QLinearConv, QLinearMatMul; of com.microsoft QLinear{Add, Mul, Sigmoid, LeakyRelu, Softmax, Concat,
    AveragePool, GlobalAveragePool, Where, Conv}, QGemm, MatMulIntegerToFloat,
    DynamicQuantizeMatMul, QuantizeLinear, DequantizeLinear. An int32 bias is dequantized by sx * sw.
    ConvInteger and MatMulInteger become Conv and MatMul of dequantized inputs: of scale 1, or, in the
    chain of DynamicQuantizeLinear, Cast and Mul by both scales, of those.

    The function is the same up to rounding: Q/DQ computes with real numbers, so that an output may be
    one unit off (and sums of ConvInteger of 2^24 and more lose their last bits).

    Leaves standard operators whose parameters are computed, or have a scale a row; raises PassError for
    such ones of com.microsoft, and for channels-last ones: no other pass takes them.
    """

    id: ClassVar[str] = "lower-qoperators"
    effect: ClassVar[Effect] = Effect.EXACT

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        opset = model.opset_imports.get("", WORKING_OPSET)
        if opset < _OLDEST_OPSET:
            return 0
        count = 0
        for graph in list(graphs(model)):
            for node in list(graph):
                lower = _form(node)
                if lower is None or node.graph is None:
                    continue
                vendor = node.domain == VENDOR_DOMAIN
                site = Site(graph, node, opset)
                try:
                    lower(site, node)
                except Declined as reason:
                    site.undo()
                    if vendor:
                        raise PassError(
                            f"node {node.name!r} ({node.op_type}) can't be lowered: {reason}",
                            hint="quantize the model again with quant_format=QuantFormat.QDQ",
                            pass_id=self.id,
                        ) from None
                    continue
                count += 1
        if count:
            name_apart(model)
            left = {n.domain for g in graphs(model) for n in g}
            if VENDOR_DOMAIN not in left:
                model.opset_imports.pop(VENDOR_DOMAIN, None)
        return count


def _form(node: ir.Node) -> Callable[[Site, ir.Node], None] | None:
    if node.domain == "":
        return LOWER.get(node.op_type) if node.op_type in _STANDARD else None
    if node.domain != VENDOR_DOMAIN or node.op_type not in VENDOR_QOPERATORS:
        return None
    return LOWER[node.op_type]
