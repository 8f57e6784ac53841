"""One thread, kernel by kernel: integer kernels beside the fp32 kernel and onnxruntime's QLinearConv.

`python tools/bench_kernels.py --int8 [MODEL.onnx ...]` runs it. All three take turns. Every convolution has
a fused Relu; onnxruntime's is channels-last, so that it transposes nothing. Integer results may differ
from onnxruntime's by one unit where it rounds its multiplier.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from bench_kernels import Conv, Gemm, Layer, aligned, load, relu
from onnx import TensorProto, helper

from effc.backends.tvm.isa import Isa
from effc.backends.tvm.kernels.conv import ConvSpec, conv2d, pack_conv2d
from effc.backends.tvm.kernels.epilogue import Epilogue
from effc.backends.tvm.kernels.gemm import GemmSpec, gemm, pack_gemm
from effc.backends.tvm.kernels.int8_conv import IntConvSpec, int_conv, pack_int_conv
from effc.backends.tvm.kernels.int8_gemm import IntGemmSpec, int_gemm, pack_int_gemm
from effc.backends.tvm.kernels.int8_store import Requantize
from effc.backends.tvm.layout import PLAIN, Layout, TensorType
from effc.backends.tvm.program import Kernel

ZERO = 3  # of the input
HOW = Requantize("uint8")
Run = Callable[[], Any]


@dataclass(frozen=True)
class Row:
    """Seconds of the integer kernel, the fp32 kernel and onnxruntime's."""

    label: str
    macs: int
    count: int
    ours: float
    real: float
    theirs: float


def turns(calls: Sequence[Run], repeats: int) -> list[float]:
    """Least seconds of each, in turns of at least 2 ms."""

    def timed(f: Run, number: int) -> float:
        start = time.perf_counter()
        for _ in range(number):
            f()
        return (time.perf_counter() - start) / number

    numbers = []
    for f in calls:
        timed(f, 2)
        numbers.append(max(1, int(0.002 / timed(f, 3)) + 1))
    rounds = [[timed(f, n) for f, n in zip(calls, numbers, strict=True)] for _ in range(repeats)]
    return [min(column) for column in zip(*rounds, strict=True)]


def bind(kernel: Kernel, isa: Isa, folder: Path, arrays: Sequence[np.ndarray]) -> Run:
    """The kernel on these physical arrays (copied), its output first."""
    held = [arrays[0], *(aligned(a) for a in arrays[1:])]
    if kernel.scratch_bytes:
        held.insert(0, aligned(np.zeros(kernel.scratch_bytes, "uint8")))
    return load(kernel, isa, folder)(held)  # type: ignore[no-any-return]


def peer(
    node: Any, domain: str, x: np.ndarray, constants: dict[str, Any], shape: Sequence[int]
) -> tuple[Run, np.ndarray]:
    """onnxruntime on one thread without copies; uint8 input x, uint8 output y."""
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, None)],
        [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    net = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    y = np.zeros(shape, "uint8")
    binding = net.io_binding()
    binding.bind_cpu_input("x", x)
    binding.bind_output("y", "cpu", 0, np.uint8, y.shape, y.ctypes.data)
    return (lambda: net.run_with_iobinding(binding)), y


def close(found: np.ndarray, theirs: np.ndarray, label: str) -> None:
    """At most one unit apart."""
    worst = np.abs(found.astype(int) - theirs.astype(int)).max(initial=0)
    if worst > 1:
        raise SystemExit(f"{label}: {worst} units from onnxruntime")


def bench_conv(case: Conv, count: int, isa: Isa, folder: Path, repeats: int) -> Row:
    """A convolution."""
    rng = np.random.default_rng(0)
    rank = len(case.size)
    x = rng.integers(0, 256, (1, case.ic, *case.size)).astype(np.uint8)
    w = rng.integers(-127, 128, (case.oc, case.ic // case.groups, *case.kernel)).astype(np.int8)
    b = rng.integers(-9999, 9999, case.oc).astype(np.int32)
    scale = (rng.uniform(0.5, 1, case.oc) / (60 * np.sqrt(w[0].size))).astype(np.float32)
    spatial = [
        (case.size[i] + case.pads[i] + case.pads[rank + i]
         - case.dilations[i] * (case.kernel[i] - 1) - 1) // case.strides[i] + 1
        for i in range(rank)
    ]  # fmt: skip
    shape = (1, case.oc, *spatial)
    blocked = Layout(isa.lanes)

    def spec_of(dtype: str) -> ConvSpec:
        source = PLAIN if case.ic <= 4 else blocked
        return ConvSpec(
            TensorType(x.shape, dtype, source), TensorType(shape, dtype, blocked),
            case.kernel, case.strides, case.pads, case.dilations, case.groups, True,
        )  # fmt: skip

    node = helper.make_node(
        "QLinearConv", ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"], ["y"],
        domain="com.microsoft", channels_last=1, kernel_shape=case.kernel, strides=case.strides,
        pads=case.pads, dilations=case.dilations, group=case.groups,
    )  # fmt: skip
    constants = {
        "xs": np.float32(1), "xz": np.uint8(ZERO), "w": w, "ws": scale,
        "wz": np.zeros(case.oc, np.int8), "ys": np.float32(1), "yz": np.uint8(0), "b": b,
    }  # fmt: skip
    last = aligned(np.ascontiguousarray(np.moveaxis(x, 1, -1)))
    theirs, y = peer(node, "com.microsoft", last, constants, (1, *spatial, case.oc))
    spec = IntConvSpec(spec_of("uint8"), ZERO, HOW)
    kernel = int_conv(spec, "layer", isa)
    out = aligned(np.zeros(spec.conv.output.elements, "uint8"))
    packed = pack_int_conv(spec, isa, w, b, scale)
    ours = bind(kernel, isa, folder, [out, spec.conv.input.layout.pack(x), *packed])
    ours()
    theirs()
    close(spec.conv.output.layout.unpack(out, shape), np.moveaxis(y, -1, 1), str(case))
    fp32 = spec_of("float32")
    weights = pack_conv2d(fp32, isa, w.astype(np.float32), b.astype(np.float32))
    image = fp32.input.layout.pack(x.astype(np.float32))
    result = aligned(np.zeros(fp32.output.elements, "float32"))
    (folder / "real").mkdir()
    real = bind(
        conv2d(fp32, "layer", isa, Epilogue((), relu)),
        isa,
        folder / "real",
        [result, image, *weights],
    )
    return Row(str(case), kernel.macs, count, *turns([ours, real, theirs], repeats))


def bench_gemm(case: Gemm, count: int, isa: Isa, folder: Path, repeats: int) -> Row:
    """A product with constant weights."""
    rng = np.random.default_rng(0)
    x = aligned(rng.integers(0, 256, (case.m, case.k)).astype(np.uint8))
    w = rng.integers(-127, 128, (case.k, case.n)).astype(np.int8)
    b = rng.integers(-9999, 9999, case.n).astype(np.int32)
    scale = (rng.uniform(0.5, 1, case.n) / (60 * np.sqrt(case.k))).astype(np.float32)
    shape = (case.m, case.n)
    node = helper.make_node(
        "QGemm", ["x", "xs", "xz", "w", "ws", "wz", "b", "ys", "yz"], ["y"], domain="com.microsoft"
    )
    constants = {
        "xs": np.float32(1), "xz": np.uint8(ZERO), "w": w, "ws": scale,
        "wz": np.zeros(case.n, np.int8), "b": b, "ys": np.float32(1), "yz": np.uint8(0),
    }  # fmt: skip
    theirs, y = peer(node, "com.microsoft", x, constants, shape)
    spec = IntGemmSpec(TensorType(x.shape, "uint8"), TensorType(shape, "uint8"), ZERO, HOW)
    kernel = int_gemm(spec, "layer", isa)
    out = aligned(np.zeros(shape, "uint8"))
    ours = bind(kernel, isa, folder, [out, x, *pack_int_gemm(spec, isa, w, b, scale)])
    ours()
    theirs()
    close(out, y, str(case))
    fp32 = GemmSpec(TensorType(x.shape, "float32"), TensorType(shape, "float32"), True)
    weights = pack_gemm(fp32, isa, w.astype(np.float32), b.astype(np.float32))
    result = aligned(np.zeros(shape, "float32"))
    (folder / "real").mkdir()
    arrays = [result, x.astype(np.float32), *weights]
    real = bind(gemm(fp32, "layer", isa, Epilogue((), relu)), isa, folder / "real", arrays)
    return Row(str(case), kernel.macs, count, *turns([ours, real, theirs], repeats))


def table(cases: Counter[Layer], isa: Isa, only: str, repeats: int, work: Path) -> None:
    """Measure and print; products of two activations are left out."""
    print(
        f"  {'layer':40s} {'n':>3s} {'us':>8s} {'GOP/s':>6s} {'fp32 us':>8s} {'ort us':>8s} "
        f"{'/fp32':>6s} {'/ort':>6s}"
    )
    rows = []
    for number, (case, count) in enumerate(cases.items()):
        if only not in str(case) or not isinstance(case, (Conv, Gemm)):
            continue
        folder = work / str(number)
        folder.mkdir()
        if isinstance(case, Conv):
            row = bench_conv(case, count, isa, folder, repeats)
        else:
            row = bench_gemm(case, count, isa, folder, repeats)
        rows.append(row)
        print(
            f"  {row.label:40s} {count:3d} {row.ours * 1e6:8.1f} "
            f"{2 * row.macs / row.ours / 1e9:6.0f} {row.real * 1e6:8.1f} {row.theirs * 1e6:8.1f} "
            f"{row.ours / row.real:6.2f} {row.ours / row.theirs:6.2f}",
            flush=True,
        )
    if rows:
        ours, real, theirs = (
            sum(s * r.count for s, r in zip(column, rows, strict=True)) * 1e6
            for column in zip(*((r.ours, r.real, r.theirs) for r in rows), strict=True)
        )
        print(
            f"  {'all':40s} {'':3s} {ours:8.1f} {'':6s} {real:8.1f} {theirs:8.1f} "
            f"{ours / real:6.2f} {ours / theirs:6.2f}"
        )
