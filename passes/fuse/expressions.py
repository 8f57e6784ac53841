"""Reading spelt-out formulas: sums and products flattened, scalar constants folded on the way.

Exporters write one formula in many ways (x * 0.5 * (1 + e), 0.5 * (x * (e + 1)), x / 2 * (1 + e)):
a product is read as one factor times its computed operands, an affine form as scale and shift, so
that the order of operands and of constants does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from effc.core.ir import attr, is_op, sole_use
from effc.passes.fuse.rewriting import known

# constants are written with few digits: 1.4142 for the square root of 2 is 1e-5 off
TOLERANCE = {ir.DataType.FLOAT16: 2e-3, ir.DataType.BFLOAT16: 1e-2}
DEFAULT_TOLERANCE = 3e-5


def number(value: ir.Value | None) -> float | None:
    """The constant of one element that `value` is, if using it can't raise the rank of an operand."""
    array = known(value)
    if array is None or array.size != 1 or array.ndim > 1 or array.dtype.kind not in "fV":
        return None
    return float(array.reshape(()))


def close(a: float | None, b: float, dtype: ir.DataType | None) -> bool:
    """Whether two constants of a formula on `dtype` are meant to be the same."""
    if a is None:
        return False
    tolerance = DEFAULT_TOLERANCE if dtype is None else TOLERANCE.get(dtype, DEFAULT_TOLERANCE)
    return abs(a - b) <= tolerance * max(abs(b), 1e-6)


@dataclass
class Product:
    """factor * values[0] * values[1] * ...; an integer power stands as often as its exponent."""

    factor: float = 1.0
    values: list[ir.Value] = field(default_factory=list)

    def other(self, value: ir.Value) -> ir.Value | None:
        """The second of two values, given one of them; None where there are not two such."""
        if len(self.values) != 2 or value not in self.values:
            return None
        a, b = self.values
        return b if a is value else a


def inner(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The node that makes `value`, if it is one of these operators and nothing else reads `value`."""
    node = value.producer() if value is not None else None
    if value is None or not is_op(node, *op_types) or sole_use(value) is None:
        return None
    return node


def product(value: ir.Value) -> Product:
    """`value` as a product, through Mul, Div by a constant, Neg and Pow that only it reads.

    The node that makes `value` itself may have any readers.
    """
    found = Product()
    _multiply(value, found, root=True)
    return found


def _multiply(value: ir.Value, into: Product, root: bool = False) -> None:
    constant = number(value)
    if constant is not None:
        into.factor *= constant
        return
    node = value.producer()
    if node is None or not (root or sole_use(value) is not None):
        into.values.append(value)
        return
    operands = [v for v in node.inputs if v is not None]
    if is_op(node, "Mul") and len(operands) == 2:
        a, b = operands
        if a is b:  # a square: its operand is read twice
            into.values += [a, a]
            return
        _multiply(a, into)
        _multiply(b, into)
    elif is_op(node, "Div") and len(operands) == 2 and number(operands[1]):
        into.factor /= number(operands[1]) or 1.0
        _multiply(operands[0], into)
    elif is_op(node, "Neg"):
        into.factor = -into.factor
        _multiply(operands[0], into)
    elif is_op(node, "Pow") and number(operands[1]) in (2.0, 3.0):
        into.values += [operands[0]] * int(number(operands[1]) or 0)
    else:
        into.values.append(value)


def affine(value: ir.Value) -> tuple[float, float, ir.Value]:
    """scale, shift, x with `value` = scale * x + shift, through scalar arithmetic that only it reads."""
    scale, shift = 1.0, 0.0
    while True:
        node = inner(value, "Add", "Sub", "Mul", "Div", "Neg")
        if node is None:
            return scale, shift, value
        if is_op(node, "Neg"):
            scale, a = -scale, node.inputs[0]
        else:
            a, b = node.inputs
            x, y = number(a), number(b)
            if (x is None) == (y is None):
                return scale, shift, value
            match node.op_type:
                case "Add":
                    shift += scale * (x if x is not None else y or 0.0)
                    a = b if x is not None else a
                case "Sub" if y is not None:
                    shift -= scale * y
                case "Sub":
                    assert x is not None
                    shift += scale * x
                    scale, a = -scale, b
                case "Mul":
                    scale *= x if x is not None else y or 0.0
                    a = b if x is not None else a
                case _:
                    if not y:  # a constant divided by x, or a division by zero
                        return scale, shift, value
                    scale /= y
        if a is None:
            return scale, shift, value
        value = a


def summands(value: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """The two operands of an Add that only its reader reads."""
    node = inner(value, "Add")
    if node is None or node.inputs[0] is None or node.inputs[1] is None:
        return None
    return node.inputs[0], node.inputs[1]


def bounds(node: ir.Node) -> tuple[ir.Value, float, float] | None:
    """x, low, high of a node that clamps x between constants: Clip, Relu, Max or Min; None else."""
    inf = float("inf")
    x = node.inputs[0] if node.inputs else None
    if x is None:
        return None
    if is_op(node, "Relu"):
        return x, 0.0, inf
    if is_op(node, "Clip"):
        if "min" in node.attributes or "max" in node.attributes:
            return x, attr(node, "min", -inf), attr(node, "max", inf)
        limits = []
        for i, absent in ((1, -inf), (2, inf)):
            held = node.inputs[i] if len(node.inputs) > i else None
            limit = absent if held is None else number(held)
            if limit is None:
                return None
            limits.append(limit)
        return x, limits[0], limits[1]
    if is_op(node, "Max", "Min") and len(node.inputs) == 2:
        a, b = node.inputs
        limit = number(b)
        if limit is None:
            limit, a = number(a), b
        if limit is None or a is None:
            return None
        return (a, limit, inf) if is_op(node, "Max") else (a, -inf, limit)
    return None
