"""Running an engine on a GPU of this machine: answers, times, times by layer."""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import msgspec
import numpy as np

from effc.backends.tensorrt.build_engine import make_logger
from effc.backends.tensorrt.cuda import Cuda
from effc.backends.tensorrt.gpu import Gpu
from effc.backends.tensorrt.layers import EngineLayer
from effc.core.artifact import Artifact
from effc.core.errors import ConfigError, DeviceError
from effc.core.measure import Array, Feeds, LayerTime, Measurement, Runner


@dataclass(frozen=True, slots=True)
class GpuDevice:
    """A GPU here, and the module that loads engines for it: tensorrt or tensorrt_rtx."""

    gpu: Gpu
    module: str
    source: Literal["device", "emulator"] = "device"

    @property
    def name(self) -> str:
        return self.gpu.name

    def runner(self, artifact: Artifact, threads: int = 1) -> Runner:
        """`threads` is of the CPU, and means nothing here."""
        engine = str(artifact.manifest.details.get("engine", ""))
        if not engine:
            raise ConfigError(
                f"artifact {str(artifact.path)!r} holds no engine",
                hint="a bundle becomes one by effc finish on its device",
            )
        fusion = artifact.path / "fusion.json"
        layers: tuple[EngineLayer, ...] = ()
        if fusion.is_file():
            document = msgspec.json.decode(fusion.read_bytes())
            layers = msgspec.convert(document["layers"], tuple[EngineLayer, ...])
        trt = importlib.import_module(self.module)
        return EngineRunner(trt, artifact.path / engine, self, Cuda(self.gpu.index), layers)


@dataclass(slots=True)
class _Tensor:
    """An input or output on the GPU."""

    name: str
    fed: bool
    dtype: np.dtype[Any]
    shape: tuple[int, ...] = ()
    pointer: int = 0
    room: int = 0


@dataclass(slots=True)
class EngineRunner(Runner):
    """An engine, loaded. Seconds of a measurement are the GPU's, of a CUDA graph where one can be made."""

    trt: Any
    path: Path
    device: GpuDevice
    cuda: Cuda
    layer_map: tuple[EngineLayer, ...] = ()
    engine: Any = None
    context: Any = None
    tensors: dict[str, _Tensor] = field(default_factory=dict)
    runtime: Any = None

    @property
    def gpu_bus(self) -> str:
        """The GPU's PCI address: effc bench watches it there."""
        return self.device.gpu.bus

    def __enter__(self) -> Self:
        self.cuda.__enter__()
        logger = make_logger(self.trt)
        self.runtime = self.trt.Runtime(logger)
        self.engine = self.runtime.deserialize_cuda_engine(self.path.read_bytes())
        if self.engine is None:
            said = [text for kind, text in logger.lines if kind in ("ERROR", "INTERNAL_ERROR")]
            self.cuda.__exit__(None, None, None)
            raise DeviceError(
                f"{self.device.module} can't load {str(self.path)!r}: {(said or ['no reason'])[-1][:300]}",
                hint="an engine runs on the kind of GPU and the TensorRT version that it was built for",
            )
        self.context = self.engine.create_execution_context()
        for index in range(self.engine.num_io_tensors):
            name = self.engine.get_tensor_name(index)
            fed = self.engine.get_tensor_mode(name) == self.trt.TensorIOMode.INPUT
            dtype = np.dtype(self.trt.nptype(self.engine.get_tensor_dtype(name)))
            self.tensors[name] = _Tensor(name, fed, dtype)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # they hold memory of the context that goes with `cuda`
        self.context = self.engine = self.runtime = None
        self.tensors = {}
        self.cuda.__exit__(kind, error, trace)

    def infer(self, feeds: Feeds) -> dict[str, Array]:
        self._load(feeds)
        self._enqueue()
        found = {t.name: np.empty(t.shape, t.dtype) for t in self.tensors.values() if not t.fed}
        for name, array in found.items():
            self.cuda.download(array, self.tensors[name].pointer)
        self.cuda.wait()
        return found

    def time(self, feeds: Feeds, repeats: int) -> Measurement:
        self._load(feeds)
        self._enqueue()
        self.cuda.wait()
        launch = self._graph()
        launch()
        seconds = self.cuda.timed(launch, repeats)
        return Measurement("device", self.device.name, self.device.module, seconds=tuple(seconds))

    def layers(self, feeds: Feeds, repeats: int) -> list[LayerTime]:
        """Median time of each layer. A profiled run waits between layers, so the sum is above `time`."""
        seen: dict[str, list[float]] = {}

        class Profiler(self.trt.IProfiler):  # type: ignore[misc,name-defined]
            def __init__(self, base: Any) -> None:
                base.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                seen.setdefault(layer_name, []).append(ms / 1e3)

        self._load(feeds)
        self._enqueue()
        self.cuda.wait()
        self.context.profiler = Profiler(self.trt.IProfiler)
        for _ in range(repeats):
            self._enqueue()
            self.cuda.wait()
        known = {x.name: x for x in self.layer_map}
        return [
            LayerTime(
                name,
                known[name].type if name in known else "",
                known[name].nodes if name in known else (),
                statistics.median(times),
            )
            for name, times in seen.items()
        ]

    def _load(self, feeds: Feeds) -> None:
        """Put the inputs on the GPU, and make room for the outputs."""
        for tensor in self.tensors.values():
            if tensor.fed:
                array = np.ascontiguousarray(feeds[tensor.name], tensor.dtype)
                tensor.shape = tuple(array.shape)
                if not self.context.set_input_shape(tensor.name, tensor.shape):
                    raise ConfigError(
                        f"the engine takes no {tensor.name!r} of shape {list(tensor.shape)}",
                        hint="feed what it was built for; --backend-option profile opens the batch",
                    )
                self._room(tensor, array.nbytes)
                self.cuda.upload(tensor.pointer, array)
                self.cuda.wait()  # the array may be gone when the copy begins
        for tensor in self.tensors.values():
            if not tensor.fed:
                tensor.shape = tuple(self.context.get_tensor_shape(tensor.name))
                if any(d < 0 for d in tensor.shape):
                    raise DeviceError(
                        f"output {tensor.name!r} has a shape that depends on data: {tensor.shape}",
                        hint="cut the model before NonMaxSuppression or NonZero, or take nms=plugin",
                    )
                self._room(tensor, int(np.prod(tensor.shape)) * tensor.dtype.itemsize)

    def _room(self, tensor: _Tensor, size: int) -> None:
        if size > tensor.room:
            tensor.pointer, tensor.room = self.cuda.allocate(size), size
        self.context.set_tensor_address(tensor.name, tensor.pointer)

    def _enqueue(self) -> None:
        if not self.context.execute_async_v3(int(self.cuda.stream.value or 0)):
            raise DeviceError(f"{self.device.module} could not run {str(self.path)!r}")

    def _graph(self) -> Callable[[], None]:
        """One launch for the whole engine; an engine with control flow can't be captured and is enqueued."""
        try:
            return self.cuda.capture(self._enqueue)
        except DeviceError:
            return self._enqueue
