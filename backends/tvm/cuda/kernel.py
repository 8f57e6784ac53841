"""A kernel for a GPU: its source, how it is launched; and TIR kernels with tasks as threads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx

from effc.backends.tvm import tir
from effc.backends.tvm.cuda.cuda_c import Printer, memory_type
from effc.backends.tvm.layout import TensorType
from effc.backends.tvm.ops.contract import Lazy, Refused, loaded, storage_dtype, stored
from effc.backends.tvm.ops.injective import parameter, unflatten
from effc.backends.tvm.program import Kernel

Expr = Any
Stmt = Any
THREADS = 128  # of a block, where it makes no difference
_MOST = 2**31 - 1  # blocks along x


@dataclass(frozen=True, slots=True)
class CudaSource:
    """What `Kernel.func` holds for a GPU. `source` defines `extern "C" __global__ void name(...)`.

    `grid`: blocks along x, y, z. `shared`: bytes of shared memory a block. `vectors`: whether it reads 16
    bytes at a time, so that its operands begin at multiples of 16. `multiply`: the tensor-core
    instruction that it must contain, "" for none. The kernel's name in `source` is {name}.
    """

    source: str
    grid: tuple[int, int, int]
    block: int = THREADS
    shared: int = 0
    multiply: str = ""
    product: bool = False  # whether it stands on product.cuh


def signature(params: Sequence[TensorType], outputs: int, names: Sequence[str]) -> str:
    """The parameters of a kernel, as C declares them."""
    declared = []
    for i, (tensor, name) in enumerate(zip(params, names, strict=True)):
        const = "" if i < outputs else "const "
        declared.append(f"{const}{memory_type(storage_dtype(tensor.dtype))} *{name}")
    return ", ".join(declared)


def of_threads(
    name: str,
    params: Sequence[TensorType],
    outputs: int,
    printer: Printer,
    count: int,
    macs: int = 0,
) -> Kernel:
    """The kernel whose thread `t` runs what `printer` printed, for t in [0, count)."""
    names = [f"p{i}" for i in range(len(params))]
    text = "\n".join(
        [
            f'extern "C" __global__ void __launch_bounds__({THREADS}) {name}('
            f"{signature(params, outputs, names)}) {{",
            f"  const int t = blockIdx.x * {THREADS} + threadIdx.x;",
            f"  if (t >= {count}) return;",
            *printer.lines,
            "}",
        ]
    )
    if count > _MOST - THREADS:
        raise Refused(f"its result has {count} elements", "make the model's inputs smaller")
    blocks = -(-count // THREADS)
    source = CudaSource(text, (blocks, 1, 1))
    return Kernel(name, source, count, tuple(params), outputs, macs)


def of_tasks(kernel: Kernel) -> Kernel:
    """A kernel of tasks (program.Kernel, scalar TIR): every task a thread."""
    if kernel.scratch_bytes:
        raise Refused("its kernel needs scratch memory of its own", "build for a CPU")
    func = kernel.func
    *pointers, begin, end = list(func.params)
    names: dict[str, Any] = {f"p{i}": p for i, p in enumerate(pointers)}
    printer = Printer({**names, "begin": begin, "end": end}, natural=("begin", "end"))
    printer.line("const int begin = t, end = t + 1;")
    printer.stmt(func.body)
    return of_threads(
        kernel.name, kernel.params, kernel.outputs, printer, kernel.tasks, kernel.macs
    )


@dataclass(slots=True)
class Element:
    """One element of an output: its flat physical position is the thread's number."""

    out: TensorType
    position: Expr

    @property
    def physical(self) -> tuple[Expr, ...]:
        """Physical coordinates."""
        return unflatten(self.position, self.out.layout.physical_shape(self.out.shape) or (1,))

    @property
    def index(self) -> tuple[Expr, ...]:
        """The logical index; a channel may lie in the padding."""
        if not self.out.shape:
            return ()
        if not self.out.layout.block:
            return self.physical
        n, c, *spatial, lane = self.physical
        return (n, c * self.out.layout.block + lane, *spatial)

    @property
    def inside(self) -> Expr | None:
        """Whether the channel is one of the tensor's; None where that is certain."""
        if not self.out.layout.block or self.out.shape[1] % self.out.layout.block == 0:
            return None
        return self.index[1] < self.out.shape[1]

    @property
    def safe(self) -> tuple[Expr, ...]:
        """The logical index with the channel kept inside the tensor."""
        if self.inside is None:
            return self.index
        n, c, *spatial = self.index
        return (n, tirx.min(c, tirx.const(self.out.shape[1] - 1, "int32")), *spatial)

    def store(self, buffer: Any, value: Expr) -> Stmt:
        """Store `value`, or zero in the padding."""
        value = stored(value, self.out.dtype)
        if self.inside is not None:
            value = tirx.Select(self.inside, value, tirx.const(0, storage_dtype(self.out.dtype)))
        return tirx.BufferStore(buffer, value, [self.position])


def read(buffer: Any, tensor: TensorType) -> Lazy:
    """Elements of `tensor` at logical indices, which are always inside."""

    def at(index: tuple[Expr, ...]) -> Expr:
        flat = tensor.layout.flat_index(tensor.shape, index)
        return loaded(tirx.BufferLoad(buffer, [flat]), tensor.dtype)

    return at


def elementwise(
    name: str,
    out: TensorType,
    operands: Sequence[TensorType],
    body: Callable[[list[Lazy]], Sequence[Lazy]],
) -> Kernel:
    """The kernel that stores `body(operands' lazies)`: every element a thread, zeros in the padding."""
    params = (out, *operands)
    buffers = [parameter(f"p{i}", t) for i, t in enumerate(params)]
    t = tirx.Var("t", "int32")
    element = Element(out, t)

    def statement(_: Expr) -> Stmt:
        (lazy,) = body([read(b, x) for b, x in zip(buffers[1:], operands, strict=True)])
        return element.store(buffers[0], lazy(element.safe))

    count = 0 if any(e == 0 for e in out.shape) else out.elements
    printer = Printer({**{f"p{i}": b for i, b in enumerate(buffers)}, "t": t}, natural=("t",))
    printer.stmt(tir.lanes(1, statement))
    return of_threads(name, params, 1, printer, count)


def itemsize(tensor: TensorType) -> int:
    """Bytes of an element in memory."""
    return int(np.dtype(storage_dtype(tensor.dtype)).itemsize)


def blocks(rows: int, columns: int, tile_m: int, tile_n: int) -> int:
    """How many tiles cover a matrix."""
    return math.ceil(rows / tile_m) * math.ceil(columns / tile_n)
