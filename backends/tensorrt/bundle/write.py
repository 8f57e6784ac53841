"""From the legalized model to the files of a bundle."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import onnx
import onnx_ir as ir

from effc.backends.tensorrt.bundle.forms import (
    activation_scales,
    calibration_cache,
    narrow_integers,
    single,
    weights_in_pairs,
)
from effc.backends.tensorrt.bundle.opset import is_quantized, lower_opset, opset_problems
from effc.backends.tensorrt.engine import opened
from effc.backends.tensorrt.legalize import pipeline
from effc.backends.tensorrt.model_file import write_onnx
from effc.backends.tensorrt.options import Options, options_of
from effc.core.check_quantization import check_quantization
from effc.core.errors import InvariantError, Problem, UnsupportedOpError
from effc.core.schemes import scheme
from effc.core.specs import static_specs
from effc.core.target import HardwareProfile, Target

DESCRIPTION = "bundle.json"
CALIBRATION = "calibration.cache"
OLD, NEW = 17, 19  # opsets that TensorRT 8.5 and 10.0 read
QUANTIZED = ("int8", "w4a8", "auto")

# signal to noise of an engine's answers against those of the untouched model, in decibels: what ROUNDED
# promises (core/verify.py), and of float32, which TensorRT computes as TF32, somewhat less than that has
_LEAST_DB = {"fp32": 30.0, "fp16": 15.0, "bf16": 15.0, "int8": 15.0}
_CAP = 4 << 30
_HERE = Path(__file__).parent
_SCRIPT, _PACKAGE = "build_on_device.py", "on_device"


def form_pipelines(target: Target) -> Mapping[str, str]:
    """The forms that a bundle holds beside the model's own, and the passes that make them."""
    if target.precision not in QUANTIZED:
        return {}
    half = dataclasses.replace(target, precision="fp16")
    return {"fp16": f"convert-float16,{pipeline(half, 'bundle')}"}


def needs_samples(target: Target) -> str:
    """Why made-up samples won't do, "" where they do."""
    if target.precision not in QUANTIZED:
        return ""
    return f"{target.precision} for {target.profile.name} needs samples: made-up ones give wrong ranges"


def problems(model: ir.Model) -> list[Problem]:
    """Every node of the legalized `model` that the oldest TensorRT of a bundle can't be given."""
    return opset_problems(model, OLD)


def write_bundle(
    model: ir.Model, target: Target, out: Path, forms: Mapping[str, ir.Model] | None = None
) -> Mapping[str, Path]:
    """Write the bundle of the legalized `model` below `out`; role -> path.

    `forms` are the models that `form_pipelines` made. UnsupportedOpError where a node has no equal in the
    opset that the device's TensorRT reads, or a quantizer breaks TensorRT's rules.
    """
    options, name = options_of(target), target.profile.name
    model = opened(model, options)
    main = "int8" if is_quantized(model) else _plain(target.precision)
    files: dict[str, Path] = {}
    described: dict[str, Any] = {}
    scales: dict[str, float] = {}
    if main == "int8":
        wide = single(model)
        _lint(wide, name)
        scales = activation_scales(wide)
        old = lower_opset(wide, OLD, name)
        weights_in_pairs(old)
        files |= _save(old, out, "int8.onnx")
        files |= _save(lower_opset(model, NEW, name), out, "int8-fp16.onnx")
        described["int8"] = {
            "strong": {"file": "int8-fp16.onnx", "opset": NEW},
            "weak": {"file": "int8.onnx", "opset": OLD, "flags": ["INT8", "FP16"]},
        }
    plain = dict(forms or {})
    if main != "int8":
        plain = {main: model, **plain}
    for form, made in plain.items():
        lowered = lower_opset(made if form == main else opened(made, options), OLD, name)
        files |= _save(lowered, out, f"{form}.onnx")
        flags = {"fp16": ["FP16"], "bf16": ["BF16"]}.get(form, [])
        described[form] = {
            "strong": {"file": f"{form}.onnx", "opset": OLD},
            "weak": {"file": f"{form}.onnx", "opset": OLD, "flags": flags},
        }
        if scales and form == "fp16" and _has_dla(target.profile):
            path = out / CALIBRATION
            path.write_text(calibration_cache(scales, lowered), encoding="utf-8")
            files["calibration"] = path
    for form, entry in described.items():
        entry["min_sqnr_db"] = _LEAST_DB[form]
    files |= _scripts(out)
    files["description"] = out / DESCRIPTION
    text = msgspec.json.encode(_describe(model, target, options, main, described, files))
    files["description"].write_bytes(msgspec.json.format(text, indent=1) + b"\n")
    return files


def _plain(precision: str) -> str:
    if precision == "bf16":
        return "bf16"
    return "fp16" if precision == "fp16" else "fp32"


def _save(model: ir.Model, out: Path, name: str) -> dict[str, Path]:
    written = write_onnx(model, out / name)
    try:
        onnx.checker.check_model(str(written[0]))
    except onnx.checker.ValidationError as error:
        raise InvariantError(f"{name} of the bundle is not valid: {error}") from error
    return {p.name: p for p in written}


def _lint(model: ir.Model, target: str) -> None:
    problems = check_quantization(model.graph, scheme("tensorrt"))
    narrow = narrow_integers(model)
    problems += [
        Problem(n, "DequantizeLinear", "int4 weights of int8 products are not TensorRT's",
                "take --precision int8")
        for n in narrow
    ]  # fmt: skip
    if problems:
        raise UnsupportedOpError(target, problems)


def _has_dla(profile: HardwareProfile) -> bool:
    return int(profile.toolchain.get("dla", "0")) > 0


def _scripts(out: Path) -> dict[str, Path]:
    found = {}
    for source in [_HERE / _SCRIPT, *sorted((_HERE / _PACKAGE).glob("*.py"))]:
        place = out / source.relative_to(_HERE)
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, place)
        found[place.relative_to(out).as_posix()] = place
    return found


def _workspace(options: Options, profile: HardwareProfile) -> int:
    """An eighth of the board's memory, which the GPU shares with everything else."""
    if options.workspace is not None:
        return options.workspace
    memory = next((int(m.bytes.value) for m in profile.memories if m.name == "DRAM"), 4 << 30)
    return min(_CAP, memory // 8)


def _describe(
    model: ir.Model, target: Target, options: Options, main: str, forms: Mapping[str, Any],
    files: Mapping[str, Path],
) -> dict[str, Any]:  # fmt: skip
    fed = [v for v in model.graph.inputs if v.name not in model.graph.initializers]
    scales = {"file": CALIBRATION, "model": "fp16.onnx"} if "calibration" in files else None
    return {
        "format": 1, "target": target.profile.name, "title": target.profile.title,
        "sm": target.profile.toolchain.get("sm", ""), "main": main, "forms": forms,
        "inputs": _specs(fed, options), "outputs": _specs(model.graph.outputs, options),
        "profiles": {n: [list(s) for s in shapes] for n, shapes in options.profiles.items()},
        "workspace_bytes": _workspace(options, target.profile), "dla": options.dla,
        "calibration": scales, "level": options.level, "tactics": options.tactics,
        "refit": options.refit, "version_compatible": options.version_compatible,
        "preprocess": target.preprocess.describe() if target.preprocess else None,
        "about": dict(target.about),
    }  # fmt: skip


def _specs(values: Any, options: Options) -> list[dict[str, Any]]:
    if not options.profiles:
        return [msgspec.to_builtins(s) for s in static_specs(values)]
    return [
        {"name": str(v.name), "dtype": (v.dtype or ir.DataType.FLOAT).numpy().name,
         "shape": [d if isinstance(d, int) else str(d) for d in v.shape or ()]}
        for v in values
    ]  # fmt: skip
