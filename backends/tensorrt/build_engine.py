"""Builds one engine, in a process of its own: `python build_engine.py REQUEST.json OUTCOME.json`.

A failed build leaves TensorRT's process in a state where later builds report errors of no meaning, and a
crash takes its process along; so effc starts this file by its path (`python -P`). It needs the standard
library and the module that the request names (tensorrt or tensorrt_rtx), whose Python API is nearly the same.

The request: {"module", "onnx": path, "plan": path or "" to parse only, "sm": "89" for TensorRT for RTX,
"profiles": {input: [min, opt, max]}, "workspace", "level", "tactics", "version_compatible", "refit", "dla",
"timing_cache": path}; what is absent or null is TensorRT's default. The outcome: see `Outcome` in
sandbox.py.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from typing import Any


def build(trt: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Parse and build as `request` says; never raises for what is wrong with the model."""
    begun = time.monotonic()
    logger = make_logger(trt)
    outcome: dict[str, Any] = {
        "stage": "parse", "ok": False, "version": str(trt.__version__), "errors": [], "messages": [],
        "layers": "", "gpu_fallback": [], "warnings": [], "where": "",
    }  # fmt: skip
    builder = trt.Builder(logger)
    network = builder.create_network(network_flags(trt, request))
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse_from_file(str(request["onnx"]))
    if not parsed:
        outcome["errors"] = [describe(parser.get_error(i)) for i in range(parser.num_errors)]
    elif request.get("plan"):
        outcome["stage"] = "build"
        config, cache = configure(trt, builder, network, request, outcome)
        plan = builder.build_serialized_network(network, config)
        if plan is not None:
            write(request["plan"], plan)
            outcome["ok"] = True
            save_cache(config, cache, request.get("timing_cache"))
            outcome["layers"] = inspect(trt, logger, request)
    else:
        outcome["ok"] = True
    outcome["seconds"] = time.monotonic() - begun
    outcome["layers"] = outcome["layers"] or next(
        (text for _, text in logger.lines if text.startswith("Layers:")), ""
    )
    # the last part of the network that was compiled, with its nodes
    parts = [text for _, text in logger.lines if text.startswith("ForeignNode ")]
    outcome["where"] = "" if outcome["ok"] or not parts else parts[-1]
    for kind, role in (
        ("ERROR", "messages"),
        ("INTERNAL_ERROR", "messages"),
        ("WARNING", "warnings"),
    ):
        outcome[role] += [text for severity, text in logger.lines if severity == kind]
    return outcome


def make_logger(trt: Any) -> Any:
    """A logger that keeps what it is told: the verbose log holds the report of the layers."""

    class Kept(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[tuple[str, str]] = []

        def log(self, severity: Any, msg: str) -> None:
            self.lines.append((str(severity).rpartition(".")[2], msg))

    return Kept()


def network_flags(trt: Any, request: dict[str, Any]) -> int:
    """Types are those of the graph; TensorRT 10's DLA takes no such network, and computes in float16."""
    if request.get("dla") is not None and weakly_typed(trt):
        return 0
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def weakly_typed(trt: Any) -> bool:
    """Whether this TensorRT still chooses types itself: 11 does not."""
    return hasattr(trt.BuilderFlag, "FP16")


def describe(error: Any) -> dict[str, str]:
    """A parser's error as plain texts."""
    return {
        "code": str(error.code()).rpartition(".")[2],
        "node": str(error.node_name()),
        "op": str(error.node_operator()),
        "text": str(error.desc()),
    }


def configure(
    trt: Any, builder: Any, network: Any, request: dict[str, Any], outcome: dict[str, Any]
) -> tuple[Any, Any]:
    """The builder's configuration, and the timing cache where one is kept."""
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if request.get("sm"):
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, "SM" + request["sm"]), 0)
    if request.get("workspace"):
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(request["workspace"]))
    if request.get("level") is not None:
        config.builder_optimization_level = int(request["level"])
    if request.get("tactics"):
        if not hasattr(trt.IBuilderConfig, "max_num_tactics"):
            raise SystemExit(
                f"TensorRT {trt.__version__} can't limit tactics: leave that option out"
            )
        config.max_num_tactics = int(request["tactics"])
    if request.get("version_compatible"):
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if request.get("refit"):
        config.set_flag(trt.BuilderFlag.REFIT)
    if request.get("profiles"):
        profile = builder.create_optimization_profile()
        for name, (low, best, high) in request["profiles"].items():
            profile.set_shape(name, tuple(low), tuple(best), tuple(high))
        config.add_optimization_profile(profile)
    if request.get("dla") is not None:
        use_dla(trt, network, config, int(request["dla"]), outcome)
    return config, load_cache(config, request.get("timing_cache"))


def use_dla(trt: Any, network: Any, config: Any, core: int, outcome: dict[str, Any]) -> None:
    """Let DLA core `core` take the layers that it can; the others are listed and run on the GPU."""
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    if weakly_typed(trt):
        config.set_flag(trt.BuilderFlag.FP16)
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if not config.can_run_on_DLA(layer):
            outcome["gpu_fallback"].append({"layer": layer.name, "nodes": layer.metadata})


def load_cache(config: Any, path: str | None) -> Any:
    """Timings of earlier builds on this device with this version; a cache that does not fit is left."""
    if not path:
        return None
    stored = b""
    if os.path.isfile(path):
        with open(path, "rb") as file:
            stored = file.read()
    cache = config.create_timing_cache(stored)
    if not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def save_cache(config: Any, cache: Any, path: str | None) -> None:
    """Write the timings, beside and renamed: another build may read meanwhile."""
    if cache is None or not path:
        return
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    write(f"{path}.{os.getpid()}", config.get_timing_cache().serialize())
    os.replace(f"{path}.{os.getpid()}", path)


def write(path: str, data: Any) -> None:
    """Write a buffer of TensorRT's."""
    with open(path, "wb") as file:
        file.write(data)


def inspect(trt: Any, logger: Any, request: dict[str, Any]) -> str:
    """The engine inspector's JSON, where the engine can be loaded: on its own device."""
    if request.get("sm") or request.get("dla") is not None:
        return ""  # the engine is another machine's, or there is nothing to see inside a DLA's part
    with open(request["plan"], "rb") as file:
        engine = trt.Runtime(logger).deserialize_cuda_engine(file.read())
    if engine is None:
        return ""
    inspector = engine.create_engine_inspector()
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def main(arguments: list[str]) -> int:
    """Read the request, build, write the outcome."""
    with open(arguments[0], encoding="utf-8") as file:
        request = json.load(file)
    outcome = build(importlib.import_module(request["module"]), request)
    with open(arguments[1], "w", encoding="utf-8") as file:
        json.dump(outcome, file)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
