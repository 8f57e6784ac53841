"""The full TensorRT, which can't run here: every call is held to the API of 10.3, 10.16 and 11.1."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from effc.backends.tensorrt import backend as backends
from effc.backends.tensorrt import products
from effc.backends.tensorrt.backend import TensorRTBackend, timing_cache
from effc.backends.tensorrt.build_engine import build
from effc.backends.tensorrt.cuda import Cuda
from effc.backends.tensorrt.engine import Engine
from effc.backends.tensorrt.gpu import Gpu
from effc.backends.tensorrt.layers import read_layers
from effc.backends.tensorrt.options import options_of
from effc.backends.tensorrt.refit import refit
from effc.backends.tensorrt.runner import EngineRunner, GpuDevice
from effc.core.errors import ConfigError, DeviceError, LoweringError
from effc.core.profiles import load_profile
from effc.core.target import Target

VERSIONS = ("10.3", "10.16", "11.1")
H200 = Gpu(0, "NVIDIA H200", "90")
# as the inspector of TensorRT 10 writes it with detailed verbosity
INSPECTED = json.dumps({
    "Layers": [
        {
            "Name": "conv + relu", "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "x", "Dimensions": [1, 8, 16, 16], "Format/Datatype": "Channel major FP16"}],
            "Outputs": [{"Name": "r", "Dimensions": [1, 16, 9, 9], "Format/Datatype": "Channel major FP16"}],
            "TacticName": "sm90_xmma_fprop", "StreamId": 0,
            "Metadata": "[ONNX Layer: conv]\u001e[ONNX Layer: relu]",
        },
        "reformat",
    ],
    "Bindings": ["x", "y"],
})  # fmt: skip


@pytest.fixture(params=VERSIONS)
def trt(request: pytest.FixtureRequest, contract: ModuleType) -> Any:
    answers = {
        "Builder.build_serialized_network": b"a plan",
        "ITimingCache.serialize": b"timings",
        "EngineInspector.get_engine_information": INSPECTED,
        "IBuilderConfig.can_run_on_DLA": lambda layer: False,
        "INetworkDefinition.num_layers": 2,
        "ILayer.name": "the layer",
        "ILayer.metadata": "[ONNX Layer: conv]",
    }
    return contract.Recorded(request.param, answers)


def request_of(tmp_path: Path, **more: Any) -> dict[str, Any]:
    return {
        "module": "tensorrt",
        "onnx": str(tmp_path / "m.onnx"),
        "plan": str(tmp_path / "p"),
        **more,
    }


def test_a_build_with_every_option(trt: Any, tmp_path: Path) -> None:
    cache = tmp_path / "timings/x.timing"
    asked = request_of(
        tmp_path, workspace=1 << 20, level=4, version_compatible=True, refit=True,
        profiles={"x": [[1, 3], [2, 3], [4, 3]]}, timing_cache=str(cache),
    )  # fmt: skip
    outcome = build(trt, asked)
    assert outcome["ok"] and (tmp_path / "p").read_bytes() == b"a plan"
    assert cache.read_bytes() == b"timings" and list(cache.parent.iterdir()) == [cache]
    assert trt.called("Builder.create_network") == [
        (1 << trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED,)
    ]
    assert trt.called("IBuilderConfig.set_memory_pool_limit") == [
        (trt.MemoryPoolType.WORKSPACE, 1 << 20)
    ]
    flags = {a[0].name for a in trt.called("IBuilderConfig.set_flag")}
    assert flags == {"VERSION_COMPATIBLE", "REFIT"}
    assert trt.called("IOptimizationProfile.set_shape") == [("x", (1, 3), (2, 3), (4, 3))]
    assert trt.written["IBuilderConfig.builder_optimization_level"] == 4
    assert trt.written["IBuilderConfig.profiling_verbosity"] == trt.ProfilingVerbosity.DETAILED
    report = read_layers(outcome["layers"], ["conv", "relu", "folded"])
    assert report.layers[0].nodes == ("conv", "relu") and report.unnamed == ("folded",)
    assert report.layers[0].outputs[0].format == "Channel major FP16"
    build(trt, asked)  # and again: what was timed is read
    assert trt.called("IBuilderConfig.create_timing_cache") == [(b"",), (b"timings",)]


def test_a_timing_cache_of_another_device_is_left_alone(trt: Any, tmp_path: Path) -> None:
    cache = tmp_path / "x.timing"
    cache.write_bytes(b"foreign")
    fits = iter([False, True])
    trt.answers["IBuilderConfig.set_timing_cache"] = lambda *_: next(fits)
    assert build(trt, request_of(tmp_path, timing_cache=str(cache)))["ok"]
    assert trt.called("IBuilderConfig.create_timing_cache") == [(b"foreign",), (b"",)]
    assert all(ignore is False for _, ignore in trt.called("IBuilderConfig.set_timing_cache"))


def test_dla_takes_what_it_can_and_the_rest_is_listed(trt: Any, tmp_path: Path) -> None:
    outcome = build(trt, request_of(tmp_path, dla=1))
    weak = trt.__version__.startswith("10")
    (flags,) = trt.called("Builder.create_network")[0]
    assert (flags == 0) == weak
    set_flags = {a[0].name for a in trt.called("IBuilderConfig.set_flag")}
    assert set_flags == {"GPU_FALLBACK", *(["FP16"] if weak else [])}
    assert trt.written["IBuilderConfig.default_device_type"] == trt.DeviceType.DLA
    assert trt.written["IBuilderConfig.DLA_core"] == 1
    assert outcome["gpu_fallback"] == [{"layer": "the layer", "nodes": "[ONNX Layer: conv]"}] * 2


def test_limited_tactics_need_a_version_that_has_them(trt: Any, tmp_path: Path) -> None:
    if trt.__version__.startswith("10.3"):
        with pytest.raises(SystemExit, match="can't limit tactics"):
            build(trt, request_of(tmp_path, tactics=8))
    else:
        assert build(trt, request_of(tmp_path, tactics=8))["ok"]
        assert trt.written["IBuilderConfig.max_num_tactics"] == 8


def test_what_the_parser_refuses_is_told_with_node_and_operator(trt: Any, tmp_path: Path) -> None:
    trt.answers |= {
        "OnnxParser.parse_from_file": False, "OnnxParser.num_errors": 1,
        "ParserError.code": "ErrorCode.UNSUPPORTED_NODE", "ParserError.node_name": "n",
        "ParserError.node_operator": "Foo", "ParserError.desc": "false",
    }  # fmt: skip
    outcome = build(trt, request_of(tmp_path))
    assert not outcome["ok"] and outcome["stage"] == "parse"
    assert outcome["errors"] == [
        {"code": "UNSUPPORTED_NODE", "node": "n", "op": "Foo", "text": "false"}
    ]
    trt.answers |= {"OnnxParser.parse_from_file": True, "Builder.build_serialized_network": None}
    outcome = build(trt, request_of(tmp_path))
    assert not outcome["ok"] and outcome["stage"] == "build" and not (tmp_path / "p").exists()


def test_the_contract_refuses_what_a_version_lacks(contract: ModuleType) -> None:
    """That is what makes the tests above mean something."""
    old, new = (contract.Recorded(v, {}) for v in ("10.3", "11.1"))
    logger = new.ILogger()
    config = new.Builder(logger).create_builder_config()
    assert old.BuilderFlag.INT8 and not hasattr(new.BuilderFlag, "INT8")
    with pytest.raises(AttributeError):
        config.set_calibration_profile(None)
    with pytest.raises(AttributeError, match="no 'int8_calibrator'"):
        config.int8_calibrator = None
    with pytest.raises(TypeError, match="pool, pool_size"):
        config.set_memory_pool_limit(new.MemoryPoolType.WORKSPACE)
    with pytest.raises(TypeError):
        new.OnnxParser(logger)
    with pytest.raises(AttributeError):
        config.num_optimization_profiles = 3
    with pytest.raises(AttributeError, match="max_num_tactics"):
        old.Builder(logger).create_builder_config().max_num_tactics = 4


def test_the_installed_rtx_module_has_what_the_builder_calls(trt: Any, tmp_path: Path) -> None:
    """The same code drives tensorrt_rtx, whose API is that of TensorRT 11 and a few calls more."""
    rtx = pytest.importorskip("tensorrt_rtx")
    build(trt, request_of(tmp_path, workspace=1, level=1, refit=True, profiles={"x": [[1]] * 3}))
    for name in {n for n, _ in trt.calls} | set(trt.written):
        cls, member = name.split(".")
        assert hasattr(getattr(rtx, cls), member), name


@pytest.mark.parametrize("version", VERSIONS)
def test_refit_exchanges_weights(contract: ModuleType, tmp_path: Path, version: str) -> None:
    trt = contract.Recorded(
        version,
        {
            "ICudaEngine.refittable": True, "ICudaEngine.serialize": b"new plan",
            "Refitter.get_missing_weights": [],
        },
    )  # fmt: skip
    engine, model = tmp_path / "e", tmp_path / "m.onnx"
    engine.write_bytes(b"plan")
    refit(trt, engine, model, tmp_path / "new")
    assert (tmp_path / "new").read_bytes() == b"new plan"
    assert trt.called("OnnxParserRefitter.refit_from_file") == [(str(model),)]
    assert trt.called("Refitter.refit_cuda_engine") == [()]
    for answers, words in (
        ({"ICudaEngine.refittable": False}, "can't take other weights"),
        ({"Refitter.get_missing_weights": ["w1"]}, "lacks the weight 'w1'"),
        ({"Refitter.refit_cuda_engine": False}, "could not refit"),
        (
            {
                "OnnxParserRefitter.refit_from_file": False, "OnnxParserRefitter.num_errors": 1,
                "ParserError.desc": "shape of w1",
                "OnnxParserRefitter.get_error": lambda i: trt.OnnxParser.get_error(None, i),
            },
            "does not fit the engine: shape of w1",
        ),
    ):  # fmt: skip
        before = dict(trt.answers)
        trt.answers |= answers
        with pytest.raises(LoweringError, match=words):
            refit(trt, engine, model, tmp_path / "other")
        trt.answers = before
    trt.answers["Runtime.deserialize_cuda_engine"] = None
    with pytest.raises(DeviceError, match="can't be loaded here"):
        refit(trt, engine, model, tmp_path / "other")
    assert not (tmp_path / "other").exists()


class Driver:
    """A stand-in for the CUDA driver: memory is the host's, a stream is done at once, an event takes 1 ms."""

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.freed: list[int] = []
        self.launched = 0
        self.capturing = False
        self.can_capture = True

    def __getattr__(self, name: str) -> Callable[..., int]:
        if not name.startswith("cu"):
            raise AttributeError(name)
        return lambda *_: 0

    def cuMemAlloc_v2(self, pointer: Any, size: Any) -> int:
        buffer = ctypes.create_string_buffer(size.value)
        pointer._obj.value = ctypes.addressof(buffer)
        self.memory[pointer._obj.value] = buffer
        return 0

    def cuMemFree_v2(self, pointer: Any) -> int:
        self.freed.append(pointer.value)
        return 0

    def cuMemcpyHtoDAsync_v2(self, to: Any, source: Any, size: Any, stream: Any) -> int:
        ctypes.memmove(to.value, source.value, size.value)
        return 0

    def cuMemcpyDtoHAsync_v2(self, to: Any, source: Any, size: Any, stream: Any) -> int:
        ctypes.memmove(to.value, source.value, size.value)
        return 0

    def cuStreamCreate(self, stream: Any, flags: Any) -> int:
        stream._obj.value = 77
        return 0

    def cuStreamEndCapture(self, stream: Any, graph: Any) -> int:
        return 0 if self.can_capture else 901

    def cuGraphLaunch(self, graph: Any, stream: Any) -> int:
        self.launched += 1
        return 0

    def cuEventElapsedTime(self, elapsed: Any, begin: Any, end: Any) -> int:
        elapsed._obj.value = 1.0
        return 0

    def cuGetErrorString(self, status: Any, text: Any) -> int:
        text._obj.value = b"capture is not supported"
        return 0


@pytest.fixture
def running(trt: Any, tmp_path: Path) -> tuple[EngineRunner, Any, Driver]:
    """An engine that doubles x."""
    (tmp_path / "e").write_bytes(b"plan")
    places: dict[str, int] = {}
    shapes: dict[str, tuple[int, ...]] = {}

    def run(stream: int) -> bool:
        assert stream == 77
        n = int(np.prod(shapes["x"]))
        x, y = ((ctypes.c_float * n).from_address(places[k]) for k in "xy")
        y[:] = [2 * v for v in x]
        return True

    trt.answers |= {
        "ICudaEngine.num_io_tensors": 2,
        "ICudaEngine.get_tensor_name": lambda i: "xy"[i],
        "ICudaEngine.get_tensor_mode": lambda n: trt.TensorIOMode["INPUT" if n == "x" else "OUTPUT"],
        "ICudaEngine.get_tensor_dtype": lambda n: trt.DataType.FLOAT,
        "IExecutionContext.set_input_shape": lambda n, s: bool(shapes.update({n: s})) or len(s) == 2,
        "IExecutionContext.get_tensor_shape": lambda n: shapes["x"],
        "IExecutionContext.set_tensor_address": lambda n, p: bool(places.update({n: p})) or True,
        "IExecutionContext.execute_async_v3": run,
    }  # fmt: skip
    driver = Driver()
    device = GpuDevice(H200, "tensorrt")
    return EngineRunner(trt, tmp_path / "e", device, Cuda(0, driver)), trt, driver


def test_a_runner_answers_times_and_frees(running: tuple[EngineRunner, Any, Driver]) -> None:
    runner, trt, driver = running
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    with runner:
        np.testing.assert_array_equal(runner.infer({"x": x})["y"], 2 * x)
        np.testing.assert_array_equal(runner.infer({"x": x.T})["y"], 2 * x.T)  # not contiguous
        larger = np.ones((5, 7), np.float32)  # another shape, more room
        np.testing.assert_array_equal(runner.infer({"x": larger})["y"], 2 * larger)
        measured = runner.time({"x": x}, 5)
        assert measured.seconds == pytest.approx([1e-3] * 5) and driver.launched == 6
        assert measured.device == "NVIDIA H200" and measured.source == "device"
        with pytest.raises(ConfigError, match="takes no 'x' of shape"):
            runner.infer({"x": x[0]})
    assert sorted(driver.freed) == sorted(driver.memory)
    assert len(trt.called("Runtime.deserialize_cuda_engine")) == 1


def test_what_can_not_be_captured_is_enqueued(running: tuple[EngineRunner, Any, Driver]) -> None:
    runner, trt, driver = running
    driver.can_capture = False
    with runner:
        runner.time({"x": np.ones((2, 3), np.float32)}, 4)
    assert driver.launched == 0 and len(trt.called("IExecutionContext.execute_async_v3")) == 7


def test_a_shape_that_depends_on_data_is_refused(running: tuple[EngineRunner, Any, Driver]) -> None:
    runner, trt, _ = running
    trt.answers["IExecutionContext.get_tensor_shape"] = lambda n: (-1, 3)
    with runner, pytest.raises(DeviceError, match="'y' has a shape that depends on data"):
        runner.infer({"x": np.ones((2, 3), np.float32)})


def test_layers_come_from_the_profiler(running: tuple[EngineRunner, Any, Driver]) -> None:
    runner, trt, _ = running
    run = trt.answers["IExecutionContext.execute_async_v3"]

    def profiled(stream: int) -> bool:
        profiler = trt.written.get("IExecutionContext.profiler")
        if profiler is not None:
            profiler.report_layer_time("conv + relu", 0.5)
            profiler.report_layer_time("reformat", 0.25)
        return bool(run(stream))

    trt.answers["IExecutionContext.execute_async_v3"] = profiled
    runner.layer_map = read_layers(INSPECTED).layers
    with runner:
        conv, reformat = runner.layers({"x": np.ones((2, 3), np.float32)}, 3)
    assert (conv.name, conv.nodes, conv.seconds) == ("conv + relu", ("conv", "relu"), 5e-4)
    assert (reformat.nodes, reformat.seconds) == ((), 2.5e-4)


def test_an_engine_of_another_version_says_so(running: tuple[EngineRunner, Any, Driver]) -> None:
    runner, trt, driver = running
    trt.answers["Runtime.deserialize_cuda_engine"] = None
    with pytest.raises(DeviceError, match="tensorrt can't load"), runner:
        pass
    assert not driver.memory


def test_full_is_chosen_where_the_gpu_and_tensorrt_are(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target(load_profile("h200"), precision="int8")
    assert products.product_of(target) == "bundle"
    have = {"tensorrt": "10.16.0"}
    monkeypatch.setattr(products, "installed", lambda m: have.get(m, ""))
    assert products.product_of(target) == "bundle"
    monkeypatch.setattr(products, "gpu_for", lambda sm: H200 if sm == "90" else None)
    assert products.product_of(target) == "full" and products.availability(target).ok
    assert TensorRTBackend().quantization(target) == "tensorrt"
    other = Target(load_profile("rtx-4090"), options={"product": "full"})
    refused = products.availability(other)
    assert not refused.ok and "needs SM89" in refused.reason
    have.clear()
    refused = products.availability(Target(load_profile("h200"), options={"product": "full"}))
    assert "not installed" in refused.reason and "pip install tensorrt" in refused.hint


def test_timings_are_kept_by_device_and_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, graphs: ModuleType
) -> None:
    monkeypatch.setattr(backends, "gpu_for", lambda sm: H200)
    monkeypatch.setattr(backends, "installed", lambda m: "10.16.0.72")
    options = options_of(Target(load_profile("h200"), options={"cache": str(tmp_path)}))
    engine = Engine("full", graphs.conv(), "h200", "90", options)
    assert timing_cache(engine) == tmp_path / "NVIDIA-H200-10.16.0.72.timing"
    engine.product = "rtx"
    assert timing_cache(engine) is None


def test_dla_is_for_boards_that_have_it() -> None:
    orin, nano = (load_profile(n) for n in ("jetson-agx-orin", "jetson-orin-nano"))
    refused = products.availability(Target(nano, options={"dla": "0"}))
    assert not refused.ok and "0 DLA cores" in refused.reason
    assert "DLA" not in products.availability(Target(orin, options={"dla": "1"})).reason
    assert "2 DLA cores" in products.availability(Target(orin, options={"dla": "2"})).reason
