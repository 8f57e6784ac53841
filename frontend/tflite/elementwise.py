"""Operators on single elements: arithmetic, activations, comparisons, types."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from effc.core.errors import FrontendError
from effc.frontend.tflite.graph import NATIVE, NCHW, Graph, Unsupported
from effc.frontend.tflite.read import DAMAGED, Operator
from effc.frontend.tflite.windows import activation

Converter = Callable[[Graph, Operator], None]


def _operands(g: Graph, operator: Operator, count: int) -> tuple[list[ir.Value], str]:
    """The inputs as numbers, all in one layout, and that layout."""
    indices = [operator.input(k) for k in range(count)]
    o = operator.output()
    layout = g.layout(*indices) if g.rank(o) == 4 else NATIVE
    return [g.operand(i, layout, g.rank(o)) for i in indices], layout


def _nary(op_type: str, count: int, g: Graph, operator: Operator) -> None:
    values, layout = _operands(g, operator, count)
    y = g.emit(op_type, *values)
    g.put_real(operator.output(), y, layout, activation(operator))


def _chain(steps: tuple[str, ...], g: Graph, operator: Operator) -> None:
    (value,), layout = _operands(g, operator, 1)
    for step in steps:
        value = g.emit(step, value)
    g.put_real(operator.output(), value, layout)


def _fused(name: str, g: Graph, operator: Operator) -> None:
    (value,), layout = _operands(g, operator, 1)
    g.put_real(operator.output(), value, layout, name)


def _add_n(g: Graph, operator: Operator) -> None:
    _nary("Sum", len(operator.inputs), g, operator)


def _square(g: Graph, operator: Operator) -> None:
    (value,), layout = _operands(g, operator, 1)
    g.put_real(operator.output(), g.emit("Mul", value, value), layout)


def _squared_difference(g: Graph, operator: Operator) -> None:
    values, layout = _operands(g, operator, 2)
    d = g.emit("Sub", *values)
    g.put_real(operator.output(), g.emit("Mul", d, d), layout)


def _floor_div(g: Graph, operator: Operator) -> None:
    if np.dtype(g.tensors[operator.input(0)].dtype).kind != "f":
        raise Unsupported("it divides integers rounding down", "cast to float32 before it")
    values, layout = _operands(g, operator, 2)
    g.put_real(operator.output(), g.emit("Floor", g.emit("Div", *values)), layout)


def _floor_mod(g: Graph, operator: Operator) -> None:
    values, layout = _operands(g, operator, 2)
    if np.dtype(g.tensors[operator.input(0)].dtype).kind != "f":
        y = g.emit("Mod", *values)  # the sign of the divisor, as TFLite
    else:
        floor = g.emit("Floor", g.emit("Div", *values))
        y = g.emit("Sub", values[0], g.emit("Mul", floor, values[1]))
    g.put_real(operator.output(), y, layout)


def _relu_0_to_1(g: Graph, operator: Operator) -> None:
    (value,), layout = _operands(g, operator, 1)
    y = g.emit("Clip", value, g.number(0), g.number(1))
    g.put_real(operator.output(), y, layout)


def _leaky_relu(g: Graph, operator: Operator) -> None:
    (value,), layout = _operands(g, operator, 1)
    y = g.emit("LeakyRelu", value, alpha=float(operator.options.get("Alpha", 0.0)))
    g.put_real(operator.output(), y, layout)


def _gelu(g: Graph, operator: Operator) -> None:
    (value,), layout = _operands(g, operator, 1)
    tanh = bool(operator.options.get("Approximate", False))
    y = g.emit("Gelu", value, approximate="tanh" if tanh else None)
    g.put_real(operator.output(), y, layout)


def _softmax(g: Graph, operator: Operator) -> None:
    x, beta = operator.input(0), float(operator.options.get("Beta", 1.0))
    value = g.real(x)
    if beta != 1.0:
        value = g.emit("Mul", value, g.number(beta))
    g.put_real(operator.output(), g.emit("Softmax", value, axis=-1))


def _log_softmax(g: Graph, operator: Operator) -> None:
    y = g.emit("LogSoftmax", g.real(operator.input(0)), axis=-1)
    g.put_real(operator.output(), y)


def _l2_normalization(g: Graph, operator: Operator) -> None:
    value = g.real(operator.input(0))
    length = g.emit("ReduceL2", value, g.int64(-1))
    y = g.emit("Div", value, g.emit("Max", length, g.number(1e-6)))
    g.put_real(operator.output(), y, NATIVE, activation(operator))


def _quantize(g: Graph, operator: Operator) -> None:
    x, o = operator.input(0), operator.output()
    layout = g.layout(x)
    if g.quantized(o) is None:
        raise FrontendError(f"{operator.place} has an output without a scale", hint=DAMAGED)
    g.put_real(o, g.real(x, layout), layout)


def _dequantize(g: Graph, operator: Operator) -> None:
    x, o = operator.input(0), operator.output()
    array = g.const(x)
    if array is not None and array.dtype == np.float16:
        g.put_const(o, array.astype(np.float32))  # exact
        return
    if array is not None and g.quantized(x) is not None:
        g.put_same(o, x)
        return
    layout = g.layout(x)
    value = g.real(x, layout)
    if g.tensors[x].dtype == np.float16:
        value = g.emit("Cast", value, to=ir.DataType.FLOAT)
    elif g.quantized(x) is None:
        raise FrontendError(f"{operator.place} has an input without a scale", hint=DAMAGED)
    else:
        value = g.emit("Identity", value)
    g.put(o, value, layout)


def _cast(g: Graph, operator: Operator) -> None:
    x, o = operator.input(0), operator.output()
    layout = g.layout(x)
    dtype = g.tensors[o].dtype
    if dtype is None:
        raise Unsupported(f"it casts to {g.tensors[o].type_name}", "cast to float32 or int32")
    # what is stored, not what it stands for: that is what TFLite casts
    y = g.emit("Cast", g.stored(x, layout), to=ir.DataType.from_numpy(np.dtype(dtype)))
    g.put(o, y, layout)


def _identity(g: Graph, operator: Operator) -> None:
    x = operator.input(0)
    layout = g.layout(x)
    g.move(x, operator.output(), lambda v: g.emit("Identity", v), layout)


def _select(g: Graph, operator: Operator) -> None:
    condition, a, b, o = (*(operator.input(k) for k in range(3)), operator.output())
    if operator.op == "SELECT" and g.rank(condition) == 1 and g.rank(a) > 1:
        # the old one picks whole rows
        mask = g.reshape(g.stored(condition), (*g.shape(condition), *(1,) * (g.rank(a) - 1)))
        g.put_real(o, g.emit("Where", mask, g.real(a), g.real(b)))
        return
    values, layout = _operands(g, operator, 3)
    g.put_real(o, g.emit("Where", *values), layout)


def _not_equal(g: Graph, operator: Operator) -> None:
    values, layout = _operands(g, operator, 2)
    g.put_real(operator.output(), g.emit("Not", g.emit("Equal", *values)), layout)


def _prelu(g: Graph, operator: Operator) -> None:
    x, slope, o = operator.input(0), operator.input(1), operator.output()
    layout = NCHW if g.has_nchw(x) and g.const(slope) is not None else NATIVE
    y = g.emit("PRelu", g.real(x, layout), g.operand(slope, layout, g.rank(x)))
    g.put_real(o, y, layout)


def _table() -> dict[str, Converter]:
    table: dict[str, Converter] = {}

    def each(make: Any, names: dict[str, Any], *more: Any) -> None:
        for name, argument in names.items():
            table[name] = partial(make, argument, *more)

    each(
        _nary,
        {
            "ADD": "Add", "SUB": "Sub", "MUL": "Mul", "DIV": "Div", "POW": "Pow",
            "MAXIMUM": "Max", "MINIMUM": "Min", "EQUAL": "Equal", "LESS": "Less",
            "LESS_EQUAL": "LessOrEqual", "GREATER": "Greater", "GREATER_EQUAL": "GreaterOrEqual",
            "LOGICAL_AND": "And", "LOGICAL_OR": "Or",
        },
        2,
    )  # fmt: skip
    each(
        _chain,
        {
            "EXP": ("Exp",), "LOG": ("Log",), "SQRT": ("Sqrt",), "RSQRT": ("Sqrt", "Reciprocal"),
            "ABS": ("Abs",), "NEG": ("Neg",), "FLOOR": ("Floor",), "CEIL": ("Ceil",),
            "ROUND": ("Round",), "SIN": ("Sin",), "COS": ("Cos",), "SIGN": ("Sign",),
            "ELU": ("Elu",), "LOGISTIC": ("Sigmoid",), "TANH": ("Tanh",),
            "HARD_SWISH": ("HardSwish",), "LOGICAL_NOT": ("Not",),
        },
    )  # fmt: skip
    each(_fused, {"RELU": "RELU", "RELU6": "RELU6", "RELU_N1_TO_1": "RELU_N1_TO_1"})
    table |= {
        "ADD_N": _add_n,
        "SQUARE": _square,
        "SQUARED_DIFFERENCE": _squared_difference,
        "FLOOR_DIV": _floor_div,
        "FLOOR_MOD": _floor_mod,
        "RELU_0_TO_1": _relu_0_to_1,
        "LEAKY_RELU": _leaky_relu,
        "PRELU": _prelu,
        "GELU": _gelu,
        "SOFTMAX": _softmax,
        "LOG_SOFTMAX": _log_softmax,
        "L2_NORMALIZATION": _l2_normalization,
        "QUANTIZE": _quantize,
        "DEQUANTIZE": _dequantize,
        "CAST": _cast,
        "SELECT": _select,
        "SELECT_V2": _select,
        "NOT_EQUAL": _not_equal,
    }
    return table


CONVERTERS = _table()
