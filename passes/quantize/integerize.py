"""integerize: quantized operators between DequantizeLinear and QuantizeLinear compute with integers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import onnx_ir as ir

from effc.core.errors import ConfigError
from effc.core.integers import DOMAIN
from effc.core.integers.rounding import RULES
from effc.core.ir import graphs, is_op, replaceable, sole_use
from effc.core.passinfra import Effect, Pass, PassContext
from effc.core.rewrite import apply, bypass
from effc.passes.fuse.rewriting import drop_value, name_apart
from effc.passes.quantize.integer_elementwise import (
    average_pool,
    global_average_pool,
    lookup,
    product_of_two,
    requantized,
    sum_of,
)
from effc.passes.quantize.integer_form import Maker, Target8, put, same_shape, target8, tensor8
from effc.passes.quantize.integer_moves import (
    ClampEarlier,
    DequantizeLater,
    MeanAsPool,
    QuantizeEarlier,
    QuantizeOnce,
)
from effc.passes.quantize.integer_products import RealProducts, product_of
from effc.passes.quantize.integer_types import retype

ACTIVATIONS = ("keep", "unsigned", "signed")


@dataclass(frozen=True, slots=True)
class Integerize(Pass):
    """Q(activation(op(DQ(x), DQ(w)))) -> effc.integer.op(x, w), as core/integers specifies.

    Conv, ConvTranspose, Gemm, MatMul    -> Conv, ConvTranspose, MatMul; Relu and Clip are bounds
    Q(Conv(DQ x) + DQ z)                 -> Conv with the residual input z
    Add, Sub, Mul, averages              -> their integer forms
    any formula of one quantized tensor  -> Lookup
    Q(DQ x)                              -> Requantize, or nothing
    op(DQ x, DQ w), its output real      -> Conv, ConvTranspose or MatMul to FLOAT
    DQ, what moves elements, Q           -> the same operators on integers

    Two roundings of the Q/DQ form go: products are not rounded to float32 before they are added, and
    the scales are one multiplier. So a result may be one unit off where it lies next to the middle
    between two integers. A bias that is no int32 at the scale of its input times that of its weights
    is rounded to it.

    Declines, leaving real arithmetic between DQ and Q: activations with a scale a channel or of other
    than 8 bits; parameters that are computed; sums that might exceed 32 bits; weights of Conv whose
    distance to their zero point exceeds int8; outputs that have readers beside Q (the product is then
    made once, to FLOAT).

    Source of the form: Jacob et al., arXiv 1712.05877.
    """

    id: ClassVar[str] = "integerize"
    effect: ClassVar[Effect] = Effect.ROUNDED

    activations: str = field(
        default="keep",
        metadata={
            "help": "type of quantized activations: keep, unsigned (uint8) or signed (int8); "
            "inputs and outputs of the model keep theirs"
        },
    )
    rounding: str = field(
        default="float32",
        metadata={"help": "the rule that rounds sums to 8 bits: float32, tflite or fixed"},
    )

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        for name, chosen, known in (
            ("activations", self.activations, ACTIVATIONS),
            ("rounding", self.rounding, RULES),
        ):
            if chosen not in known:
                raise ConfigError(f"integerize: {name}={chosen} is not one of {', '.join(known)}")
        if self.rounding == "tflite" and self.activations == "unsigned":
            raise ConfigError(
                "integerize: TensorFlow Lite averages around the stored zero of int8",
                hint="use activations=keep or signed with rounding=tflite",
            )
        opset = model.opset_imports.get("", 0)
        count = 0
        for graph in list(graphs(model)):
            maker = Maker(self.rounding)
            moves = (
                MeanAsPool(maker),
                QuantizeOnce(maker),
                DequantizeLater(maker),
                QuantizeEarlier(maker),
                ClampEarlier(),
            )
            count += apply(graph, moves)
            if self.activations != "keep":
                count += retype(graph, self.activations, maker)
            count += apply(graph, (_Quantized(maker, opset),))
            count += apply(graph, (RealProducts(maker),))
        if count:
            model.opset_imports[DOMAIN] = 1
            for graph in graphs(model):
                graph.opset_imports[DOMAIN] = 1
                for value in list(graph.initializers.values()):
                    drop_value(value)
            name_apart(model)
        return count


@dataclass
class _Quantized:
    """What ends in QuantizeLinear."""

    maker: Maker
    opset: int
    roots: ClassVar[frozenset[str]] = frozenset({"QuantizeLinear"})

    def rewrite(self, node: ir.Node) -> Iterable[ir.Node] | None:
        found = target8(node)
        if found is None:
            return None
        target, value = found
        x = tensor8(value)
        if x is not None:
            new = requantized(x, target, self.maker)
            if new is not None:
                return put(node, new)
            return bypass(node, x.value) if replaceable(node.outputs[0], x.value) else None
        operator = value.producer()
        if operator is None or operator.domain != "":
            return None
        if sole_use(value) is not None:
            new = self._operator(value, operator, target)
            if new is not None:
                return put(node, new)
        new = lookup(target, self.opset, self.maker)
        return None if new is None else put(node, new)

    def _operator(self, value: ir.Value, operator: ir.Node, target: Target8) -> ir.Node | None:
        make = _MAKERS.get(operator.op_type)
        made = None if make is None else make(operator, target, self.maker)
        if made is not None:
            return made
        product = product_of(value, self.maker)
        if product is not None:
            return product.make(self.maker, target)
        return self._residual(operator, target) if is_op(operator, "Add") else None

    def _residual(self, add: ir.Node, target: Target8) -> ir.Node | None:
        if self.maker.rounding == "tflite":
            return None
        for k in (0, 1):
            branch, other = add.inputs[k], tensor8(add.inputs[1 - k])
            if branch is None or other is None or sole_use(branch) is None:
                continue
            if not same_shape(branch, add.inputs[1 - k]):
                continue
            product = product_of(branch, self.maker)
            if product is not None:
                return product.make(self.maker, target, other)
        return None


_MAKERS: dict[str, Callable[[ir.Node, Target8, Maker], ir.Node | None]] = {
    "Add": sum_of,
    "Sub": sum_of,
    "Mul": product_of_two,
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "ReduceMean": global_average_pool,
}
