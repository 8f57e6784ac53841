"""Max and average pooling; lanes are channels, as in a depthwise convolution without weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from tvm import tirx

from effc.backends.tvm import tir
from effc.backends.tvm.isa import Isa
from effc.backends.tvm.kernels.axes import Axis
from effc.backends.tvm.kernels.depthwise import Depthwise
from effc.backends.tvm.kernels.epilogue import IDENTITY, Epilogue
from effc.backends.tvm.kernels.loops import decode, int32, load, vector
from effc.backends.tvm.kernels.store import Store, parameter
from effc.backends.tvm.layout import TensorType
from effc.backends.tvm.program import Kernel

Expr = Any
Stmt = Any
LOWEST = float(np.finfo("float32").min)
CHAINS = 8  # independent accumulators of a global pooling


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """ONNX MaxPool and AveragePool. Tensors are [N, C, *spatial] of one layout.

    The output's shape holds what ceil_mode says; `pads`: all begins, then all ends.
    """

    input: TensorType
    output: TensorType
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    average: bool = False
    count_include_pad: bool = False


def pool(spec: PoolSpec, name: str, isa: Isa, epilogue: Epilogue = IDENTITY) -> Kernel:
    """Params: output, input, the epilogue's operands."""
    return Pooling(
        isa, spec.input, spec.output, pool_axes(spec), False, name, epilogue, spec
    ).kernel()


def pool_axes(spec: PoolSpec) -> tuple[Axis, ...]:
    """Which elements each window takes."""
    return tuple(
        Axis(
            spec.input.shape[2 + i],
            spec.output.shape[2 + i],
            spec.strides[i],
            -spec.pads[i],
            spec.dilations[i],
            tuple(range(k)),
        )
        for i, k in enumerate(spec.kernel)
    )


@dataclass
class Pooling(Depthwise):
    """Emits the kernel of a pooling."""

    spec: PoolSpec | None = None

    weighted = False

    def start(self) -> Expr:
        """What a maximum or a sum starts with."""
        assert self.spec
        return tirx.const(0.0 if self.spec.average else LOWEST, "float32")

    def combine(self, total: Expr, value: Expr, weight: Expr | None) -> Expr:
        """One more element."""
        assert self.spec
        return total + value if self.spec.average else tirx.max(total, value)

    def final(self, total: Expr, places: Sequence[Expr]) -> Expr:
        """Divide by the number of elements."""
        assert self.spec
        if not self.spec.average:
            return total
        count = self.count(places)
        if not isinstance(count, int):
            return total / tirx.Cast("float32", count)
        if count & (count - 1) == 0:
            return total * tirx.const(1.0 / count, "float32")
        return total / tirx.const(float(count), "float32")

    def count(self, places: Sequence[Expr]) -> Expr | int:
        """How many elements an average is taken of; a number where it is the same everywhere."""
        assert self.spec
        known, count = 1, int32(1)
        for i, axis in enumerate(self.axes):
            end = self.spec.pads[len(self.axes) + i] if self.spec.count_include_pad else 0
            begin = -axis.offset if self.spec.count_include_pad else 0
            last = axis.reads(axis.count - 1, len(axis.taps) - 1)
            if axis.offset >= -begin and last < axis.size + end:
                known *= len(axis.taps)
                continue
            base = places[i] * axis.stride + axis.offset
            high = tirx.min((axis.size + end - base + axis.step - 1) // axis.step, len(axis.taps))
            low = tirx.max((axis.step - 1 - begin - base) // axis.step, 0)
            count = count * (high - low)
        if isinstance(count, tirx.IntImm):
            return known * max(1, int(count.value))
        return tirx.max(count * known, 1)


def global_pool(
    input: TensorType,
    output: TensorType,
    average: bool,
    name: str,
    isa: Isa,
    epilogue: Epilogue = IDENTITY,
) -> Kernel:
    """Pooling over all spatial positions: [N, C, *spatial] -> [N, C, 1...]. Params as for `pool`.

    A blocked input gives a blocked or plain output, a plain input a plain one.
    """
    return GlobalPooling(isa, input, output, average, name, epilogue).kernel()


@dataclass
class GlobalPooling:
    """Emits the kernel of a pooling over all positions."""

    isa: Isa
    input: TensorType
    output: TensorType
    average: bool
    name: str
    epilogue: Epilogue

    number: ClassVar[str] = "float32"  # what is added up
    clean: ClassVar[bool] = True  # whether the average of zeros is zero

    def fetch(self, value: Expr) -> Expr:
        """An element of the input as a number that is added up."""
        return value

    @property
    def start(self) -> Expr:
        """What a maximum or a sum starts with."""
        return tirx.const(0.0 if self.average else LOWEST, "float32")

    def kernel(self) -> Kernel:
        """Tasks are image x block of channels."""
        n, channels = self.input.shape[:2]
        self.lanes = self.isa.lanes
        self.area = math.prod(self.input.shape[2:])
        self.blocked = bool(self.input.layout.block)
        self.blocks = -(-channels // self.lanes) if self.blocked else channels
        params = (self.output, self.input, *self.epilogue.operands)
        names = ["out", "x", *(f"e{i}" for i in range(len(params) - 2))]
        buffers = [parameter(a, t) for a, t in zip(names, params, strict=True)]
        self.x = buffers[1]
        width = self.lanes if self.blocked else 1
        self.store = Store(
            self.output,
            buffers[0],
            self.epilogue,
            buffers[2:],
            width,
            1,
            clean=self.average and self.clean,
        )
        vectors = self.area if self.blocked else self.area // self.lanes
        self.chains = max(1, min(CHAINS, vectors))
        self.acc = tir.local("acc", self.chains * self.lanes, self.number)
        self.single = tir.local("single", 1, self.number)
        order = (("n", n), ("block", self.blocks))

        def body(begin: Expr, end: Expr) -> Stmt:
            task = tirx.Var("task", "int32")
            return tirx.For(task, begin, end - begin, tir.SERIAL, self._task(task, order))

        func = tir.prim_func(self.name, buffers, body, [self.acc, self.single])
        return Kernel(self.name, func, n * self.blocks, params, 1, math.prod(self.input.shape))

    def _combine(self, total: Expr, value: Expr) -> Expr:
        return total + value if self.average else tirx.max(total, value)

    def _task(self, task: Expr, order: Any) -> Stmt:
        stmts: list[Stmt] = []
        at = decode(task, order, stmts)
        lanes = self.lanes
        image = (at["n"] * self.blocks + at["block"]) * self.area
        x0 = tirx.Var("x0", "int32")
        stmts.append(tirx.Bind(x0, (image * lanes if self.blocked else image) + int32(0)))
        start = self.start
        vectors = self.area if self.blocked else self.area // lanes

        def take(k: Expr, chain: int) -> Stmt:
            def body(lane: Expr) -> Stmt:
                i = lane + chain * lanes
                value = self.fetch(load(self.x, x0 + k * lanes + lane))
                return tirx.BufferStore(self.acc, self._combine(load(self.acc, i), value), [i])

            return vector(lanes, body)

        for c in range(self.chains):
            stmts.append(
                vector(lanes, lambda i, c=c: tirx.BufferStore(self.acc, start, [i + c * lanes]))
            )
        whole, rest = divmod(vectors, self.chains)
        if whole:
            chains = range(self.chains)
            stmts.append(
                tir.loop(
                    "k",
                    whole,
                    lambda k: tir.seq(*(take(k * self.chains + c, c) for c in chains)),
                )
            )
        stmts += [take(int32(whole * self.chains + c), c) for c in range(rest)]
        for c in range(1, self.chains):

            def add(lane: Expr, c: int = c) -> Stmt:
                total = self._combine(load(self.acc, lane), load(self.acc, lane + c * lanes))
                return tirx.BufferStore(self.acc, total, [lane])

            stmts.append(vector(lanes, add))
        zeros = [int32(0)] * (len(self.output.shape) - 2)
        if not self.blocked:
            stmts += self._across(x0, vectors * lanes, start)
            index = [at["n"], at["block"], *zeros]
            stmts.append(self.store.vector(lambda _: self.mean(load(self.single, 0)), index, 1))
            return tir.seq(*stmts)
        index = [at["n"], at["block"] * lanes, *zeros]

        def finish(valid: int) -> Stmt:
            return self.store.vector(lambda lane: self.mean(load(self.acc, lane)), index, valid)

        partial = self.output.shape[1] % lanes
        if partial and self.blocks > 1:
            last = at["block"] == self.blocks - 1
            stmts.append(tirx.IfThenElse(last, finish(partial), finish(lanes)))
        else:
            stmts.append(finish(partial or lanes))
        return tir.seq(*stmts)

    def _across(self, x0: Expr, done: int, start: Expr) -> list[Stmt]:
        """Combine the lanes of a vector, and the elements past the last whole vector."""

        def one(value: Expr) -> Stmt:
            return tirx.BufferStore(self.single, self._combine(load(self.single, 0), value), [0])

        stmts: list[Stmt] = [tirx.BufferStore(self.single, start, [0])]
        stmts += [one(load(self.acc, i)) for i in range(self.lanes)]
        stmts += [one(self.fetch(load(self.x, x0 + i))) for i in range(done, self.area)]
        return stmts

    def mean(self, total: Expr) -> Expr:
        """The result of a maximum or a sum."""
        return total / tirx.const(float(self.area), "float32") if self.average else total
