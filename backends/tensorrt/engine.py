"""An engine from a legalized model: what is checked before, the build, and what it tells afterwards."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import onnx_ir as ir

from effc.backends.tensorrt.batch import open_batch
from effc.backends.tensorrt.layers import FusionReport, read_layers
from effc.backends.tensorrt.messages import build_error, parser_problems
from effc.backends.tensorrt.model_file import write_onnx
from effc.backends.tensorrt.operators import unsupported_operators
from effc.backends.tensorrt.options import Options
from effc.backends.tensorrt.rules import any_half, quantization_problems, type_problems
from effc.backends.tensorrt.sandbox import Outcome, run_build
from effc.core.errors import ConfigError, Problem, UnsupportedOpError
from effc.core.ir import const, shape_of
from effc.core.source import place_of

ENGINE, FUSION = "model.engine", "fusion.json"
MODULES = {"rtx": "tensorrt_rtx", "full": "tensorrt"}


@dataclass(slots=True)
class Engine:
    """A model that TensorRT's parser takes, and after `build` what was built of it."""

    product: str  # rtx or full
    model: ir.Model
    target: str
    sm: str
    options: Options
    outcome: Outcome | None = None
    fusion: FusionReport = field(default_factory=lambda: FusionReport((), ()))


def static_problems(
    model: ir.Model, product: str, sm: str, options: Options, precision: str = "fp32"
) -> list[Problem]:
    """Everything that is known to be refused, without TensorRT."""
    # `effc check` asks before compression, when float32 is not yet what it will be
    settled = precision == "fp32" or any_half(model.graph)
    found = [
        *unsupported_operators(model.graph, product),
        *type_problems(model.graph, int(sm), product if settled else ""),
        *quantization_problems(model.graph, product),
        *_profile_problems(model.graph, options),
    ]
    return list({(p.node, p.reason): p for p in found}.values())


def _profile_problems(graph: ir.Graph, options: Options) -> Iterator[Problem]:
    fed = {str(v.name): v for v in graph.inputs if const(v) is None}
    for name, shapes in options.profiles.items():
        value = fed.get(name)
        if value is None:
            raise ConfigError(
                f"--backend-option profile names {name!r}, which is no input of the model",
                hint=f"its inputs: {', '.join(fed)}",
            )
        declared = value.shape
        if declared is not None and (
            len(declared) != len(shapes[0])
            or any(
                isinstance(d, int)
                and not a <= d <= b
                or (isinstance(d, int) and a != b and axis > 0)
                for axis, (d, a, b) in enumerate(zip(declared, shapes[0], shapes[2], strict=True))
            )
        ):
            raise ConfigError(
                f"--backend-option profile: the model fixes {name!r} to {declared}",
                hint="a profile gives ranges of dynamic dimensions, and of the batch",
            )
    for name, value in fed.items():
        if shape_of(value) is None and name not in options.profiles:
            users = [u.node for u in value.uses()]
            first = users[0] if users else None
            yield Problem(
                str(first.name) if first is not None else name,
                first.op_type if first is not None else "input",
                f"its input {name!r} has the dynamic shape {value.shape}, and no profile says its range",
                f"fix it with --shape {name}=..., or give --backend-option profile={name}=MIN:OPT:MAX",
                place_of(first) if first is not None else "",
            )


def opened(model: ir.Model, options: Options) -> ir.Model:
    """`model`, with its batch open where a profile asks it and the model has a fixed one."""
    fixed = {
        str(v.name): shapes
        for v in model.graph.inputs
        if (shapes := options.profiles.get(str(v.name))) and shape_of(v) and shapes[0] != shapes[2]
    }
    if not fixed:
        return model
    low, _, high = next(iter(fixed.values()))
    sizes = {(shape_of(v) or (0,))[0] for v in model.graph.inputs if v.name in fixed}
    if len(sizes) > 1 or any((s[0][0], s[2][0]) != (low[0], high[0]) for s in fixed.values()):
        raise ConfigError(
            "--backend-option profile: the inputs have different batches",
            hint="give all of them one range of the first dimension",
        )
    size = sizes.pop()
    # a few samples tell as much as many; the fixed batch has to divide what is compared
    other = next(
        (n for n in (2 * size, 3 * size) if n <= high[0]), high[0] if high[0] != size else low[0]
    )
    return open_batch(model, fixed, other)


def parse(engine: Engine) -> None:
    """Let TensorRT's parser read the model; UnsupportedOpError lists every node that it refuses."""
    outcome = _run(engine, None, None)
    if not outcome.ok:
        problems = parser_problems(engine.model, outcome.errors)
        if not problems:
            raise build_error(outcome, engine.target)
        raise UnsupportedOpError(engine.target, problems)


def build(engine: Engine, out: Path, cache: Path | None = None) -> Mapping[str, Path]:
    """Build the engine below `out`, with its fusion report; LoweringError where TensorRT can't."""
    outcome = _run(engine, out / ENGINE, cache)
    if outcome.stage == "parse" and outcome.errors:
        raise UnsupportedOpError(engine.target, parser_problems(engine.model, outcome.errors))
    if not outcome.ok:
        raise build_error(outcome, engine.target)
    engine.outcome = outcome
    names = [str(n.name) for n in engine.model.graph]
    engine.fusion = read_layers(outcome.layers, names)
    document = {"tensorrt": outcome.version, **msgspec.to_builtins(engine.fusion)}
    text = msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"
    (out / FUSION).write_bytes(text)
    return {"engine": out / ENGINE, "fusion": out / FUSION}


def _run(engine: Engine, plan: Path | None, cache: Path | None) -> Outcome:
    options = engine.options
    with tempfile.TemporaryDirectory(prefix="effc-tensorrt-") as folder:
        path = Path(folder) / "model.onnx"
        write_onnx(engine.model, path)
        request: dict[str, Any] = {
            "module": MODULES[engine.product],
            "onnx": str(path),
            "plan": str(plan or ""),
            "sm": engine.sm if engine.product == "rtx" else "",
            "profiles": {n: [list(s) for s in p] for n, p in options.profiles.items()},
            "workspace": options.workspace,
            "level": options.level,
            "tactics": options.tactics,
            "version_compatible": options.version_compatible,
            "refit": options.refit,
            "dla": options.dla,
            "timing_cache": str(cache) if cache is not None else None,
        }
        return run_build(request, seconds=options.time_limit, memory=options.memory_limit)


def describe(engine: Engine) -> dict[str, Any]:
    """Facts for the manifest. Of an engine that was built also its layers, in short."""
    found: dict[str, Any] = {"product": engine.product, "sm": engine.sm}
    if engine.options.profiles:
        found["profiles"] = {n: [list(s) for s in p] for n, p in engine.options.profiles.items()}
    if engine.outcome is None:
        return found
    found |= {
        "engine": ENGINE,
        "tensorrt": engine.outcome.version,
        "fusion": engine.fusion.summary(),
    }
    if engine.options.version_compatible:
        found["version_compatible"] = True
    if engine.options.refit:
        found["refit"] = True
    if engine.options.dla is not None:
        found["gpu_fallback"] = [msgspec.to_builtins(f) for f in engine.outcome.gpu_fallback]
    return found
