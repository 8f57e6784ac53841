"""What an NVIDIA GPU does while something runs on it: clocks, heat, power, energy, and why it is slow.

Read by NVIDIA's management library (nvidia-ml-py, module `pynvml`). Source: NVML API Reference Guide.
"""

from __future__ import annotations

import ctypes
import importlib
import statistics
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

import msgspec
import numpy as np

from effc.core.backend import Availability
from effc.core.errors import ConfigError
from effc.core.measure import Feeds, Runner

# nvmlClocksEventReasons: bit -> why clocks are below their highest; those that mean less speed than asked for
_REASONS = {
    0x04: "power cap", 0x08: "hardware slowdown", 0x10: "sync boost", 0x20: "heat (software)",
    0x40: "heat (hardware)", 0x80: "power brake",
}  # fmt: skip
_SECONDS = 1.0  # of load for the energy of an inference: the counter steps every 20 to 100 ms


class GpuState(msgspec.Struct, frozen=True, omit_defaults=True):
    """One look at a GPU; None or empty where NVML does not tell."""

    name: str
    driver: str
    celsius: int | None = None
    sm_hz: float | None = None
    sm_hz_most: float | None = None
    memory_hz: float | None = None
    watts: float | None = None
    watts_limit: float | None = None
    others: int = 0  # processes that compute there beside this one
    slowed: tuple[str, ...] = ()  # why the clocks are below the highest


class BatchTime(msgspec.Struct, frozen=True):
    """The time of a whole batch on the device, or why it can't run."""

    batch: int
    median_ms: float | None = None
    per_second: float | None = None
    refused: str = ""


class GpuUse(msgspec.Struct, frozen=True, omit_defaults=True):
    """A subject on a GPU. `host_ms` has both copies in it; rows of the benchmark are of the device alone."""

    before: GpuState | None
    loaded: GpuState | None
    device_ms: float
    host_ms: float
    joules: float | None = None  # of one inference, the idle GPU's share included
    batches: tuple[BatchTime, ...] = ()


@runtime_checkable
class OnGpu(Protocol):
    """A runner whose `time` is a GPU's own; `gpu_bus` is its PCI address as CUDA writes it."""

    @property
    def gpu_bus(self) -> str: ...


def probe() -> Availability:
    """Whether GPUs can be watched here. Never raises."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        try:
            ctypes.CDLL("libnvidia-ml.so.1")
        except OSError:
            return Availability(False, "no NVIDIA driver")
        hint = "pip install 'effc[gpu]'"
        return Availability(
            False, "nvidia-ml-py is not installed: clocks and energy are not read", hint
        )
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return Availability(False, "no NVIDIA driver")
    try:
        return Availability(
            True, versions={"NVIDIA driver": _text(nvml.nvmlSystemGetDriverVersion())}
        )
    finally:
        nvml.nvmlShutdown()


class Gpu:
    """One GPU under NVML; a context manager."""

    def __init__(self, bus: str) -> None:
        self.bus = bus
        self._nvml: Any = None
        self._handle: Any = None

    def __enter__(self) -> Self:
        self._nvml = importlib.import_module("pynvml")
        self._nvml.nvmlInit()
        self._handle = self._nvml.nvmlDeviceGetHandleByPciBusId(self.bus.encode())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._nvml.nvmlShutdown()

    def state(self) -> GpuState:
        """Look once."""
        nvml = self._nvml
        reasons = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons") or 0
        processes = self._ask("nvmlDeviceGetComputeRunningProcesses") or ()
        return GpuState(
            _text(self._ask("nvmlDeviceGetName") or ""),
            _text(nvml.nvmlSystemGetDriverVersion()),
            self._ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
            _times(self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM), 1e6),
            _times(self._ask("nvmlDeviceGetMaxClockInfo", nvml.NVML_CLOCK_SM), 1e6),
            _times(self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM), 1e6),
            _times(self._ask("nvmlDeviceGetPowerUsage"), 1e-3),
            _times(self._ask("nvmlDeviceGetEnforcedPowerLimit"), 1e-3),
            max(len(processes) - 1, 0),
            tuple(text for bit, text in _REASONS.items() if reasons & bit),
        )

    def joules(self) -> float | None:
        """Energy since the driver was loaded (Volta and later); None where there is no counter."""
        return _times(self._ask("nvmlDeviceGetTotalEnergyConsumption"), 1e-3)

    def _ask(self, function: str, *arguments: Any) -> Any:
        """What a function of NVML says; None where this GPU has no answer."""
        try:
            return getattr(self._nvml, function)(self._handle, *arguments)
        except self._nvml.NVMLError:
            return None


def use_of(
    runner: Runner, bus: str, feeds: Feeds, batches: Sequence[int] = (), seconds: float = _SECONDS
) -> GpuUse:
    """What `runner`, entered, does on the GPU at `bus`: latency with and without copies, energy, batches.

    Without NVML the times are all there is.
    """
    if not probe().ok:
        return GpuUse(
            None, None, *_latencies(runner, feeds), batches=_sweep(runner, feeds, batches)
        )
    with Gpu(bus) as gpu:
        before = gpu.state()
        device_ms, host_ms = _latencies(runner, feeds)
        repeats = max(10, int(1e3 * seconds / max(device_ms, 1e-3)))
        joules = _energy(gpu, lambda: runner.time(feeds, repeats), repeats)
        loaded = gpu.state()
        swept = _sweep(runner, feeds, batches)
    return GpuUse(before, loaded, device_ms, host_ms, joules, swept)


def _latencies(runner: Runner, feeds: Feeds) -> tuple[float, float]:
    """Median milliseconds on the device (by its events), and host to host."""
    runner.time(feeds, 20)  # clocks rise under load only
    device = 1e3 * (runner.time(feeds, 50).median or 0.0)
    host = []
    for _ in range(30):
        start = time.perf_counter()
        runner.infer(feeds)
        host.append(time.perf_counter() - start)
    return device, 1e3 * statistics.median(host)


def _energy(gpu: Gpu, load: Callable[[], Any], count: int) -> float | None:
    """Joules of one of the `count` inferences of `load`."""
    begin = gpu.joules()
    load()
    end = gpu.joules()
    if begin is None or end is None or end <= begin:
        return None
    return (end - begin) / count


def _sweep(runner: Runner, feeds: Feeds, batches: Sequence[int]) -> tuple[BatchTime, ...]:
    found = []
    for batch in batches:
        many = {name: np.repeat(a[:1], batch, axis=0) for name, a in feeds.items()}
        try:
            runner.time(many, 5)
            median = runner.time(many, 20).median or 0.0
        except ConfigError as error:
            found.append(BatchTime(batch, refused=str(error)))
            continue
        found.append(BatchTime(batch, 1e3 * median, batch / median if median else None))
    return tuple(found)


def cautions(use: GpuUse) -> list[str]:
    """Why times on the GPU may not repeat."""
    state = use.loaded
    if state is None:
        return []
    notes = [f"{state.name} lowers its clocks: {reason}" for reason in state.slowed]
    if state.others:
        notes.append(f"{state.others} other processes compute on {state.name}")
    return notes


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
