"""One thread, kernel by kernel: effc's kernels beside onnxruntime running the same single layer.

    python tools/bench_kernels.py                      the table of shapes below
    python tools/bench_kernels.py MODEL.onnx ...       the distinct Conv and Gemm layers of models
    --repeats N   rounds, in which the two take turns (default 15); the least is printed
    --only TEXT   rows whose label contains TEXT
    --int8        integer kernels beside the fp32 ones and onnxruntime's integer ones (bench_int8.py)

Every convolution is followed by Relu on both sides, and checked against onnxruntime's result.
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, shape_inference
from tvm import tirx

from effc.backends.tvm import tir
from effc.backends.tvm.isa import Isa, host_isa
from effc.backends.tvm.kernels.conv import ConvSpec, conv2d, pack_conv2d
from effc.backends.tvm.kernels.epilogue import Epilogue
from effc.backends.tvm.kernels.gemm import GemmSpec, MatmulSpec, gemm, matmul, pack_gemm
from effc.backends.tvm.layout import PLAIN, Layout, TensorType
from effc.backends.tvm.program import Kernel


@dataclass(frozen=True)
class Conv:
    """A layer; `size` is the input's spatial shape."""

    ic: int
    oc: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int

    def __str__(self) -> str:
        size = "x".join(map(str, self.size))
        kind = "depthwise " if self.groups == self.ic == self.oc > 1 else "conv "
        groups = f" g{self.groups}" if self.groups > 1 and not kind.startswith("d") else ""
        kernel = "x".join(map(str, self.kernel))
        return f"{kind}{self.ic}->{self.oc}@{size} {kernel} s{self.strides[0]}{groups}"


@dataclass(frozen=True)
class Gemm:
    """A[m, k] @ B[k, n] with constant B."""

    m: int
    k: int
    n: int

    def __str__(self) -> str:
        return f"gemm {self.m}x{self.k}x{self.n}"


@dataclass(frozen=True)
class Matmul:
    """A[batch, m, k] @ B[batch, k, n] of two activations; `transposed`: B is [batch, n, k]."""

    batch: int
    m: int
    k: int
    n: int
    transposed: bool = False

    def __str__(self) -> str:
        return f"matmul {self.batch}x{self.m}x{self.k}x{self.n}{' bT' * self.transposed}"


Layer = Conv | Gemm | Matmul


def square(ic: int, oc: int, h: int, k: int, stride: int = 1, groups: int = 1) -> Conv:
    """A square convolution with "same" padding."""
    return Conv(ic, oc, (h, h), (k, k), (stride, stride), ((k - 1) // 2,) * 4, (1, 1), groups)


TABLE: list[Layer] = [
    square(64, 64, 56, 3),
    square(128, 128, 28, 3),
    square(256, 256, 14, 3),
    square(512, 512, 7, 3),
    square(64, 64, 56, 1),
    square(192, 192, 28, 1),
    square(960, 960, 7, 1),
    square(192, 192, 28, 3, 1, 192),
    square(384, 384, 14, 3, 1, 384),
    square(960, 960, 7, 3, 1, 960),
    square(3, 64, 224, 7, 2),
    square(3, 32, 224, 3, 2),
    square(128, 256, 28, 3, 2),
    square(96, 96, 112, 3, 2, 96),
    square(24, 144, 56, 1),
    Gemm(1, 1280, 1000),
    Gemm(197, 192, 768),
    Gemm(197, 768, 192),
    Gemm(196, 3072, 768),
    Matmul(12, 197, 64, 197, True),
    Matmul(12, 197, 197, 64),
]


def layers(path: Path) -> Iterator[Layer]:
    """The Conv and Gemm nodes of a model."""
    model = shape_inference.infer_shapes(onnx.load(path), data_prop=True)
    graph = model.graph
    shapes = {i.name: tuple(i.dims) for i in graph.initializer}
    for v in [*graph.input, *graph.value_info, *graph.output]:
        dims = [d.dim_value or 1 for d in v.type.tensor_type.shape.dim]
        shapes.setdefault(v.name, tuple(dims))
    for node in graph.node:
        a = {x.name: helper.get_attribute_value(x) for x in node.attribute}
        if node.op_type == "Conv":
            x, w = shapes[node.input[0]], shapes[node.input[1]]
            rank = len(x) - 2
            kernel = tuple(a.get("kernel_shape", w[2:]))
            strides = tuple(a.get("strides", (1,) * rank))
            pads = tuple(a.get("pads", (0,) * 2 * rank))
            auto = a.get("auto_pad", b"NOTSET").decode()
            if auto.startswith("SAME"):
                total = [
                    max(0, (-(-i // s) - 1) * s + k - i)
                    for i, s, k in zip(x[2:], strides, kernel, strict=True)
                ]
                low = [t // 2 if auto == "SAME_UPPER" else -(-t // 2) for t in total]
                pads = (*low, *(t - b for t, b in zip(total, low, strict=True)))
            dilations = tuple(a.get("dilations", (1,) * rank))
            yield Conv(x[1], w[0], x[2:], kernel, strides, pads, dilations, a.get("group", 1))
        elif node.op_type in ("Gemm", "MatMul") and node.input[1] in shapes:
            x, w = shapes[node.input[0]], shapes[node.input[1]]
            if len(w) == 2 and len(x) == 2:
                k, n = w[::-1] if a.get("transB") else w
                yield Gemm(x[0], k, n)


def relu(value: Any, index: Any, loads: Any) -> Any:
    """max(value, 0)."""
    return tirx.max(value, tirx.const(0.0, "float32"))


def session(
    nodes: list[Any],
    shape: Sequence[int],
    constants: dict[str, Any],
    more: dict[str, Sequence[int]] | None = None,
) -> Any:
    """onnxruntime on one thread; input x (and `more`), output y."""
    inputs = {"x": shape, **(more or {})}
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, s) for k, s in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def load(kernel: Kernel, isa: Isa, folder: Path) -> Callable[[Sequence[np.ndarray]], Any]:
    """Compile a kernel to a function of physical arrays."""
    module = tir.llvm_module([kernel.func], isa.target())
    stem = folder / kernel.name
    module.write_to_file(f"{stem}.o", "o")
    subprocess.run(["cc", "-shared", "-o", f"{stem}.so", f"{stem}.o", "-lm"], check=True)
    function = getattr(ctypes.CDLL(f"{stem}.so"), kernel.name)

    def bind(arrays: Sequence[np.ndarray]) -> Callable[[], Any]:
        alive = list(arrays)
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in alive]
        return lambda alive=alive: function(*pointers, 0, kernel.tasks)

    return bind


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy at a multiple of 64 bytes."""
    raw = np.empty(array.nbytes + 64, "uint8")
    start = -raw.ctypes.data % 64
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


@dataclass(frozen=True)
class Row:
    """One measured layer; `ours` and `theirs` in seconds."""

    label: str
    macs: int
    count: int
    ours: float
    theirs: float


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


def run_ort(
    net: Any, feeds: dict[str, np.ndarray], shape: Sequence[int]
) -> tuple[Callable[[], Any], Any]:
    """A call of onnxruntime without copies of the input or the output."""
    y = np.zeros(shape, "float32")
    binding = net.io_binding()
    for key, value in feeds.items():
        binding.bind_cpu_input(key, value)
    binding.bind_output("y", "cpu", 0, np.float32, y.shape, y.ctypes.data)
    return (lambda: net.run_with_iobinding(binding)), y


def bench_conv(case: Conv, count: int, isa: Isa, folder: Path, repeats: int) -> Row:
    """A convolution and Relu."""
    rng = np.random.default_rng(0)
    x = aligned(rng.standard_normal((1, case.ic, *case.size), "float32"))
    w = rng.standard_normal((case.oc, case.ic // case.groups, *case.kernel), "float32")
    w /= np.sqrt(w[0].size)
    b = rng.standard_normal(case.oc, "float32")
    conv = helper.make_node(
        "Conv",
        ["x", "w", "b"],
        ["c"],
        kernel_shape=case.kernel,
        strides=case.strides,
        pads=case.pads,
        dilations=case.dilations,
        group=case.groups,
    )
    net = session([conv, helper.make_node("Relu", ["c"], ["y"])], x.shape, {"w": w, "b": b})
    expected = net.run(None, {"x": x})[0]
    theirs, _ = run_ort(net, {"x": x}, expected.shape)
    blocked = Layout(isa.lanes)
    spec = ConvSpec(
        TensorType(x.shape, "float32", PLAIN if case.ic <= 4 else blocked),
        TensorType(expected.shape, "float32", blocked),
        case.kernel,
        case.strides,
        case.pads,
        case.dilations,
        case.groups,
        True,
    )
    kernel = conv2d(spec, "layer", isa, Epilogue((), relu))
    out = aligned(np.zeros(spec.output.elements, "float32"))
    constants = [aligned(c) for c in pack_conv2d(spec, isa, w, b)]
    packed = aligned(spec.input.layout.pack(x))
    ours = load(kernel, isa, folder)([out, packed, *constants])
    ours()
    found = spec.output.layout.unpack(out, expected.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    mine, other = interleaved(ours, theirs, repeats)
    return Row(str(case), kernel.macs, count, mine, other)


def bench_product(case: Gemm | Matmul, count: int, isa: Isa, folder: Path, repeats: int) -> Row:
    """A matrix product, Gemm with a bias."""
    rng = np.random.default_rng(0)
    if isinstance(case, Gemm):
        x = aligned(rng.standard_normal((case.m, case.k), "float32"))
        w = rng.standard_normal((case.k, case.n), "float32") / np.float32(np.sqrt(case.k))
        b = rng.standard_normal(case.n, "float32")
        node = helper.make_node("Gemm", ["x", "w", "b"], ["y"])
        net = session([node], x.shape, {"w": w, "b": b})
        spec = GemmSpec(
            TensorType(x.shape, "float32"), TensorType((case.m, case.n), "float32"), True
        )
        kernel = gemm(spec, "layer", isa)
        others = [aligned(c) for c in pack_gemm(spec, isa, w, b)]
        feeds = {"x": x}
    else:
        x = aligned(rng.standard_normal((case.batch, case.m, case.k), "float32"))
        shape = (case.n, case.k) if case.transposed else (case.k, case.n)
        w = aligned(rng.standard_normal((case.batch, *shape), "float32"))
        nodes = [helper.make_node("MatMul", ["x", "b"], ["y"])]
        if case.transposed:
            nodes = [
                helper.make_node("Transpose", ["w"], ["b"], perm=[0, 2, 1]),
                *nodes,
            ]
        else:
            nodes[0].input[1] = "w"
        net = session(nodes, x.shape, {}, {"w": w.shape})
        out = (case.batch, case.m, case.n)
        matmul_spec = MatmulSpec(
            *(TensorType(s, "float32") for s in (x.shape, w.shape, out)), case.transposed
        )
        kernel = matmul(matmul_spec, "layer", isa)
        others = [w]
        feeds = {"x": x, "w": w}
    expected = net.run(None, feeds)[0]
    theirs, _ = run_ort(net, feeds, expected.shape)
    found = aligned(np.zeros(expected.shape, "float32"))
    arrays = [found, x, *others]
    if kernel.scratch_bytes:
        arrays.insert(0, aligned(np.zeros(kernel.scratch_bytes, "uint8")))
    ours = load(kernel, isa, folder)(arrays)
    ours()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    mine, other = interleaved(ours, theirs, repeats)
    return Row(str(case), kernel.macs, count, mine, other)


def whole(path: Path, repeats: int) -> float:
    """Least seconds of onnxruntime on the model, random inputs, one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    net = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feeds = {
        i.name: rng.random([d if isinstance(d, int) else 1 for d in i.shape], "float32")
        for i in net.get_inputs()
    }
    call = lambda: net.run(None, feeds)  # noqa: E731
    return interleaved(call, call, repeats)[0]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", default="")
    parser.add_argument("--int8", action="store_true")
    args = parser.parse_args()
    isa = host_isa()
    path_of = {p.name: p for p in args.models}
    groups: list[tuple[str, Counter[Layer]]] = []
    if not args.models:
        groups.append(("table", Counter(TABLE)))
    for path in args.models:
        groups.append((path.name, Counter(layers(path))))
    for title, cases in groups:
        print(f"{title} ({isa.name}, one thread)")
        if args.int8:
            from bench_int8 import table

            with tempfile.TemporaryDirectory() as folder:
                table(cases, isa, args.only, args.repeats, Path(folder))
            continue
        print(f"  {'layer':40s} {'n':>3s} {'us':>9s} {'GFLOP/s':>8s} {'ort us':>9s} {'ratio':>6s}")
        rows = []
        for case, count in cases.items():
            if args.only not in str(case):
                continue
            with tempfile.TemporaryDirectory() as folder:
                bench = bench_conv if isinstance(case, Conv) else bench_product
                row = bench(case, count, isa, Path(folder), args.repeats)
            rows.append(row)
            print(
                f"  {row.label:40s} {count:3d} {row.ours * 1e6:9.1f} "
                f"{2 * row.macs / row.ours / 1e9:8.1f} {row.theirs * 1e6:9.1f} "
                f"{row.ours / row.theirs:6.2f}",
                flush=True,
            )
        ours = sum(r.ours * r.count for r in rows)
        theirs = sum(r.theirs * r.count for r in rows)
        if title != "table" and rows:
            print(
                f"  onnxruntime, the whole model: {whole(path_of[title], args.repeats) * 1e6:.1f} us"
            )
        if rows:
            print(
                f"  {'all':40s} {'':3s} {ours * 1e6:9.1f} {'':8s} {theirs * 1e6:9.1f} "
                f"{ours / theirs:6.2f}"
            )


if __name__ == "__main__":
    import bench_kernels  # the copy of these classes that bench_int8 knows

    bench_kernels.main()
