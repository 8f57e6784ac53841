"""Recognizes pure data movement: where an output reads its one operand by strides.

The output is cut into *digits*, nested axes along which both the place written and the place read
grow by a constant: a transpose is a permutation of digits, a channel shuffle two digits of one axis,
nearest upsampling a digit whose source stays, a flip one that goes backwards. How a rule computes its
index does not matter: the map is evaluated on numbers, taken apart, and compared with all of itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import tirx

from effc.backends.tvm import tir
from effc.backends.tvm.layout import TensorType
from effc.backends.tvm.ops.contract import Lazy

Expr = Any
Map = npt.NDArray[Any]
LARGEST = 1 << 24  # elements that are compared at compile time: 0.2 s
_PIECES = 8


@dataclass(frozen=True, slots=True)
class Digit:
    """An axis of `extent` steps that move `out` elements in the output and `source` in the operand."""

    extent: int
    out: int
    source: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A box of the output, digits from the outermost to the innermost; then `pad` zero lanes."""

    digits: tuple[Digit, ...]
    out: int
    source: int
    pad: int = 0


class _Split(Exception):
    """Axis `axis` has to be cut at coordinate `at`."""

    def __init__(self, at: int, axis: int = 0) -> None:
        super().__init__(at)
        self.at, self.axis = at, axis


class _Irregular(Exception):
    """No strided map."""


def strided(
    output: TensorType, operand: TensorType, body: Callable[[list[Lazy]], Sequence[Lazy]]
) -> list[Piece] | None:
    """The pieces that copy `operand` into `output`; None where `body` does anything else."""
    if not 0 < output.elements <= LARGEST or output.dtype != operand.dtype or not output.shape:
        return None
    block = output.layout.block
    physical = output.layout.physical_shape(output.shape)
    names = [tirx.Var(f"i{a}", "int32") for a in range(len(physical))]
    read = _read(output, operand, body, names)
    if read is None or len(read) != len(operand.shape):
        return None
    try:
        return _pieces(output, operand, read, names, physical, block)
    except _Irregular:
        return None


def _read(
    output: TensorType,
    operand: TensorType,
    body: Callable[[list[Lazy]], Sequence[Lazy]],
    names: Sequence[Expr],
) -> tuple[Expr, ...] | None:
    """The operand's logical index behind the output's element at physical `names`, if it is all."""
    dummy = tir.buffer("source", 1, {"bfloat16": "float32"}.get(operand.dtype, operand.dtype))
    reads: list[tuple[tuple[Expr, ...], Expr]] = []

    def load(index: tuple[Expr, ...]) -> Expr:
        value = tirx.BufferLoad(dummy, [len(reads)])
        reads.append((index, value))
        return value

    index = tuple(names)
    if output.layout.block:
        n, c, *spatial, lane = names
        index = (n, c * output.layout.block + lane, *spatial)
    found: list[Expr] = []

    def visit(lane: Expr) -> Any:
        found.append(body([load])[0](index))
        return tirx.Evaluate(0)

    tir.lanes(2, visit)
    if len(reads) != 1 or not found[0].same_as(reads[0][1]):
        return None
    return reads[0][0]


_BINARY: dict[Any, Callable[[Any, Any], Any]] = {
    tirx.Add: lambda a, b: a + b,
    tirx.Sub: lambda a, b: a - b,
    tirx.Mul: lambda a, b: a * b,
    tirx.FloorDiv: lambda a, b: a // b,
    tirx.FloorMod: lambda a, b: a % b,
    tirx.Min: np.minimum,
    tirx.Max: np.maximum,
    tirx.Div: lambda a, b: a / b,
}


def evaluate(expr: Expr, values: Sequence[tuple[Expr, Map]]) -> Any:
    """`expr` on arrays; numpy's types are those of the expression."""
    if isinstance(expr, int):
        return np.int32(expr)
    if isinstance(expr, tirx.FloatImm):
        return np.float64(expr.value)
    if isinstance(expr, tirx.Cast):
        return evaluate(expr.value, values).astype(str(expr.ty.dtype))
    if isinstance(expr, tirx.IntImm):
        return np.int32(int(expr.value))
    if isinstance(expr, tirx.Var):
        for name, value in values:
            if expr.same_as(name):
                return value
    operator = _BINARY.get(type(expr))
    if operator is None:
        raise _Irregular
    return operator(evaluate(expr.a, values), evaluate(expr.b, values))


def _pieces(
    output: TensorType,
    operand: TensorType,
    read: Sequence[Expr],
    names: Sequence[Expr],
    physical: Sequence[int],
    block: int,
) -> list[Piece]:
    strides = [int(np.prod(physical[a + 1 :])) for a in range(len(physical))]
    boxes: list[list[tuple[int, int]]] = [[(0, e) for e in physical]]
    channels = output.shape[1] if block else 0
    if block and channels % block and not _same_channels(operand, read, names, physical, block):
        last = channels // block
        whole, rest = list(boxes[0]), list(boxes[0])
        whole[1], rest[1] = (0, last), (last, last + 1)
        rest[-1] = (0, channels % block)
        boxes = [whole, rest] if last else [rest]
    done: list[Piece] = []
    while boxes:
        box = boxes.pop(0)
        if len(done) + len(boxes) > _PIECES:
            raise _Irregular
        values = []
        for a, (name, (begin, end)) in enumerate(zip(names, box, strict=True)):
            line = np.arange(begin, end, dtype=np.int32)
            values.append((name, line.reshape([-1 if k == a else 1 for k in range(len(box))])))
        index = [evaluate(i, values) for i in read]
        flat = np.asarray(operand.layout.flat_index(operand.shape, index))
        flat = np.broadcast_to(flat.reshape((1,) * (len(box) - flat.ndim) + flat.shape),
                               [e - b for b, e in box])  # fmt: skip
        try:
            digits = _digits(flat, strides)
        except _Split as split:
            begin, end = box[split.axis]
            left, right = list(box), list(box)
            left[split.axis] = (begin, begin + split.at)
            right[split.axis] = (begin + split.at, end)
            boxes = [left, right, *boxes]
            continue
        out = sum(b * s for (b, _), s in zip(box, strides, strict=True))
        pad = block - (box[-1][1] - box[-1][0]) if block else 0
        if pad and (not digits or digits[-1].out != 1):
            digits.append(Digit(1, 1, 0))
        done.append(Piece(tuple(digits), out, int(flat.flat[0]), pad))
    return done


def _same_channels(
    operand: TensorType,
    read: Sequence[Expr],
    names: Sequence[Expr],
    shape: Sequence[int],
    block: int,
) -> bool:
    """Whether the channel is passed through, so that zero lanes are copied from zero lanes."""
    if operand.layout.block != block:
        return False
    c = (np.arange(shape[1], dtype=np.int32) * block)[:, None] + np.arange(block, dtype=np.int32)
    values = [(n, np.zeros((1, 1), np.int32)) for n in names]
    values[1] = (names[1], np.arange(shape[1], dtype=np.int32)[:, None])
    values[-1] = (names[-1], np.arange(block, dtype=np.int32)[None])
    return np.array_equal(np.broadcast_to(evaluate(read[1], values), c.shape), c)


def _digits(flat: Map, strides: Sequence[int]) -> list[Digit]:
    """The digits of the map `flat` over axes of these output strides, neighbours merged."""
    first = int(flat.flat[0])
    digits: list[Digit] = []
    total: Any = np.int32(first)
    for axis, stride in enumerate(strides):
        line = flat[tuple(slice(None) if a == axis else 0 for a in range(flat.ndim))] - first
        try:
            found = _factored(line)
        except _Split as split:
            raise _Split(split.at, axis) from None
        digits += [Digit(e, unit * stride, s) for e, unit, s in found]
        total = total + line.reshape([-1 if a == axis else 1 for a in range(flat.ndim)])
    if not np.array_equal(np.broadcast_to(total, flat.shape), flat):
        raise _Irregular
    merged: list[Digit] = []
    for d in digits:
        last = merged[-1] if merged else None
        if last and last.out == d.out * d.extent and last.source == d.source * d.extent:
            merged[-1] = Digit(last.extent * d.extent, d.out, d.source)
        else:
            merged.append(d)
    return merged


def _factored(line: Map) -> list[tuple[int, int, int]]:
    """(extent, unit, source stride) of the digits of a map of one axis, the outermost first."""
    found: list[tuple[int, int, int]] = []
    unit = 1
    while line.size > 1:
        step = int(line[1])
        wrong = np.flatnonzero(line != np.arange(line.size, dtype=np.int64) * step)
        run = int(wrong[0]) if wrong.size else line.size
        if line.size % run:
            raise _Split(line.size // run * run * unit)
        inner = line[:run]
        outer = line[::run]
        if not np.array_equal((outer[:, None] + inner).reshape(-1), line):
            raise _Split(run * unit)
        found.insert(0, (run, unit, step))
        unit *= run
        line = outer
    return found


__all__ = ["Digit", "Piece", "evaluate", "strided"]
