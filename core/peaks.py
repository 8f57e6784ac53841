"""What this machine reaches when it is timed: the roof that `effc inspect` draws for the host."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from effc.core.measure import Array
from effc.core.reference import OnnxRuntimeRunner
from effc.core.target import HardwareProfile, Number

_MATMUL = 1024  # extent of the cube that is multiplied: 1.07 G multiply-accumulates
_COPY_BYTES = 128 << 20


def measure_peaks(profile: HardwareProfile, repeats: int = 5) -> HardwareProfile:
    """The host's `profile` with what its cores reach together: about half a second of work.

    float32 and int8 multiply-accumulates per second of onnxruntime's matrix product (1024 cubed, best of
    `repeats`), which is a lower bound of the hardware's peak, and bytes per second of a copy.
    """
    peak = {
        dtype: Number(_MATMUL**3 / seconds, "measured", source)
        for dtype, seconds, source in _matmul_seconds(profile.cores, repeats)
    }
    bandwidth = Number(
        _copy_rate(profile.cores, repeats),
        "measured",
        f"copy of {_COPY_BYTES >> 20} MiB by {profile.cores} threads, read plus written, best of {repeats}",
    )
    memories = tuple(
        msgspec.structs.replace(m, bandwidth=bandwidth) if m.name == "DRAM" else m
        for m in profile.memories
    )
    return msgspec.structs.replace(profile, peak=peak, memories=memories)


def _matmul_seconds(threads: int, repeats: int) -> Iterable[tuple[str, float, str]]:
    n = _MATMUL
    rng = np.random.default_rng(0)
    cases: tuple[tuple[str, str, str, Callable[[], Array]], ...] = (
        ("float32", "MatMul", "float", lambda: rng.standard_normal((n, n), np.float32)),
        ("int8", "MatMulInteger", "uint8", lambda: rng.integers(0, 127, (n, n), np.uint8)),
    )
    for dtype, op, declared, make in cases:
        weight = make() if dtype == "float32" else make().astype(np.int8)
        result = "float" if dtype == "float32" else "int32"
        model = onnx.parser.parse_model(
            f'<ir_version: 8, opset_import: ["": 17]> peak ({declared}[{n},{n}] a) => ({result}[{n},{n}] y)'
            f" {{ y = {op}(a, w) }}"
        )
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
        with OnnxRuntimeRunner(ir.from_proto(model), threads=threads) as runner:
            seconds = min(runner.time({"a": make()}, repeats).seconds)
        source = (
            f"onnxruntime {ort.__version__} {op} {n}x{n}x{n}, {threads} threads, best of {repeats}"
        )
        yield dtype, seconds, source


def _copy_rate(threads: int, repeats: int) -> float:
    """Bytes read plus bytes written, per second."""
    source = np.ones(_COPY_BYTES // 8)
    copy = np.zeros_like(source)
    parts = list(zip(np.array_split(copy, threads), np.array_split(source, threads), strict=True))
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeats):
            start = time.perf_counter()
            list(pool.map(lambda pair: np.copyto(*pair), parts))
            best = min(best, time.perf_counter() - start)
    return 2 * _COPY_BYTES / best
