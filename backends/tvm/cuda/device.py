"""The GPUs of this machine, and running a model library on one of them."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from effc.backends.tvm.runner import LIBRARY, LibraryRunner
from effc.core.artifact import Artifact
from effc.core.errors import DeviceError
from effc.core.measure import Feeds, Measurement, Runner

DRIVER = "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CUdevice_attribute: compute capability


@dataclass(frozen=True, slots=True)
class Gpu:
    """The first GPU of this machine; CUDA_VISIBLE_DEVICES says which that is."""

    name: str
    sm: int
    source: Literal["device", "emulator"] = "device"

    def runner(self, artifact: Artifact, threads: int = 1) -> Runner:
        return GpuRunner(artifact, self)


@cache
def gpu() -> Gpu | str:
    """The GPU that libraries run on, or why there is none."""
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return "no NVIDIA driver here"
    device, count, major, minor = (ctypes.c_int() for _ in range(4))
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return "the NVIDIA driver here finds no GPU"
    if driver.cuDeviceGet(ctypes.byref(device), 0):
        return "the NVIDIA driver here refuses its first GPU"
    name = ctypes.create_string_buffer(256)
    driver.cuDeviceGetName(name, len(name), device)
    for value, attribute in ((major, _MAJOR), (minor, _MINOR)):
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    return Gpu(name.value.decode(errors="replace"), major.value * 10 + minor.value)


def runs(sm: int) -> Gpu | str:
    """The GPU here, if code for `sm` runs on it; else why not."""
    found = gpu()
    if isinstance(found, str):
        return found
    if found.sm // 10 != sm // 10 or found.sm < sm:
        return f"no GPU of SM{sm} here ({found.name} is SM{found.sm})"
    return found


class GpuRunner(LibraryRunner):
    """A model library on a GPU. Times are the host's, copies of inputs and outputs included."""

    def __init__(self, artifact: Artifact, device: Gpu) -> None:
        super().__init__(artifact.path / LIBRARY, name="effc cuda")
        self.device = device

    def time(self, feeds: Feeds, repeats: int) -> Measurement:
        timed = super().time(feeds, repeats)
        return Measurement(
            "device", self.device.name, self.name, 1, timed.seconds, peak_bytes=timed.peak_bytes
        )

    def time_on_device(self, feeds: Feeds, repeats: int) -> Measurement:
        """Seconds between events around each inference, without the copies."""
        model = self.model
        model.run(feeds)
        library, times = model._library, (ctypes.c_float * repeats)()
        function = library.effc_model_time_device
        function.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.POINTER(ctypes.c_float)]
        if function(model.handle, repeats, times):
            raise DeviceError(library.effc_model_last_error().decode(errors="replace"))
        seconds = tuple(float(s) for s in np.array(times, np.float64) * 1e-3)
        return Measurement("device", self.device.name, f"{self.name}, without copies", 1, seconds)
