"""New weights for an engine that was built with `--backend-option refit=yes`, without building it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from effc.backends.tensorrt.build_engine import make_logger, write
from effc.core.errors import DeviceError, LoweringError


def refit(trt: Any, engine: Path, onnx: Path, out: Path) -> None:
    """Write `engine` with the weights of the model `onnx` to `out`; needs the engine's GPU.

    The model is the one that the engine was built from, or one that differs in nothing but weights.
    LoweringError names a weight that is missing or does not fit.
    """
    logger = make_logger(trt)
    runtime = trt.Runtime(logger)
    loaded = runtime.deserialize_cuda_engine(engine.read_bytes())
    if loaded is None:
        raise DeviceError(
            f"{str(engine)!r} can't be loaded here", hint="refit it on the device it was built for"
        )
    if not loaded.refittable:
        raise LoweringError(
            f"{str(engine)!r} can't take other weights",
            hint="build it with --backend-option refit=yes",
        )
    refitter = trt.Refitter(loaded, logger)
    parser = trt.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_file(str(onnx)):
        said = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise LoweringError(
            f"{str(onnx)!r} does not fit the engine: {(said or ['no reason given'])[0][:300]}",
            hint="only weights may differ from the model that it was built from",
        )
    missing = refitter.get_missing_weights()
    if missing:
        raise LoweringError(f"{str(onnx)!r} lacks the weight {missing[0]!r} of the engine")
    if not refitter.refit_cuda_engine():
        said = [text for kind, text in logger.lines if kind == "ERROR"]
        raise LoweringError(f"TensorRT could not refit: {(said or ['no reason given'])[-1][:300]}")
    write(str(out), loaded.serialize())
