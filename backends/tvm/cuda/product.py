"""Products of matrices and convolutions as implicit ones, in tiles: tensor cores for float16 and bytes.

C[m, n] = sum A[m, k] B[n, k]. Rows of a convolution are pixels of the output, columns its channels; k runs
over taps and, inside of each, channels, in units of 16 bytes (`product.cuh` has the loops).
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
from effc.backends.tvm.cuda.cuda_c import Printer, memory_type
from effc.backends.tvm.cuda.direct import Convolution, Finish
from effc.backends.tvm.cuda.kernel import CudaSource, blocks, itemsize, read, signature
from effc.backends.tvm.kernels.epilogue import Epilogue
from effc.backends.tvm.layout import TensorType
from effc.backends.tvm.ops.contract import storage_dtype, stored
from effc.backends.tvm.ops.injective import parameter, unflatten
from effc.backends.tvm.program import Kernel

Array = npt.NDArray[Any]
Expr = Any
Stmt = Any

QUAD = 16  # bytes that a thread fetches at once
_NUMBERS = {"float16": "effc_f16", "int8": "effc_s8", "uint8": "effc_u8", "float32": "effc_f32"}
INSTRUCTIONS = {  # what the PTX of a kernel holds, from SM80 on
    "float16": "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
    "int8": "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32",
    "uint8": "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32",
}
_TILES = ((128, 64), (64, 64), (64, 32), (32, 32))


@dataclass(frozen=True, slots=True)
class Operand:
    """How 16 bytes of a matrix are fetched: a C function body over `row` and `quad`, and in which order."""

    body: str
    by_rows: bool  # neighbouring threads fetch neighbouring rows
    quads: int


def takes(dtype: str) -> bool:
    """Whether there are tiles for numbers of this type."""
    return dtype in _NUMBERS


def tile(rows: int, columns: int, batch: int, cores: int) -> tuple[int, int]:
    """The largest tile that gives every multiprocessor something to do, else the smallest."""
    for m, n in _TILES:
        fits = n <= 32 or columns > n // 2
        if fits and blocks(rows, columns, m, n) * batch >= cores:
            return m, n
    return _TILES[-1]


# fetching


def _assembled(dtype: str, k: int, element: str) -> str:
    """16 bytes put together from single elements; `element` is C over `e`, the position along k."""
    size = np.dtype(dtype).itemsize
    per = QUAD // size
    unsigned = {1: "unsigned char", 2: "unsigned short", 4: "unsigned int"}[size]
    return f"""    union {{ {unsigned} part[{per}]; uint4 all; }} u;
#pragma unroll
    for (int i = 0; i < {per}; ++i) {{
      const int e = quad * {per} + i;
      {unsigned} value = 0;
      if (e < {k}) {{ {element} }}
      u.part[i] = value;
    }}
    return u.all;"""


def _bits(dtype: str, load: str) -> str:
    size = np.dtype(dtype).itemsize
    if size == 4:
        return f"effc_bits<unsigned int>({load})"
    return f"(unsigned {'char' if size == 1 else 'short'})({load})"


def rows_of(name: str, tensor: TensorType, rows: int, k: int, offset: str = "") -> Operand:
    """A row-major matrix [rows, k] at `name + offset`: in units of 16 bytes where rows divide into them."""
    size = itemsize(tensor)
    base = f"{name}{offset}"
    quads = -(-k * size // QUAD)
    if k * size % QUAD == 0:
        body = f"""    if (row >= {rows} || quad >= {quads}) return make_uint4(0, 0, 0, 0);
    return *reinterpret_cast<const uint4 *>({base} + (long long)row * {k} + quad * {QUAD // size});"""
        return Operand(body, False, quads)
    load = _bits(tensor.dtype, f"({base})[(long long)row * {k} + e]")
    element = f"if (row < {rows}) value = {load};"
    return Operand(_assembled(tensor.dtype, k, element), False, quads)


def columns_of(name: str, tensor: TensorType, columns: int, k: int, offset: str = "") -> Operand:
    """The columns of a row-major matrix [k, columns]."""
    load = _bits(tensor.dtype, f"({name}{offset})[(long long)e * {columns} + row]")
    element = f"if (row < {columns}) value = {load};"
    quads = -(-k * itemsize(tensor) // QUAD)
    return Operand(_assembled(tensor.dtype, k, element), True, quads)


def _window(c: Convolution, taps: Sequence[str]) -> tuple[list[str], str, list[str]]:
    """C that finds the input's place of output pixel `row` at `taps`; the condition that it is inside."""
    spatial = c.output.shape[2:]
    lines, rest, places = [], "row", []
    for axis in reversed(range(len(spatial))):
        extent = spatial[axis]
        o = f"o{axis}"
        lines.append(f"const int {o} = {rest} % {extent};" if extent > 1 else f"const int {o} = 0;")
        rest = f"{rest} / {extent}" if extent > 1 else rest
        s, p, d = c.strides[axis], c.pads[axis], c.dilations[axis]
        lines.append(f"const int i{axis} = {o} * {s} - {p} + ({taps[axis]}) * {d};")
        places.append(f"i{axis}")
    inside = [
        f"(unsigned)i{axis} < {c.input.shape[2 + axis]}u"
        for axis in range(len(spatial))
        if not _certain(c, axis)
    ]
    lines.append(f"const int image = {rest};")
    return lines, " && ".join(inside) or "true", list(reversed(places))


def _certain(c: Convolution, axis: int) -> bool:
    """Whether no tap along `axis` reaches out of the input."""
    last = (c.output.shape[2 + axis] - 1) * c.strides[axis]
    reach = last + c.dilations[axis] * (c.kernel[axis] - 1)
    return c.pads[axis] == 0 and reach < c.input.shape[2 + axis]


def _tap(kernel: Sequence[int], tap: str) -> list[str]:
    found, rest = [], tap
    for extent in reversed(kernel):
        found.append(f"{rest} % {extent}" if extent > 1 else "0")
        rest = f"({rest} / {extent})" if extent > 1 else rest
    return list(reversed(found))


def patches_of(name: str, c: Convolution) -> Operand:
    """The patches of a convolution's input as rows. Blocked: k is (tap, channel); plain: (channel, tap)."""
    dtype, size, taps = c.input.dtype, itemsize(c.input), math.prod(c.kernel)
    pixels = c.output.shape[0] * math.prod(c.output.shape[2:])
    spatial = c.input.shape[2:]
    channels = c.input.shape[1]
    if not c.input.layout.block:
        k = taps * channels
        lines, inside, places = _window(c, _tap(c.kernel, f"(e % {taps})" if taps > 1 else "0"))
        at = f"image * {channels} + e / {taps}"
        for extent, place in zip(spatial, places, strict=True):
            at = f"({at}) * {extent} + {place}"
        fill = f"else value = {c.zero_point & 255};" if c.zero_point else ""
        load = _bits(dtype, f"{name}[{at}]")
        element = (
            " ".join(lines) + f" if (row < {pixels}) {{ if ({inside}) value = {load}; {fill} }}"
        )
        return Operand(_assembled(dtype, k, element), True, -(-k * size // QUAD))
    block = c.input.layout.block
    count = -(-channels // block)
    units = count * block * size // QUAD  # of 16 bytes, a tap
    per_block = block * size // QUAD
    lines, inside, places = _window(c, _tap(c.kernel, "tap"))
    unit = f"unit / {per_block}" if per_block > 1 else "unit"
    at = f"image * {count} + {unit}"
    for extent, place in zip(spatial, places, strict=True):
        at = f"({at}) * {extent} + {place}"
    sub = f" + unit % {per_block} * {QUAD // size}" if per_block > 1 else ""
    word = f"0x{(c.zero_point & 255) * 0x01010101:08x}u"
    text = "\n    ".join(
        [
            f"if (row >= {pixels} || quad >= {units * taps}) return make_uint4(0, 0, 0, 0);",
            f"const int tap = quad / {units}, unit = quad % {units};",
            *lines,
            f"if (!({inside})) return make_uint4({word}, {word}, {word}, {word});",
            f"return *reinterpret_cast<const uint4 *>({name} + (long long)({at}) * {block}{sub});",
        ]
    )
    return Operand(f"    {text}", True, units * taps)


def fits(c: Convolution) -> bool:
    """Whether `c` can be an implicit product: one group, and blocks of whole units of 16 bytes."""
    block = c.input.layout.block
    known = takes(c.input.dtype) and c.groups == 1 and not c.transposed
    return known and (not block or block * itemsize(c.input) % QUAD == 0)


def pack_patches(c: Convolution, weight: Array) -> Array:
    """[OC, C, *k] -> [OC, k], in the order of `patches_of`, each row padded with zeros to 16 bytes."""
    outputs, channels = weight.shape[:2]
    flat = weight.reshape(outputs, channels, -1)
    if c.input.layout.block:
        flat = np.pad(flat, ((0, 0), (0, -channels % c.input.layout.block), (0, 0)))
        flat = flat.swapaxes(1, 2)
    return pad_rows(flat.reshape(outputs, -1))


def pad_rows(matrix: Array) -> Array:
    """Rows with zeros up to units of 16 bytes."""
    per = QUAD // matrix.itemsize
    return np.ascontiguousarray(np.pad(matrix, ((0, 0), (0, -matrix.shape[1] % per))))


# the kernel


@dataclass(frozen=True, slots=True)
class Product:
    """`batch` matrices, each [rows, columns]. `index(z, m, n)` is the output's logical index."""

    dtype: str  # of A
    rows: int
    columns: int  # those of the output that are stored, padding included
    k: int
    a: Operand
    b: Operand
    index: Callable[[Expr, Expr, Expr], tuple[Expr, ...]]
    batch: int = 1
    batched: str = ""  # C that finds what A and B need to know of the batch


def product(
    p: Product,
    name: str,
    cores: int,
    output: TensorType,
    inputs: Sequence[TensorType],
    epilogue: Epilogue,
    finish: Finish,
) -> Kernel:
    """Params: output; `inputs`: A, B, then what `finish` reads; the epilogue's operands."""
    out = TensorType(output.shape, epilogue.dtype or output.dtype, output.layout)
    params = (out, *inputs, *epilogue.operands)
    names = [f"p{i}" for i in range(len(params))]
    tile_m, tile_n = tile(p.rows, p.columns, p.batch, cores)
    integer = p.dtype in ("int8", "uint8")
    members = "\n".join(
        f"  {'' if i == 0 else 'const '}{memory_type(storage_dtype(t.dtype))} *{n};"
        for i, (t, n) in enumerate(zip(params, names, strict=True))
    )
    store = _store(p, params, len(inputs), out, epilogue, finish, "int32" if integer else "float32")
    text = f"""struct {name}_product {{
  typedef {_NUMBERS[p.dtype]} number;
  enum {{ ROWS = {p.rows}, COLUMNS = {p.columns}, QUADS = {p.a.quads}, TILE_M = {tile_m}, TILE_N = {tile_n},
         A_BY_ROWS = {int(p.a.by_rows)}, B_BY_ROWS = {int(p.b.by_rows)} }};
{members}
  __device__ __forceinline__ uint4 a(int row, int quad) const {{
{p.batched}{p.a.body}
  }}
  __device__ __forceinline__ uint4 b(int row, int quad) const {{
{p.batched}{p.b.body}
  }}
  __device__ __forceinline__ void store(int m, int n, {"int" if integer else "float"} acc) const {{
    const int z = blockIdx.z;
    (void)z;
{store}
  }}
}};
extern "C" __global__ void __launch_bounds__(128) {name}({signature(params, 1, names)}) {{
  const {name}_product k = {{{", ".join(names)}}};
  effc_product(k);
}}"""
    grid = (math.ceil(p.rows / tile_m), math.ceil(p.columns / tile_n), p.batch)
    shared = 2 * (tile_m + tile_n) * 80
    source = CudaSource(text, grid, 128, shared, INSTRUCTIONS.get(p.dtype, ""), product=True)
    macs = p.batch * p.rows * p.columns * p.k
    return Kernel(name, source, math.prod(grid) * 128, tuple(params), 1, macs)


def _store(
    p: Product,
    params: Sequence[TensorType],
    inputs: int,
    out: TensorType,
    epilogue: Epilogue,
    finish: Finish,
    number: str,
) -> str:
    """C that finishes `acc` at (z, m, n) and stores it."""
    buffers = [parameter(f"p{i}", t) for i, t in enumerate(params)]
    z, row, column, acc = (
        tirx.Var("z", "int32"), tirx.Var("m", "int32"), tirx.Var("n", "int32"), tirx.Var("acc", number),
    )  # fmt: skip
    index = p.index(z, row, column)
    padded = bool(out.layout.block) and out.shape[1] % out.layout.block != 0
    safe = index
    if padded:
        inside = tirx.min(index[1], tirx.const(out.shape[1] - 1, "int32"))
        safe = (index[0], inside, *index[2:])

    def statement(_: Expr) -> Stmt:
        lazies = [read(b, t) for b, t in zip(buffers[3:], params[3:], strict=True)]
        first = inputs - 2
        value = finish(acc, safe, lazies[:first])
        value = stored(epilogue.apply(value, safe, lazies[first:]), out.dtype)
        if padded:
            zero = tirx.const(0, storage_dtype(out.dtype))
            value = tirx.Select(index[1] < out.shape[1], value, zero)
        return tirx.BufferStore(buffers[0], value, [out.layout.flat_index(out.shape, index)])

    names = {f"p{i}": b for i, b in enumerate(buffers)}
    printer = Printer({**names, "z": z, "m": row, "n": column, "acc": acc}, natural=("z", "m", "n"))
    printer.depth = 2
    printer.stmt(tir.lanes(1, statement))
    return "\n".join(printer.lines)


def implicit(c: Convolution, weight: TensorType) -> Product:
    """`c` as a product: rows are pixels. B is [OC, k] as `pack_patches` makes it."""
    spatial = c.output.shape[2:]
    pixels = c.output.shape[0] * math.prod(spatial)
    outputs = c.output.shape[1]
    a = patches_of("p1", c)
    per = QUAD // itemsize(weight)
    b = rows_of("p2", weight, outputs, a.quads * per)

    def index(z: Expr, m: Expr, n: Expr) -> tuple[Expr, ...]:
        image, *places = unflatten(m, (c.output.shape[0], *spatial))
        return (image, n, *places)

    block = c.output.layout.block
    columns = -(-outputs // block) * block if block else outputs
    k = math.prod(c.kernel) * c.input.shape[1]
    return Product(c.input.dtype, pixels, columns, k, a, b, index)
