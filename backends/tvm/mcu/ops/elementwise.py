"""Operators that go through their elements in order: sums, products, tables, reals at the border."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from effc.backends.tvm.mcu.layouts import Order, channels_last, same_bytes
from effc.backends.tvm.mcu.lowering import Lowering, Refusal, static
from effc.backends.tvm.mcu.ops.requantization import bounds, wanted_fixed
from effc.backends.tvm.mcu.program import C_TYPES, Constant
from effc.core.ir import attr, const, scalar
from effc.core.quant import quant_params


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two operands as they lie, and how they repeat."""

    a: str | Constant
    b: str | Constant
    order: Order
    numbers: dict[str, int]

    def ahead(self) -> dict[str, int]:
        """The output may take the place of an operand that is read once."""
        found = {}
        for side, name in (("A", self.a), ("B", self.b)):
            steps = self.numbers[f"{side}_STRIDE"], self.numbers[f"{side}_STEP"]
            if isinstance(name, str) and steps == (1, self.numbers["INNER"]):
                found[name] = 0
        return found


def _pair(low: Lowering, node: ir.Node) -> _Pair:
    shape = static(node.outputs[0])[0]
    rank = len(shape)
    order = channels_last(rank)
    for value in node.inputs[:2]:  # the order of an operand that is not repeated
        if value is not None and const(value) is None and static(value)[0] == shape:
            order = low.known(value).order
            break
    stored = [shape[k] for k in order]
    names, repeats = [], []
    for value in node.inputs[:2]:
        if value is None:
            raise Refusal("an operand is missing", "give it")
        own = static(value)[0]
        wide = (1,) * (rank - len(own)) + own
        if const(value) is None and len(own) < rank:
            tensor = low.known(value)
            if not same_bytes(own, tensor.order, tuple(range(len(own)))):
                raise Refusal("its operands have different ranks", "reshape them to one rank")
            names.append(tensor.name)
            if len([n for n in own if n != 1]) > 1:
                raise Refusal("its operands have different ranks", "reshape them to one rank")
        elif len(own) < rank:
            array = const(value)
            assert array is not None
            flat = array.reshape(wide).transpose(order)
            names.append(low.constant(str(value.name), flat))  # type: ignore[arg-type]
        else:
            names.append(low.read(value, order))  # type: ignore[arg-type]
        repeats.append(_repeats([wide[k] for k in order], stored))
    count = math.prod(shape)
    inner = {math.prod(stored[at:]) for at, _ in repeats if at is not None}
    if len(inner) > 1:
        raise Refusal("both operands repeat", "expand one of them")
    run = inner.pop() if inner else count
    numbers = {"OUTER": count // run if run else 0, "INNER": run}
    steps = {"whole": (1, run), "one": (0, 0), "front": (0, 1), "back": (1, 0)}
    for side, (_, kind) in zip("AB", repeats, strict=True):
        numbers[f"{side}_STRIDE"], numbers[f"{side}_STEP"] = steps[kind]
    return _Pair(names[0], names[1], order, numbers)


def _repeats(lies: list[int], stored: list[int]) -> tuple[int | None, str]:
    """How an operand of extents `lies` repeats in `stored`, and the axis at which that changes.

    "whole": not at all; "one": one number; "front": only the axes before are its own; "back": those behind.
    """
    axes = [k for k, n in enumerate(stored) if n != 1]
    own = [lies[k] == stored[k] for k in axes]
    if all(own):
        return None, "whole"
    if not any(own):
        return None, "one"
    change = next(i for i in range(1, len(own)) if own[i] != own[i - 1])
    if own != [own[0]] * change + [not own[0]] * (len(own) - change):
        raise Refusal(
            "it repeats an operand along separate axes", "repeat leading or trailing axes only"
        )
    return axes[change], "front" if own[0] else "back"


def add(low: Lowering, node: ir.Node) -> None:
    """effc.integer Add."""
    wanted_fixed(node)
    pair = _pair(low, node)
    y = low.define(node.outputs[0], pair.order)
    if y.dtype == "float32":
        raise Refusal("its sum is real", "quantize its output")
    by_a, by_b = attr(node, "a_multiplier"), attr(node, "b_multiplier")
    reach = 255 * (abs(by_a[0]) + abs(by_b[0])) + (1 << max(by_a[1] - 1, 0))
    if by_a[1] != by_b[1] or not 1 <= by_a[1] <= 30 or reach >= 2**31:
        raise Refusal("its multipliers don't fit 32 bits", "quantize its operands again")
    numbers = {
        **pair.numbers,
        "A_ZERO": attr(node, "a_zero_point"),
        "B_ZERO": attr(node, "b_zero_point"),
        "A_M": by_a[0],
        "B_M": by_b[0],
        "SHIFT": by_a[1],
        "ROUND": 1 << (by_a[1] - 1),
        **bounds(node),
    }
    _binary(low, node, "add", pair, numbers)


def mul(low: Lowering, node: ir.Node) -> None:
    """effc.integer Mul."""
    wanted_fixed(node)
    pair = _pair(low, node)
    low.define(node.outputs[0], pair.order)
    multiplier, shift = attr(node, "multiplier")
    numbers = {
        **pair.numbers,
        "A_ZERO": attr(node, "a_zero_point"),
        "B_ZERO": attr(node, "b_zero_point"),
        "M": multiplier,
        "SHIFT": shift,
        **bounds(node),
    }
    _binary(low, node, "mul", pair, numbers)


def _binary(
    low: Lowering, node: ir.Node, source: str, pair: _Pair, numbers: dict[str, int]
) -> None:
    y = low.known(node.outputs[0])
    words = {"TYPE": C_TYPES[y.dtype]}
    for side, value in zip("AB", node.inputs[:2], strict=True):
        assert value is not None
        words[f"TYPE_{side}"] = C_TYPES[static(value)[1]]
    kernel = low.kernels.make(source, f"{source}_{y.count}", numbers, words)
    low.call(
        kernel,
        (pair.a, pair.b, y.name),
        y.name,
        nodes=[str(node.name)],
        op=node.op_type,
        ahead=pair.ahead(),
    )


def requantize(low: Lowering, node: ir.Node) -> None:
    """effc.integer Requantize."""
    wanted_fixed(node)
    multiplier, shift = attr(node, "multiplier")
    numbers = {"X_ZERO": attr(node, "x_zero_point"), "M": multiplier, "SHIFT": shift}
    _unary(low, node, "requantize", numbers | bounds(node))


def lookup(low: Lowering, node: ir.Node) -> None:
    """effc.integer Lookup."""
    value, table = node.inputs[0], const(node.inputs[1])
    if value is None or table is None:
        raise Refusal("its table is computed", "fold it into a constant")
    least = -128 if static(value)[1] == "int8" else 0
    constant = low.constant(f"{node.name} table", table)
    _unary(low, node, "lookup", {"LEAST": least}, (constant,))


def clip(low: Lowering, node: ir.Node) -> None:
    """Clip or Relu of stored integers, or of reals."""
    value = node.inputs[0]
    assert value is not None
    dtype = static(value)[1]
    low_high: list[float] = [-math.inf, math.inf]
    if node.op_type == "Relu":
        low_high[0] = 0.0
    else:
        for k in (1, 2):
            held = node.inputs[k] if len(node.inputs) > k else None
            number = scalar(held)
            if held is not None and number is None:
                raise Refusal("its bounds are computed", "fold them into constants")
            if number is not None:
                low_high[k - 1] = number
    if dtype == "float32":
        ends = [f"{v!r}f" for v in low_high]
        expression = "u"
        if low_high[0] > -math.inf:
            expression = f"({expression} < {ends[0]} ? {ends[0]} : {expression})"
        if low_high[1] < math.inf:
            expression = f"({expression} > {ends[1]} ? {ends[1]} : {expression})"
        _function(low, node, expression)
        return
    info = np.iinfo(dtype)
    numbers = {
        "LOW": int(max(info.min, low_high[0])),
        "HIGH": int(min(info.max, low_high[1])),
    }
    _unary(low, node, "clip", numbers)


def quantize(low: Lowering, node: ir.Node) -> None:
    """QuantizeLinear with one scale."""
    params = quant_params(node)
    if params is None or not params.per_tensor:
        raise Refusal("its parameters are computed or by channel", "quantize activations by tensor")
    dtype = static(node.outputs[0])[1]
    info = np.iinfo(dtype)
    numbers = {"Y_ZERO": int(params.zero_point), "LOW": info.min, "HIGH": info.max}
    _unary(low, node, "quantize", numbers, words={"SCALE": c_float(float(params.scale))})


def dequantize(low: Lowering, node: ir.Node) -> None:
    """DequantizeLinear with one scale."""
    params = quant_params(node)
    if params is None or not params.per_tensor:
        raise Refusal("its parameters are computed or by channel", "quantize activations by tensor")
    words = {"SCALE": c_float(float(params.scale))}
    numbers = {"X_ZERO": int(params.zero_point)}
    _unary(low, node, "dequantize", numbers, words=words, over=False)


def _unary(
    low: Lowering,
    node: ir.Node,
    source: str,
    numbers: dict[str, int],
    more: tuple[Constant, ...] = (),
    words: dict[str, str] | None = None,
    *,
    over: bool = True,
) -> None:
    value = node.inputs[0]
    assert value is not None
    x = low.read(value)
    shape, x_type = static(value)
    order = low.known(value).order if isinstance(x, str) else tuple(range(len(shape)))
    y = low.define(node.outputs[0], order)
    found = {
        "TYPE_X": C_TYPES[x_type],
        "TYPE": C_TYPES[y.dtype if y.dtype != "float32" else x_type],
    }
    found |= words or {}
    kernel = low.kernels.make(source, f"{source}_{y.count}", {"COUNT": y.count, **numbers}, found)
    low.call(
        kernel,
        (x, *more, y.name),
        y.name,
        nodes=[str(node.name)],
        op=node.op_type,
        ahead={x: 0} if over and isinstance(x, str) else {},
    )


_FUNCTIONS = {
    "Sigmoid": "1.0f / (1.0f + expf(-u))",
    "Tanh": "tanhf(u)",
    "Exp": "expf(u)",
    "Neg": "-u",
    "Abs": "fabsf(u)",
    "Sqrt": "sqrtf(u)",
    "Identity": "u",
}
_OPERATORS = {"Add": "u + v", "Sub": "u - v", "Mul": "u * v", "Div": "u / v"}


def real_function(low: Lowering, node: ir.Node) -> None:
    """A function of reals that the C library has."""
    _function(low, node, _FUNCTIONS[node.op_type])


def real_operator(low: Lowering, node: ir.Node) -> None:
    """Add, Sub, Mul, Div of reals."""
    pair = _pair(low, node)
    y = low.define(node.outputs[0], pair.order)
    if y.dtype != "float32":
        raise Refusal("it computes with stored integers", "quantize around it")
    words = {"EXPRESSION": _OPERATORS[node.op_type]}
    kernel = low.kernels.make(
        "binary_float", f"{node.op_type.lower()}_float_{y.count}", pair.numbers, words
    )
    low.call(
        kernel,
        (pair.a, pair.b, y.name),
        y.name,
        nodes=[str(node.name)],
        op=node.op_type,
        ahead=pair.ahead(),
    )


def _function(low: Lowering, node: ir.Node, expression: str) -> None:
    if static(node.outputs[0])[1] != "float32":
        raise Refusal("it computes with stored integers", "quantize around it")
    _unary(low, node, "unary_float", {}, words={"EXPRESSION": expression})


def c_float(value: float) -> str:
    """A float32 as C writes it, to the last bit."""
    return f"{float(np.float32(value)).hex()}f"
