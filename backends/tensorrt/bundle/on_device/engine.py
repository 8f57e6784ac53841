"""An engine by TensorRT's Python module, 8.5 to 11: built, run on the recorded inputs, timed."""

from __future__ import annotations

import ctypes
import importlib
import time
from pathlib import Path
from typing import Any

from .cuda import Cuda
from .plan import Step, Version, parse_version
from .store import Refused, Tensor, item_size, write_atomically

# trt.DataType -> numpy's code
_CODES = {"FLOAT": "f4", "HALF": "f2", "INT8": "i1", "INT32": "i4", "INT64": "i8", "BOOL": "b1",
          "UINT8": "u1"}  # fmt: skip
_NO_MEMORY = ("out of memory", "outofmemory", "insufficient", "bad_alloc", "memoryallocation")


def load() -> tuple[Any, Version] | None:
    """TensorRT's module and its version; None where it is not installed."""
    try:
        tensorrt = importlib.import_module("tensorrt")
    except ImportError:
        return None
    return tensorrt, parse_version(tensorrt.__version__)


def build(
    trt: Any, folder: Path, bundle: dict[str, Any], step: Step, asked: dict[str, Any]
) -> dict[str, Any]:
    """Write the engine of `step` at asked["engine"]; facts for the report."""
    log = _log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(_creation_flags(trt, step))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(folder / step.file)):
        raise Refused(
            f"TensorRT {trt.__version__} can't read {step.file}: {_first_error(parser, log)}"
        )
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, asked["workspace"])
    for name in step.flags:
        config.set_flag(getattr(trt.BuilderFlag, name))
    _tune(trt, config, bundle)
    facts = _onto_dla(trt, config, network, step)
    calibrator = _calibrator(trt, folder / step.calibration) if step.calibration else None
    if calibrator is not None:
        config.int8_calibrator = calibrator
    if bundle["profiles"]:
        profile = builder.create_optimization_profile()
        for name, shapes in bundle["profiles"].items():
            profile.set_shape(name, *(tuple(s) for s in shapes))
        config.add_optimization_profile(profile)
    cache = Path(asked["cache"])
    timing = config.create_timing_cache(cache.read_bytes() if cache.is_file() else b"")
    config.set_timing_cache(timing, False)
    begin = time.perf_counter()
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        reason = log.errors[-1] if log.errors else "no reason given"
        raise Refused(
            f"TensorRT {trt.__version__} can't build {step.file}: {reason}", _remedy(reason, asked)
        )
    facts["build_seconds"] = round(time.perf_counter() - begin, 1)
    write_atomically(cache, bytes(config.get_timing_cache().serialize()))
    write_atomically(Path(asked["engine"]), bytes(plan))
    return facts


def _log(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        """Keeps the errors."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

    return Log()


def _creation_flags(trt: Any, step: Step) -> int:
    known = trt.NetworkDefinitionCreationFlag
    wanted = "STRONGLY_TYPED" if step.strong else "EXPLICIT_BATCH"
    # TensorRT 10 has only explicit batches, and 11 only strong types: a flag that went away is not needed
    return 1 << int(getattr(known, wanted)) if hasattr(known, wanted) else 0


def _first_error(parser: Any, log: Any) -> str:
    if not parser.num_errors:
        return str(log.errors[-1]) if log.errors else "no reason given"
    error = parser.get_error(0)
    if hasattr(error, "node_name"):
        return f"node {error.node_name()!r} ({error.node_operator()}): {error.desc()}"
    return f"node number {error.node()}: {error.desc()}"


def _tune(trt: Any, config: Any, bundle: dict[str, Any]) -> None:
    """The choices of the build that this version has; the others it can't follow."""
    if bundle.get("level") is not None and hasattr(config, "builder_optimization_level"):
        config.builder_optimization_level = bundle["level"]
    if bundle.get("tactics") is not None and hasattr(config, "max_num_tactics"):
        config.max_num_tactics = bundle["tactics"]
    if bundle.get("refit"):
        config.set_flag(trt.BuilderFlag.REFIT)
    if bundle.get("version_compatible"):
        if not hasattr(trt.BuilderFlag, "VERSION_COMPATIBLE"):
            raise Refused(f"TensorRT {trt.__version__} builds no version-compatible engines",
                          "that needs TensorRT 8.6 or later")  # fmt: skip
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)


def _onto_dla(trt: Any, config: Any, network: Any, step: Step) -> dict[str, Any]:
    if step.dla is None:
        return {}
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = step.dla
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    return {"on_gpu": [layer.name for layer in layers if not config.can_run_on_DLA(layer)]}


def _calibrator(trt: Any, path: Path) -> Any:
    version = parse_version(trt.__version__)
    large = 10000 if version[0] >= 10 else 1000
    number = version[0] * large + version[1] * 100 + version[2]
    rest = path.read_text(encoding="utf-8").split("\n", 1)[1]
    text = f"TRT-{number}-EntropyCalibration2\n{rest}"

    class Cached(trt.IInt8EntropyCalibrator2):  # type: ignore[misc]
        """Gives the bundle's scales; there is nothing to calibrate."""

        def __init__(self) -> None:
            trt.IInt8EntropyCalibrator2.__init__(self)

        def get_batch_size(self) -> int:
            return 1

        def get_batch(self, names: Any) -> None:
            return None

        def read_calibration_cache(self) -> bytes:
            return text.encode()

        def write_calibration_cache(self, cache: Any) -> None: ...

    return Cached()


def _remedy(reason: str, asked: dict[str, Any]) -> str:
    if any(word in reason.lower() for word in _NO_MEMORY):
        return out_of_memory_hint(asked["workspace"])
    return ""


def out_of_memory_hint(workspace: int) -> str:
    return (
        f"stop the desktop (sudo systemctl isolate multi-user.target), add swap, or ask for less than"
        f" {workspace >> 20} MiB: --workspace {max(workspace >> 21, 16)}M"
    )


class Running:
    """A loaded engine on one stream, its tensors addressed by name."""

    def __init__(
        self, trt: Any, cuda: Cuda, plan: bytes, shapes: dict[str, tuple[int, ...]]
    ) -> None:
        self.cuda = cuda
        self.log = _log(trt)
        runtime = trt.Runtime(self.log)
        if hasattr(runtime, "engine_host_code_allowed"):  # what version-compatible engines ask for
            runtime.engine_host_code_allowed = True
        self.engine = runtime.deserialize_cuda_engine(plan)
        if self.engine is None:
            raise Refused(
                f"the engine can't be loaded: {(self.log.errors or ['no reason given'])[-1]}"
            )
        self.runtime = runtime
        self.context = self.engine.create_execution_context()
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        inputs = [n for n in names if self.engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        for name in inputs:
            if not self.context.set_input_shape(name, shapes[name]):
                raise Refused(f"the engine takes no {name!r} of shape {list(shapes[name])}")
        self.codes, self.shapes, self.pointers, self.host = {}, {}, {}, {}
        for name in names:
            code = str(self.engine.get_tensor_dtype(name)).rsplit(".", 1)[-1]
            if code not in _CODES:
                raise Refused(f"tensor {name!r} of the engine is {code}, which is not read here")
            self.codes[name] = _CODES[code]
            self.shapes[name] = tuple(self.context.get_tensor_shape(name))
            size = item_size(_CODES[code])
            for extent in self.shapes[name]:
                size *= extent
            self.pointers[name] = cuda.allocate(size)
            self.host[name] = (ctypes.c_char * size)()
            self.context.set_tensor_address(name, self.pointers[name])
        self.inputs, self.outputs = inputs, [n for n in names if n not in inputs]

    def set(self, feeds: dict[str, Tensor]) -> None:
        """Put the inputs where the host's copies start from."""
        for name in self.inputs:
            data = feeds[name].cast(self.codes[name]).data
            ctypes.memmove(self.host[name], data, len(data))

    def host_to_host(self) -> None:
        for name in self.inputs:
            self.cuda.upload(self.pointers[name], self.host[name])
        self.enqueue()
        for name in self.outputs:
            self.cuda.download(self.host[name], self.pointers[name])
        self.cuda.synchronize()

    def enqueue(self) -> None:
        if not self.context.execute_async_v3(self.cuda.stream.value or 0):
            raise Refused(f"the engine failed: {(self.log.errors or ['no reason given'])[-1]}")

    def infer(self, feeds: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:
        """The outputs, in the types of `like`."""
        self.set(feeds)
        self.host_to_host()
        found = {}
        for name in self.outputs:
            tensor = Tensor(self.codes[name], self.shapes[name], bytes(self.host[name]))
            found[name] = tensor.cast(like[name].code) if name in like else tensor
        return found

    def times(self, seconds: float) -> dict[str, list[float]]:
        """Seconds of single inferences, in turn: on the device by events, and host to host by the clock."""
        self.host_to_host()
        begin, end = self.cuda.event(), self.cuda.event()
        device: list[float] = []
        host: list[float] = []
        stop_warming = time.perf_counter() + min(1.0, seconds / 4)
        stop = stop_warming + seconds
        while True:
            self.cuda.record(begin)
            self.enqueue()
            self.cuda.record(end)
            self.cuda.synchronize()
            started = time.perf_counter()
            self.host_to_host()
            now = time.perf_counter()
            if now > stop_warming:
                device.append(self.cuda.seconds_between(begin, end))
                host.append(now - started)
            if now > stop and len(device) >= 10:
                return {"device": device, "host": host}

    def close(self) -> None:
        for pointer in self.pointers.values():
            self.cuda.release(pointer)
        self.pointers = {}
