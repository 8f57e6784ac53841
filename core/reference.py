"""The reference: onnxruntime, with and without its own optimizations."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from effc.core.errors import FrontendError
from effc.core.integers import DOMAIN
from effc.core.integers import reference as integers
from effc.core.measure import Array, Feeds, LayerTime, Measurement, Runner
from effc.core.ortprofile import profile_nodes

# over protobuf's 2 GB limit a model must go through files
_IN_MEMORY_BYTES = 1 << 30


class OnnxRuntimeRunner(Runner):
    """Runs an IR model or an ONNX file with onnxruntime on the CPU."""

    def __init__(
        self,
        model: ir.Model | Path,
        *,
        threads: int = 1,
        optimize: bool = True,
        integer_kernels: bool = True,
        name: str = "",
    ) -> None:
        """`integer_kernels` off: Q/DQ is computed in float, as ONNX defines it, however optimized."""
        self.model = model
        self.integer_kernels = integer_kernels
        self.threads = threads
        self.optimize = optimize
        self.name = name or f"onnxruntime {ort.__version__}"
        self._session: ort.InferenceSession | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        try:
            self._session = ort.InferenceSession(
                self._source(),
                self._options(),
                providers=["CPUExecutionProvider"],
                # it quantizes float weights between Q and DQ, which is not what the model says
                disabled_optimizers=[] if self.integer_kernels else ["WeightBiasQuantization"],
            )
        except Exception as error:  # onnxruntime raises a type of its own for every status code
            raise FrontendError(
                f"onnxruntime can't run the model: {first_line(error)}",
                hint="goldens come from onnxruntime: the model must run there",
            ) from error
        return self

    def _options(self) -> ort.SessionOptions:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        if not self.integer_kernels:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = (
            level.ORT_ENABLE_ALL if self.optimize else level.ORT_DISABLE_ALL
        )
        return options

    def _source(self) -> str | bytes:
        if isinstance(self.model, Path):
            return str(self.model)
        size = sum(
            v.const_value.nbytes for v in self.model.graph.initializers.values() if v.const_value
        )
        if size < _IN_MEMORY_BYTES:
            return bytes(ir.to_proto(self.model).SerializeToString())
        if self._folder is not None:
            return str(Path(self._folder.name) / "model.onnx")
        self._folder = tempfile.TemporaryDirectory(prefix="effc-")
        path = Path(self._folder.name) / "model.onnx"
        ir.save(self.model, path, external_data="model.data")
        return str(path)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._session = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    @property
    def session(self) -> Any:
        if self._session is None:
            raise RuntimeError("the runner is used outside its with block")
        return self._session

    def infer(self, feeds: Feeds) -> dict[str, Array]:
        names = [o.name for o in self.session.get_outputs()]
        try:
            values = self.session.run(names, dict(feeds))
        except Exception as error:  # onnxruntime raises a type of its own for every status code
            raise FrontendError(f"onnxruntime can't run the model: {first_line(error)}") from error
        return dict(zip(names, values, strict=True))

    def time(self, feeds: Feeds, repeats: int) -> Measurement:
        self.infer(feeds)
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            self.session.run(None, dict(feeds))
            seconds.append(time.perf_counter() - start)
        return Measurement("device", "host", self.name, self.threads, tuple(seconds))

    def layers(self, feeds: Feeds, repeats: int) -> list[LayerTime]:
        """By onnxruntime's profiler, in a session of its own."""
        return profile_nodes(self._source(), self._options(), feeds, repeats)


def record_goldens(
    model: ir.Model, samples: Sequence[Feeds], *, optimize: bool = False
) -> list[dict[str, Array]]:
    """The outputs of the untouched `model` on `samples`, by onnxruntime without optimizations.

    With them (`optimize`) it is the control: the same function, its sums in another order. A model with
    integer operators, which onnxruntime does not know, is computed by their reference.
    """
    if DOMAIN in model.opset_imports:
        return [integers.run(model, s) for s in samples]
    with OnnxRuntimeRunner(model, optimize=optimize) as runner:
        return [runner.infer(s) for s in samples]


def random_feeds(model: ir.Model, count: int, seed: int = 0) -> list[dict[str, Array]]:
    """Synthetic inputs: standard normal floats, small integers, coin-flip booleans. Shapes must be static."""
    rng = np.random.default_rng(seed)
    feeds: list[dict[str, Array]] = []
    for _ in range(count):
        one: dict[str, Array] = {}
        for value in model.graph.inputs:
            if value.name in model.graph.initializers or value.name is None:
                continue
            if value.shape is None or not all(isinstance(d, int) for d in value.shape):
                raise FrontendError(
                    f"input {value.name!r} has the dynamic shape {value.shape}",
                    hint=f"fix it with --shape {value.name}=1,3,224,224",
                )
            shape = tuple(int(d) for d in value.shape)  # type: ignore[arg-type]
            dtype = np.dtype((value.dtype or ir.DataType.FLOAT).numpy())
            one[value.name] = _random(rng, shape, dtype)
        feeds.append(one)
    return feeds


def _random(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    if dtype == np.bool_:
        return np.asarray(rng.random(shape) < 0.5)  # of shape () it would be no array
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return rng.integers(max(info.min, -4), min(info.max, 4), shape, endpoint=True).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def first_line(error: Exception) -> str:
    """The first line of a message that goes on for many."""
    return str(error).strip().splitlines()[0][:300]
