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
from effc.core.target import HardwareProfile, Memory, Number

_MATMUL = 1024  # extent of the cube that is multiplied: 1.07 G multiply-accumulates
_COPY_BYTES = 128 << 20  # that all threads copy in one repeat
_LEAST_BYTES = 256 << 10  # below, a copy is over before its call is
_CACHE_BYTES = 16 << 20  # the share of a virtual machine in a large cache is not known


def measure_peaks(profile: HardwareProfile, repeats: int = 5) -> HardwareProfile:
    """The host's `profile` with what its cores reach together: about half a second of work.

    float32 and int8 multiply-accumulates per second of onnxruntime's matrix product (1024 cubed, best of
    `repeats`), which is a lower bound of the hardware's peak, and bytes per second of copies that stay
    in memory, and in each cache that is large enough to time one.
    """
    peak = {
        dtype: Number(_MATMUL**3 / seconds, "measured", source)
        for dtype, seconds, source in _matmul_seconds(profile.cores, repeats)
    }
    memories: list[Memory] = []
    inner = 0
    for memory in profile.memories:
        size = _COPY_BYTES // profile.cores
        if memory.name != "DRAM":
            size = _copy_in(memory, inner)
            inner = int(memory.bytes.value) // memory.shared_by
        if size:
            rate = Number(
                _copy_rate(size, profile.cores, repeats),
                "measured",
                f"copies of {size >> 10} KiB by each of {profile.cores} threads, read plus written, best "
                f"of {repeats}",
            )
            memory = msgspec.structs.replace(memory, bandwidth=rate)
        memories.append(memory)
    return msgspec.structs.replace(profile, peak=peak, memories=tuple(memories))


def _copy_in(cache: Memory, inner: int) -> int:
    """How many bytes each core copies to time `cache`; 0 where that would time something else.

    Source and copy fill half of the core's share, and twice the `inner` bytes of the cache before it.
    """
    both = min(int(cache.bytes.value) // cache.shared_by // 2, _CACHE_BYTES)
    return both // 2 if both >= max(2 * inner, _LEAST_BYTES) else 0


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


def _copy_rate(size: int, threads: int, repeats: int) -> float:
    """Bytes read plus bytes written per second, by `threads` that copy `size` bytes again and again."""
    count = max(_COPY_BYTES // (size * threads), 1)
    pairs = [(np.zeros(size // 8), np.ones(size // 8)) for _ in range(threads)]

    def copy(pair: tuple[Array, Array]) -> None:
        for _ in range(count):
            np.copyto(*pair)

    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeats):
            start = time.perf_counter()
            list(pool.map(copy, pairs))
            best = min(best, time.perf_counter() - start)
    return 2 * size * threads * count / best
