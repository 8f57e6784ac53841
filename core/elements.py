"""What is known of the elements of small integer tensors: the numbers of shape arithmetic, also in part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from effc.core.ir import attr, constant_tensor

# shapes have few elements; what is longer is data
_MOST = 64


@dataclass(frozen=True, slots=True)
class Extent:
    """A number that is known to be some dynamic extent, by its symbol or by where it stands."""

    symbol: str = ""
    value: ir.Value | None = None
    axis: int = 0


Element = int | Extent | None  # None: nothing is known


@dataclass(frozen=True, slots=True)
class Known:
    """A tensor of rank 0 or 1: its elements, and whether it is a scalar."""

    elements: tuple[Element, ...]
    scalar: bool = False

    @property
    def ints(self) -> tuple[int, ...] | None:
        """The elements where all are numbers."""
        found = tuple(e for e in self.elements if isinstance(e, int))
        return found if len(found) == len(self.elements) else None


def extents(value: ir.Value | None) -> tuple[int | Extent, ...] | None:
    """The extents of `value`; None where its rank is unknown."""
    if value is None or value.shape is None:
        return None
    found: list[int | Extent] = []
    for axis, dim in enumerate(value.shape):
        if isinstance(dim, int):
            found.append(dim)
        elif dim.value is not None:
            found.append(Extent(symbol=dim.value))
        else:
            found.append(Extent(value=value, axis=axis))
    return tuple(found)


def reshape_target(known: Known, data: ir.Value | None) -> tuple[int, ...] | None:
    """What `known` says of a target, in numbers: 0 for an extent of `data` at its place, at most one -1.

    For Reshape with allowzero=0. None where two elements are unknown, or a zero stands beside an unknown.
    """
    dims = extents(data) or ()
    target = tuple(
        e if isinstance(e, int) else 0 if e is not None and i < len(dims) and dims[i] == e else -1
        for i, e in enumerate(known.elements)
    )
    unknown = [e for e in known.elements if not isinstance(e, int)]
    if target.count(-1) > 1 or (-1 in target and unknown and 0 in known.elements):
        return None
    return target


class Elements:
    """Computes and remembers the elements of values, in topological order of their nodes."""

    def __init__(self) -> None:
        self._known: dict[ir.Value, Known | None] = {}

    def of(self, value: ir.Value | None) -> Known | None:
        """What is known of `value`; None where it is no small integer tensor of rank 0 or 1."""
        if value is None:
            return None
        if value in self._known:
            return self._known[value]
        known = _of_constant(value)
        if known is not None:
            self._known[value] = known
        return known

    def computed(self, value: ir.Value | None) -> Known | None:
        """What is known of `value` where a node computes it: constants speak for themselves."""
        if value is None or value.producer() is None:
            return None
        return self._known.get(value)

    def visit(self, node: ir.Node) -> Known | None:
        """Compute the elements of the first output of `node`; remembers and returns them."""
        rule = _RULES.get(node.op_type)
        if rule is None or node.domain != "":
            return None
        known = rule(node, self)
        if known is not None and len(known.elements) > _MOST:
            known = None
        self._known[node.outputs[0]] = known
        return known


def _of_constant(value: ir.Value) -> Known | None:
    if value.is_graph_input() or value.const_value is None:
        return None
    return _of_tensor(value.const_value)


def _constant(node: ir.Node, known: Elements) -> Known | None:
    tensor = constant_tensor(node)
    return _of_tensor(tensor) if tensor is not None else None


def _of_tensor(tensor: ir.TensorProtocol) -> Known | None:
    if tensor.dtype not in (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL):
        return None
    if len(tensor.shape) > 1 or tensor.size > _MOST:
        return None
    array = tensor.numpy()
    return Known(tuple(int(e) for e in array.reshape(-1)), scalar=array.ndim == 0)


def _shape(node: ir.Node, known: Elements) -> Known | None:
    dims = extents(node.inputs[0])
    if dims is None:
        return None
    start, end = attr(node, "start", 0), attr(node, "end", len(dims))
    return Known(dims[start:end])


def _size(node: ir.Node, known: Elements) -> Known | None:
    dims = extents(node.inputs[0])
    if dims is None or not all(isinstance(d, int) for d in dims):
        return None
    return Known((int(np.prod(np.array(dims, np.int64))),), scalar=True)


def _gather(node: ir.Node, known: Elements) -> Known | None:
    data, indices = known.of(node.inputs[0]), known.of(node.inputs[1])
    if data is None or data.scalar or indices is None or indices.ints is None:
        return None
    n = len(data.elements)
    if attr(node, "axis", 0) not in (0, -1) or not all(-n <= i < n for i in indices.ints):
        return None
    return Known(tuple(data.elements[i] for i in indices.ints), scalar=indices.scalar)


def _slice(node: ir.Node, known: Elements) -> Known | None:
    data = known.of(node.inputs[0])
    if data is None or data.scalar:
        return None
    numbers: list[int | None] = []
    for index, name in enumerate(("starts", "ends", "axes", "steps"), 1):
        ints = _operand(node, known, index, name)
        if ints == () or (ints is not None and len(ints) != 1):
            return None
        if ints is None and (index < 3 or _given(node, index)):
            return None
        numbers.append(ints[0] if ints is not None else None)
    start, end, _, step = numbers
    if step == 0:
        return None
    if step is not None and step < 0 and end is not None and end < -len(data.elements):
        end = None
    return Known(data.elements[slice(start, end, step)])


def _given(node: ir.Node, index: int) -> bool:
    return index < len(node.inputs) and node.inputs[index] is not None


def _operand(node: ir.Node, known: Elements, index: int, name: str) -> tuple[int, ...] | None:
    """The integers of the input `index`, which was the attribute `name` in older opsets."""
    if _given(node, index):
        found = known.of(node.inputs[index])
        return found.ints if found is not None else None
    ints = attr(node, name)
    return tuple(ints) if isinstance(ints, tuple) else None


def _concat(node: ir.Node, known: Elements) -> Known | None:
    parts = [known.of(v) for v in node.inputs]
    found: list[Element] = []
    for value, part in zip(node.inputs, parts, strict=True):
        if part is not None and not part.scalar:
            found.extend(part.elements)
        elif value is not None and value.shape is not None and len(value.shape) == 1:
            extent = value.shape[0]
            if not isinstance(extent, int) or extent > _MOST or not _is_int(value):
                return None
            found.extend([None] * extent)
        else:
            return None
    return Known(tuple(found))


def _is_int(value: ir.Value) -> bool:
    return value.dtype in (ir.DataType.INT64, ir.DataType.INT32)


def _unsqueeze(node: ir.Node, known: Elements) -> Known | None:
    data = known.of(node.inputs[0])
    if data is None or not data.scalar or _operand(node, known, 1, "axes") not in ((0,), (-1,)):
        return None
    return Known(data.elements)


def _squeeze(node: ir.Node, known: Elements) -> Known | None:
    data = known.of(node.inputs[0])
    if data is None or data.scalar or len(data.elements) != 1:
        return None
    return Known(data.elements, scalar=True)


def _reshape(node: ir.Node, known: Elements) -> Known | None:
    if len(node.inputs) < 2:  # before opset 5 the shape was an attribute
        return None
    data, target = known.of(node.inputs[0]), known.of(node.inputs[1])
    if data is None or target is None or target.ints is None or len(target.ints) > 1:
        return None
    if target.ints == () and len(data.elements) == 1:
        return Known(data.elements, scalar=True)
    if target.ints in ((-1,), (len(data.elements),)):
        return Known(data.elements)
    return None


def _identity(node: ir.Node, known: Elements) -> Known | None:
    return known.of(node.inputs[0])


def _cast(node: ir.Node, known: Elements) -> Known | None:
    data = known.of(node.inputs[0])
    to = attr(node, "to")
    if data is None or to not in (int(ir.DataType.INT64), int(ir.DataType.INT32)):
        return None
    if to == ir.DataType.INT32 and not all(
        not isinstance(e, int) or -(2**31) <= e < 2**31 for e in data.elements
    ):
        return None
    return data


def _arithmetic(rule: Callable[[Element, Element], Element]) -> Callable[..., Known | None]:
    def run(node: ir.Node, known: Elements) -> Known | None:
        a, b = known.of(node.inputs[0]), known.of(node.inputs[1])
        if a is None or b is None:
            return None
        n = max(len(a.elements), len(b.elements))
        if not all(len(k.elements) in (1, n) for k in (a, b)):
            return None
        left = a.elements * (n if len(a.elements) == 1 else 1)
        right = b.elements * (n if len(b.elements) == 1 else 1)
        found = tuple(rule(x, y) for x, y in zip(left, right, strict=True))
        wide = node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.INT64
        limit = 2**63 if wide else 2**31
        if any(isinstance(e, int) and not -limit <= e < limit for e in found):
            return None  # it overflows: what then happens is the machine's business
        return Known(found, scalar=a.scalar and b.scalar)

    return run


def _add(x: Element, y: Element) -> Element:
    if isinstance(x, int) and isinstance(y, int):
        return x + y
    return x if y == 0 else y if x == 0 else None


def _sub(x: Element, y: Element) -> Element:
    if isinstance(x, int) and isinstance(y, int):
        return x - y
    return x if y == 0 else None


def _mul(x: Element, y: Element) -> Element:
    if isinstance(x, int) and isinstance(y, int):
        return x * y
    return x if y == 1 else y if x == 1 else None


def _div(x: Element, y: Element) -> Element:
    if isinstance(x, int) and isinstance(y, int) and y != 0:
        quotient = abs(x) // abs(y)  # ONNX truncates
        return quotient if (x < 0) == (y < 0) else -quotient
    return x if y == 1 else None


def _equal(x: Element, y: Element) -> Element:
    if isinstance(x, int) and isinstance(y, int):
        return int(x == y)
    for a, b in ((x, y), (y, x)):
        if isinstance(a, Extent) and isinstance(b, int) and b < 0:
            return 0  # no extent is negative
    return None


def _where(node: ir.Node, known: Elements) -> Known | None:
    parts = [known.of(v) for v in node.inputs]
    if any(p is None for p in parts):
        return None
    full = [p for p in parts if p is not None]
    n = max(len(p.elements) for p in full)
    if not all(len(p.elements) in (1, n) for p in full):
        return None
    c, x, y = (p.elements * (n if len(p.elements) == 1 else 1) for p in full)
    found = tuple(
        a if i == 1 else b if i == 0 else a if a == b and a is not None else None
        for i, a, b in zip(c, x, y, strict=True)
    )
    return Known(found, scalar=all(p.scalar for p in full))


def _constant_of_shape(node: ir.Node, known: Elements) -> Known | None:
    shape = known.of(node.inputs[0])
    tensor = attr(node, "value")
    if shape is None or shape.ints is None or len(shape.ints) > 1 or tensor is None:
        return None
    if tensor.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
        return None
    n = shape.ints[0] if shape.ints else 1
    if not 0 <= n <= _MOST:
        return None
    return Known((int(tensor.numpy().reshape(())),) * n, scalar=not shape.ints)


def _reduce_prod(node: ir.Node, known: Elements) -> Known | None:
    data = known.of(node.inputs[0])
    if data is None or data.ints is None or _given(node, 1) or attr(node, "axes") is not None:
        return None
    product = 1
    for e in data.ints:
        product *= e
    if not -(2**31) <= product < 2**31:
        return None
    return Known((product,), scalar=data.scalar or not attr(node, "keepdims", 1))


def _range(node: ir.Node, known: Elements) -> Known | None:
    parts = [known.of(v) for v in node.inputs]
    numbers = [p.ints[0] for p in parts if p is not None and p.ints is not None]
    if len(numbers) != 3 or numbers[2] == 0 or len(range(*numbers)) > _MOST:
        return None
    return Known(tuple(range(*numbers)))


_RULES: dict[str, Callable[[ir.Node, Elements], Known | None]] = {
    "Constant": _constant,
    "Shape": _shape,
    "Size": _size,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "Identity": _identity,
    "Cast": _cast,
    "Add": _arithmetic(_add),
    "Sub": _arithmetic(_sub),
    "Mul": _arithmetic(_mul),
    "Div": _arithmetic(_div),
    "Equal": _arithmetic(_equal),
    "Where": _where,
    "ConstantOfShape": _constant_of_shape,
    "ReduceProd": _reduce_prod,
    "Range": _range,
}
