"""One thread, operator by operator: effc's kernels beside onnxruntime running the same operators.

    python tools/bench_ops.py                the table of cases below
    --only TEXT      rows whose label contains TEXT
    --repeats N      rounds, in which the two take turns (default 15); the least is printed
    --target NAME    a profile whose code this machine runs (default host)

Data movement, resizing, elementwise operators, reductions and normalizations; results are checked.
A case marked "blocked" reads and writes NCHWc, as between convolutions, where onnxruntime works on
row-major data. bench_kernels.py does the same for convolutions and products.
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from effc.backends.tvm import compose, tir
from effc.backends.tvm.grouping import fuse, read_ops, type_of
from effc.backends.tvm.isa import Isa, isa_of
from effc.backends.tvm.layout import Layout
from effc.backends.tvm.lower import lower
from effc.backends.tvm.ops.injective import injective
from effc.backends.tvm.ops.resize import resize_kernel
from effc.backends.tvm.ops.strided import strided
from effc.backends.tvm.program import Kernel
from effc.core.profiles import load_profile
from effc.core.shapes import infer_shapes


@dataclass(frozen=True)
class Case:
    """A graph of one operator or a few; `shape` and `dtype` of x, `to` the other end's shape."""

    label: str
    shape: tuple[int, ...]
    nodes: str
    to: tuple[int, ...]
    dtype: str = "float"
    blocked: bool = False

    @property
    def model(self) -> onnx.ModelProto:
        ends = [",".join(map(str, s)) for s in (self.shape, self.to)]
        text = f"g ({self.dtype}[{ends[0]}] x) => ({self.dtype}[{ends[1]}] y) {{ {self.nodes} }}"
        return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]> {text}')


def transposed(
    label: str, shape: tuple[int, ...], perm: tuple[int, ...], dtype: str = "float"
) -> Case:
    """A Transpose."""
    node = f"y = Transpose<perm = [{','.join(map(str, perm))}]>(x)"
    return Case(label, shape, node, tuple(shape[p] for p in perm), dtype)


def resized(
    label: str,
    shape: tuple[int, int, int, int],
    size: tuple[int, int],
    options: str,
    blocked: bool = False,
) -> Case:
    """A Resize of an image to `size`."""
    to = (*shape[:2], *size)
    sizes = ",".join(map(str, to))
    nodes = f"s = Constant<value = int64[4] {{{sizes}}}>() y = Resize<{options}>(x, , , s)"
    return Case(label, shape, nodes, to, blocked=blocked)


def reshaped(shape: tuple[int, ...], name: str) -> str:
    """A constant `name` for Reshape."""
    numbers = ",".join(map(str, shape))
    return f"{name} = Constant<value = int64[{len(shape)}] {{{numbers}}}>()"


def shuffled(c: int, h: int, groups: int) -> Case:
    """A channel shuffle."""
    shape, split = (1, c, h, h), (1, groups, c // groups, h, h)
    nodes = (
        f"{reshaped(split, 's')} {reshaped(shape, 't')} a = Reshape(x, s) "
        "b = Transpose<perm = [0, 2, 1, 3, 4]>(a) y = Reshape(b, t)"
    )
    return Case(f"channel shuffle {c}x{h}x{h} g{groups}", shape, nodes, shape)


def elementwise(op: str, c: int, h: int) -> Case:
    """One activation between convolutions."""
    return Case(
        f"{op} {c}x{h}x{h} blocked", (1, c, h, h), f"y = {op}(x)", (1, c, h, h), "float", True
    )


NEAREST = 'mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"'
LINEAR = 'mode = "linear"'
CASES = [
    transposed("NHWC->NCHW 56x56x64", (1, 56, 56, 64), (0, 3, 1, 2)),
    transposed("NCHW->NHWC 64x56x56", (1, 64, 56, 56), (0, 2, 3, 1)),
    transposed("NHWC->NCHW 224x224x3", (1, 224, 224, 3), (0, 3, 1, 2)),
    transposed("NCHW->NHWC 3x224x224", (1, 3, 224, 224), (0, 2, 3, 1)),
    transposed("NHWC->NCHW 224x224x3 uint8", (1, 224, 224, 3), (0, 3, 1, 2), "uint8"),
    transposed("NHWC->NCHW 7x7x960", (1, 7, 7, 960), (0, 3, 1, 2)),
    transposed("NHWC->NCHW 56x56x64 uint8", (1, 56, 56, 64), (0, 3, 1, 2), "uint8"),
    transposed("NHWC->NCHW 56x56x64 int64", (1, 56, 56, 64), (0, 3, 1, 2), "int64"),
    transposed("tokens 1x197x384", (1, 197, 384), (0, 2, 1)),
    transposed("split heads 197x6x64", (1, 197, 6, 64), (0, 2, 1, 3)),
    transposed("key transposed 6x197x64", (1, 197, 6, 64), (0, 2, 3, 1)),
    Case("NCHW->NCHW16c 64x56x56", (1, 4, 16, 3136), "y = Transpose<perm = [0, 1, 3, 2]>(x)",
         (1, 4, 3136, 16)),
    Case("NCHW16c->NCHW 64x56x56", (1, 4, 3136, 16), "y = Transpose<perm = [0, 1, 3, 2]>(x)",
         (1, 4, 16, 3136)),
    shuffled(116, 28, 2),
    Case("DepthToSpace 2 64x56x56", (1, 64, 56, 56), "y = DepthToSpace<blocksize = 2>(x)",
         (1, 16, 112, 112)),
    Case("SpaceToDepth 2 16x112x112", (1, 16, 112, 112), "y = SpaceToDepth<blocksize = 2>(x)",
         (1, 64, 56, 56)),
    resized("nearest x2 64x56x56", (1, 64, 56, 56), (112, 112), NEAREST),
    resized("nearest x2 64x56x56 blocked", (1, 64, 56, 56), (112, 112), NEAREST, True),
    resized("nearest 28->100 64", (1, 64, 28, 28), (100, 100), NEAREST),
    resized("linear x2 64x56x56", (1, 64, 56, 56), (112, 112), LINEAR),
    resized("linear x2 64x56x56 blocked", (1, 64, 56, 56), (112, 112), LINEAR, True),
    resized("linear x4 21x65x65", (1, 21, 65, 65), (260, 260), LINEAR),
    resized("linear 28->100 64", (1, 64, 28, 28), (100, 100), LINEAR),
    *(elementwise(op, c, 56) for c in (24, 64) for op in ("Relu", "HardSwish", "Sigmoid")),
    Case("Softmax 6x197x197", (6, 197, 197), "y = Softmax(x)", (6, 197, 197)),
    Case("global average 960x7x7", (1, 960, 7, 7), "y = GlobalAveragePool(x)", (1, 960, 1, 1)),
]  # fmt: skip


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy at a multiple of 64 bytes."""
    raw = np.empty(array.nbytes + 64, "uint8")
    start = -raw.ctypes.data % 64
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def kernel_of(case: Case, isa: Isa) -> tuple[Kernel, list[np.ndarray | None]]:
    """The only kernel of a case and its arguments, None for y and x."""
    model = ir.from_proto(case.model)
    infer_shapes(model)
    if not case.blocked:
        program = lower(model, isa)
        (call,) = program.calls
        constants = [program.constants.get(program.root(a)) for a in call.args]
        return program.kernels[call.kernel], constants
    ops, problems = read_ops(model)
    assert not problems, problems
    (group,) = fuse(ops, model.graph.outputs)
    layout = Layout(isa.lanes)
    types = [replace(type_of(v), layout=layout) for v in (*group.outputs, *group.operands)]
    kernel = resize_kernel(group.ops[0].info, "blocked", isa, types[0], types[1])
    if kernel is None or strided(types[0], types[1], compose.body(group)):
        kernel = injective("blocked", isa, types[:1], types[1:], compose.body(group))
    return kernel, [None] * len(types)


def load(kernel: Kernel, isa: Isa, folder: Path) -> Any:
    """The compiled kernel as a C function."""
    module = tir.llvm_module([kernel.func], isa.target())
    stem = folder / kernel.name
    module.write_to_file(f"{stem}.o", "o")
    subprocess.run(["cc", "-shared", "-o", f"{stem}.so", f"{stem}.o", "-lm"], check=True)
    return getattr(ctypes.CDLL(f"{stem}.so"), kernel.name)


def interleaved(a: Callable[[], Any], b: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Least seconds of each, measured in turns of at least 2 ms: others may use the machine too."""

    def timed(f: Callable[[], Any], number: int) -> float:
        start = time.perf_counter()
        for _ in range(number):
            f()
        return (time.perf_counter() - start) / number

    numbers = []
    for f in (a, b):
        timed(f, 2)
        numbers.append(max(1, int(0.002 / timed(f, 3)) + 1))
    pairs = [(timed(a, numbers[0]), timed(b, numbers[1])) for _ in range(repeats)]
    return min(p[0] for p in pairs), min(p[1] for p in pairs)


def bench(case: Case, isa: Isa, folder: Path, repeats: int) -> tuple[float, float]:
    """Least seconds of effc's kernel and of onnxruntime."""
    dtype = np.dtype({"float": "float32"}.get(case.dtype, case.dtype))
    rng = np.random.default_rng(0)
    x = aligned((rng.standard_normal(case.shape) * 3).astype(dtype))
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    net = ort.InferenceSession(
        case.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    expected = net.run(None, {"x": x})[0]
    y = np.zeros(expected.shape, dtype)
    binding = net.io_binding()
    binding.bind_cpu_input("x", x)
    binding.bind_output("y", "cpu", 0, dtype.type, y.shape, y.ctypes.data)

    kernel, constants = kernel_of(case, isa)
    out, source = kernel.params[0], kernel.params[1]
    result = aligned(np.zeros(out.elements, dtype))
    packed = aligned(source.layout.pack(x))
    given = [result, packed]
    arrays = [given.pop(0) if c is None else aligned(c) for c in constants]
    if kernel.scratch_bytes:
        arrays.insert(0, aligned(np.zeros(kernel.scratch_bytes, "uint8")))
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in arrays]
    function = load(kernel, isa, folder)

    def ours() -> None:
        function(*pointers, 0, kernel.tasks)

    ours()
    found = out.layout.unpack(result, out.shape).reshape(expected.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4, err_msg=case.label)
    return interleaved(ours, lambda: net.run_with_iobinding(binding), repeats)


def main() -> None:
    """Print one line a case."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--target", default="host")
    args = parser.parse_args()
    isa = isa_of(load_profile(args.target))
    print(f"{'case':34} {'effc us':>9} {'ort us':>9} {'effc/ort':>9}   ({isa.name}, 1 thread)")
    for number, case in enumerate(CASES):
        if args.only not in case.label:
            continue
        with tempfile.TemporaryDirectory(prefix=f"effc-{number}-") as folder:
            ours, theirs = bench(case, isa, Path(folder), args.repeats)
        print(
            f"{case.label:34} {ours * 1e6:9.1f} {theirs * 1e6:9.1f} {ours / theirs:9.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
