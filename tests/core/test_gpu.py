"""Watching a GPU, with a stand-in for NVML whose values are made up: no GPU is needed, and none is proven."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType, TracebackType
from typing import Any, Self

import numpy as np
import pytest

from effc.bench import bench
from effc.core.artifact import TensorSpec
from effc.core.errors import ConfigError
from effc.core.gpu import Gpu, cautions, probe, use_of
from effc.core.measure import Array, Feeds, Measurement, Runner
from effc.report.terminal import bench_report

BUS = "0000:41:00.0"


class StandIn(ModuleType):
    """NVML's functions over one imaginary card; `joules` is what its counter has (None: no counter)."""

    NVML_TEMPERATURE_GPU, NVML_CLOCK_SM, NVML_CLOCK_MEM = 0, 1, 2

    class NVMLError(Exception):
        pass

    def __init__(
        self, *, driver: bool = True, joules: float | None = 100.0, reasons: int = 0
    ) -> None:
        super().__init__("pynvml")
        self.driver, self.joules, self.reasons, self.open = driver, joules, reasons, 0

    def nvmlInit(self) -> None:
        if not self.driver:
            raise self.NVMLError("Driver Not Loaded")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.95.05"

    def nvmlDeviceGetHandleByPciBusId(self, bus: bytes) -> str:
        assert bus == BUS.encode()
        return "card"

    def nvmlDeviceGetName(self, card: str) -> bytes:
        return b"NVIDIA Imaginary"

    def nvmlDeviceGetTemperature(self, card: str, sensor: int) -> int:
        return 61

    def nvmlDeviceGetClockInfo(self, card: str, clock: int) -> int:
        return {self.NVML_CLOCK_SM: 1740, self.NVML_CLOCK_MEM: 7601}[clock]

    def nvmlDeviceGetMaxClockInfo(self, card: str, clock: int) -> int:
        return 1980

    def nvmlDeviceGetPowerUsage(self, card: str) -> int:
        return 212_500

    def nvmlDeviceGetEnforcedPowerLimit(self, card: str) -> int:
        raise self.NVMLError("Not Supported")

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, card: str) -> int:
        return self.reasons

    def nvmlDeviceGetComputeRunningProcesses(self, card: str) -> list[object]:
        return [object(), object()]

    def nvmlDeviceGetTotalEnergyConsumption(self, card: str) -> int:
        if self.joules is None:
            raise self.NVMLError("Not Supported")
        return int(1000 * self.joules)


class OnCard(Runner):
    """Takes 2 ms and half a joule an inference; batches of at most 8."""

    gpu_bus = BUS

    def __init__(self, nvml: StandIn | None) -> None:
        self.nvml = nvml
        self.ran = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def infer(self, feeds: Feeds) -> dict[str, Array]:
        return {"y": np.zeros(1)}

    def time(self, feeds: Feeds, repeats: int) -> Measurement:
        batch = feeds["x"].shape[0]
        if batch > 8:
            raise ConfigError(f"the engine takes no 'x' of shape [{batch}, 3]")
        if self.nvml is not None and self.nvml.joules is not None:
            self.nvml.joules += 0.5 * repeats
        self.ran += repeats
        return Measurement("device", "card", "engine", seconds=(0.002 * batch,) * repeats)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    made = StandIn()
    monkeypatch.setitem(sys.modules, "pynvml", made)
    return made


FEEDS = {"x": np.ones((1, 3), np.float32)}


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", StandIn(driver=False))
    assert (probe().ok, probe().reason) == (False, "no NVIDIA driver")
    runner = OnCard(None)
    use = use_of(runner, BUS, FEEDS)
    assert use.before is None and use.joules is None and use.device_ms == pytest.approx(2)
    assert cautions(use) == []


def test_stand_in_state(nvml: StandIn) -> None:
    assert probe().versions == {"NVIDIA driver": "580.95.05"}
    nvml.reasons = 0x4 | 0x40 | 0x1
    with Gpu(BUS) as gpu:
        state = gpu.state()
        assert gpu.joules() == 100.0
    assert nvml.open == 0
    assert (state.name, state.celsius, state.watts) == ("NVIDIA Imaginary", 61, 212.5)
    assert (state.sm_hz, state.sm_hz_most, state.memory_hz) == (1.74e9, 1.98e9, 7.601e9)
    assert state.watts_limit is None  # not supported
    assert state.slowed == ("power cap", "heat (hardware)") and state.others == 1


def test_stand_in_use(nvml: StandIn) -> None:
    use = use_of(OnCard(nvml), BUS, FEEDS, (1, 8, 16), seconds=0.1)
    assert use.joules == pytest.approx(0.5)
    assert use.device_ms == pytest.approx(2) and 0 <= use.host_ms < 50
    one, eight, sixteen = use.batches
    assert [one.median_ms, one.per_second] == pytest.approx([2, 500])
    assert [eight.median_ms, eight.per_second] == pytest.approx([16, 500])
    assert sixteen.median_ms is None and "takes no 'x' of shape [16, 3]" in sixteen.refused
    assert nvml.open == 0
    assert cautions(use) == ["1 other processes compute on NVIDIA Imaginary"]


def test_stand_in_without_a_counter(nvml: StandIn) -> None:
    nvml.joules = None
    assert use_of(OnCard(nvml), BUS, FEEDS, seconds=0.01).joules is None


class Subject:
    """What `bench` asks of a Runnable."""

    name, preprocess = "engine", None
    inputs = (TensorSpec("x", "float32", (1, 3)),)

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def runner(self, threads: int) -> Runner:
        return self._runner


def test_stand_in_bench(nvml: StandIn) -> None:
    nvml.reasons = 0x20
    subject: Any = Subject(OnCard(nvml))
    found = bench([subject], seconds=0.1, rounds=2, batches=(4,))
    assert found.gpu["engine"].batches[0].batch == 4
    assert "NVIDIA Imaginary lowers its clocks: heat (software)" in found.cautions
    text = "\n".join(str(part) for part in bench_report(found))
    assert "500 mJ an inference" in text and "1740 MHz" in text and "61 C" in text


def test_batches_need_a_gpu() -> None:
    class OnCpu(OnCard):
        @property
        def gpu_bus(self) -> str:  # type: ignore[override]
            raise AttributeError

    subject: Any = Subject(OnCpu(None))
    assert bench([subject], seconds=0.05, rounds=2).gpu == {}
    with pytest.raises(ConfigError, match="none of these runs on a GPU"):
        bench([subject], seconds=0.05, rounds=2, batches=(4,))


def test_the_stand_in_has_only_names_that_nvml_has() -> None:
    real = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed (extra gpu)")
    names = [n for n in vars(StandIn) if n.lower().startswith("nvml")]
    assert len(names) >= 15 and not [n for n in names if not hasattr(real, n)]
    bits = {
        0x04: "SwPowerCap",
        0x08: "HwSlowdown",
        0x20: "SwThermalSlowdown",
        0x40: "HwThermalSlowdown",
    }
    for bit, name in bits.items():
        assert getattr(real, f"nvmlClocksThrottleReason{name}") == bit
    assert importlib.import_module("effc.core.gpu")._REASONS.keys() >= bits.keys()
