"""Convolutions and pooling without tiles: every output element a thread that walks over its window.

For depthwise and grouped convolutions, transposed ones, and whatever the products of tiles don't take.
Neighbouring threads have neighbouring channels or pixels, so they read neighbouring elements.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import tirx

from effc.backends.tvm import tir
from effc.backends.tvm.cuda.cuda_c import Printer
from effc.backends.tvm.cuda.kernel import Element, of_threads, read
from effc.backends.tvm.kernels.conv import ConvSpec
from effc.backends.tvm.kernels.conv_transpose import ConvTransposeSpec
from effc.backends.tvm.kernels.epilogue import Epilogue
from effc.backends.tvm.kernels.pool import PoolSpec
from effc.backends.tvm.layout import TensorType
from effc.backends.tvm.ops import math as m
from effc.backends.tvm.ops.contract import Lazy
from effc.backends.tvm.ops.injective import parameter
from effc.backends.tvm.program import Kernel

Array = npt.NDArray[Any]
Expr = Any
Stmt = Any
Finish = Callable[[Expr, tuple[Expr, ...], Sequence[Lazy]], Expr]
"""`(sum, logical index, lazies of the constants)` -> the value before the epilogue."""


@dataclass(frozen=True, slots=True)
class Convolution:
    """A convolution, or a transposed one, of any group. `fill` is what stands outside of the input."""

    input: TensorType
    output: TensorType
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int
    transposed: bool = False
    zero_point: int = 0

    @classmethod
    def of(cls, spec: ConvSpec | ConvTransposeSpec, zero_point: int = 0) -> Convolution:
        """From the specification that kernels for CPUs have."""
        return cls(
            spec.input, spec.output, spec.kernel, spec.strides, spec.pads, spec.dilations, spec.groups,
            isinstance(spec, ConvTransposeSpec), zero_point,
        )  # fmt: skip

    @property
    def inner(self) -> int:
        """Input channels of a group."""
        return self.input.shape[1] // self.groups

    def pack(self, weight: Array) -> Array:
        """[taps, input channel of the group, output channel], flat: threads of neighbours read neighbours."""
        taps, outputs = math.prod(self.kernel), self.output.shape[1]
        if not self.transposed:  # [OC, C/g, *k]
            return np.ascontiguousarray(np.moveaxis(weight.reshape(outputs, self.inner, taps), 0, -1)
                                        .swapaxes(0, 1))  # fmt: skip
        w = weight.reshape(self.groups, self.inner, outputs // self.groups, taps)  # [C, OC/g, *k]
        return np.ascontiguousarray(w.transpose(3, 1, 0, 2).reshape(taps, self.inner, outputs))


def accumulator(dtype: str) -> str:
    """In which type products of `dtype` add up."""
    return {"float64": "float64", "int8": "int32", "uint8": "int32"}.get(dtype, "float32")


def convolution(
    c: Convolution,
    name: str,
    weight: TensorType,
    constants: Sequence[TensorType],
    beside: Sequence[TensorType],
    epilogue: Epilogue,
    finish: Finish,
) -> Kernel:
    """Params: output, input, packed weight, `constants`, `beside`, the epilogue's operands."""
    out = TensorType(c.output.shape, epilogue.dtype or c.output.dtype, c.output.layout)
    params = (out, c.input, weight, *constants, *beside, *epilogue.operands)
    buffers = [parameter(f"p{i}", p) for i, p in enumerate(params)]
    t = tirx.Var("t", "int32")
    element = Element(out, t)
    number = accumulator(c.input.dtype)
    total = tir.local("total", 1, number)
    n, channel, *spatial = element.safe
    per_group = c.output.shape[1] // c.groups
    group = channel // per_group if c.groups > 1 else 0
    data = read(buffers[1], c.input)

    def accumulate(taps: Sequence[Expr], ic: Expr) -> Stmt:
        places, valid = [], []
        for axis, (o, k) in enumerate(zip(spatial, taps, strict=True)):
            size = c.input.shape[2 + axis]
            s, p, d = c.strides[axis], c.pads[axis], c.dilations[axis]
            if c.transposed:
                reach = o + p - k * d
                valid += [reach >= 0] + ([tirx.EQ(tirx.truncmod(reach, s), 0)] if s > 1 else [])
                i = tirx.truncdiv(reach, s) if s > 1 else reach
                valid += [i < size]
            else:
                i = o * s - p + k * d
                inside = (
                    p == 0
                    and (c.output.shape[2 + axis] - 1) * s + d * (c.kernel[axis] - 1) < size + p
                )
                valid += [] if inside else [i >= 0, i < size]
            places.append(i)
        tap: Expr = 0
        for k, extent in zip(taps, c.kernel, strict=True):
            tap = tap * extent + k
        at = (tap * c.inner + ic) * c.output.shape[1] + channel
        w = m.cast(tirx.BufferLoad(buffers[2], [at]), number)
        x = m.cast(data((n, group * c.inner + ic, *places)), number)
        if c.zero_point:
            x = x - tirx.const(c.zero_point, number)
        store = tirx.BufferStore(total, tirx.BufferLoad(total, [0]) + x * w, [0])
        return tirx.IfThenElse(tirx.all(*valid), store, None) if valid else store

    def result(_: Expr) -> Stmt:
        lazies = [read(b, p) for b, p in zip(buffers[3:], params[3:], strict=True)]
        first = len(constants) + len(beside)
        value = finish(tirx.BufferLoad(total, [0]), element.safe, lazies[:first])
        value = epilogue.apply(value, element.safe, lazies[first:])
        return element.store(buffers[0], value)

    printer = Printer({**{f"p{i}": b for i, b in enumerate(buffers)}, "t": t}, natural=("t",))
    printer.stmt(tirx.AllocBuffer(total))
    printer.stmt(tirx.BufferStore(total, tirx.const(0, number), [0]))
    printer.stmt(_nest([*c.kernel, c.inner], lambda at: accumulate(at[:-1], at[-1])))
    printer.stmt(tir.lanes(1, result))
    macs = c.output.shape[0] * math.prod(c.output.shape[1:]) * c.inner * math.prod(c.kernel)
    return of_threads(name, params, 1, printer, out.elements, macs)


def _nest(extents: Sequence[int], body: Callable[[list[Expr]], Stmt]) -> Stmt:
    """Loops over `extents`; those of one step have the index 0."""

    def level(i: int, at: list[Expr]) -> Stmt:
        if i == len(extents):
            return body(at)
        if extents[i] == 1:
            return level(i + 1, [*at, 0])
        return tir.loop("k", extents[i], lambda v: level(i + 1, [*at, v]))

    return level(0, [])


def pool(
    spec: PoolSpec,
    name: str,
    epilogue: Epilogue,
    finish: Callable[[Expr, Expr], Expr] | None = None,
    zero_point: int = 0,
) -> Kernel:
    """Params: output, input, the epilogue's operands. `finish(sum, count)` makes an average otherwise."""
    out = TensorType(spec.output.shape, epilogue.dtype or spec.output.dtype, spec.output.layout)
    params = (out, spec.input, *epilogue.operands)
    buffers = [parameter(f"p{i}", p) for i, p in enumerate(params)]
    t = tirx.Var("t", "int32")
    element = Element(out, t)
    number = accumulator(spec.input.dtype)
    total, count = tir.local("total", 1, number), tir.local("count", 1, "int32")
    n, channel, *spatial = element.safe
    data = read(buffers[1], spec.input)
    low: float = 0
    if not spec.average:
        low = float("-inf") if "float" in number else -(2**31)

    def visit(taps: list[Expr]) -> Stmt:
        places, inside, counted = [], [], []
        for axis, (o, k) in enumerate(zip(spatial, taps, strict=True)):
            i = o * spec.strides[axis] - spec.pads[axis] + k * spec.dilations[axis]
            size, begin = spec.input.shape[2 + axis], spec.pads[axis]
            end = spec.pads[len(spatial) + axis]
            inside += [i >= 0, i < size]
            counted += [i >= -begin, i < size + end]
            places.append(i)
        value = m.cast(data((n, channel, *places)), number)
        if zero_point:
            value = value - tirx.const(zero_point, number)
        held = tirx.BufferLoad(total, [0])
        one = tirx.BufferStore(count, tirx.BufferLoad(count, [0]) + 1, [0])
        if not spec.average:
            # no number among the elements makes the largest none, as in onnxruntime
            take = tirx.BufferStore(total, value, [0])
            other: Expr = value > held
            if "float" in number:
                other = tirx.Or(other, m.is_nan(value))
            return tirx.IfThenElse(tirx.all(*inside), tirx.IfThenElse(other, take, None), None)
        add = tirx.BufferStore(total, held + value, [0])
        if spec.count_include_pad:
            return tir.seq(
                tirx.IfThenElse(tirx.all(*inside), add, None),
                tirx.IfThenElse(tirx.all(*counted), one, None),
            )
        return tirx.IfThenElse(tirx.all(*inside), tir.seq(add, one), None)

    def result(_: Expr) -> Stmt:
        value = tirx.BufferLoad(total, [0])
        if finish is not None:
            value = finish(value, tirx.max(tirx.BufferLoad(count, [0]), 1))
        elif spec.average:
            value = value / m.cast(tirx.max(tirx.BufferLoad(count, [0]), 1), number)
        if finish is None:
            value = m.cast(value, spec.input.dtype)
        lazies = [read(b, p) for b, p in zip(buffers[2:], params[2:], strict=True)]
        return element.store(buffers[0], epilogue.apply(value, element.safe, lazies))

    printer = Printer({**{f"p{i}": b for i, b in enumerate(buffers)}, "t": t}, natural=("t",))
    for local, start in ((total, low), (count, 0)):
        printer.stmt(tirx.AllocBuffer(local))
        printer.stmt(tirx.BufferStore(local, tirx.const(start, str(local.dtype)), [0]))
    printer.stmt(_nest(spec.kernel, visit))
    printer.stmt(tir.lanes(1, result))
    return of_threads(name, params, 1, printer, out.elements)
