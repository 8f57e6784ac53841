"""Anything that run, bench, eval and compare can run: an artifact, or a model through onnxruntime."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from effc.artifacts import is_artifact, open_artifact
from effc.backends import make_backend
from effc.core.artifact import Artifact, TensorSpec
from effc.core.check import check_model
from effc.core.errors import ConfigError, DeviceError
from effc.core.measure import Device, Feeds, Runner
from effc.core.preprocess import Preprocess
from effc.core.profiles import load_profile
from effc.core.reference import OnnxRuntimeRunner
from effc.core.shapes import fix_shapes, infer_shapes
from effc.core.specs import static_specs
from effc.core.target import Target
from effc.sources import load as load_source


@dataclass(frozen=True, slots=True)
class Runnable:
    """An opened artifact (then `artifact` is set) or model (then `model` is)."""

    name: str  # what the user typed
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preprocess: Preprocess | None
    bytes: int  # of the deployable files, or of the model's weights
    sha256: str  # of the source
    artifact: Artifact | None = None
    device: Device | None = None
    model: ir.Model | None = None

    def runner(self, threads: int = 1) -> Runner:
        """A runner on this machine (or the artifact's device), to be entered by the caller."""
        if self.artifact is not None and self.device is not None:
            return self.device.runner(self.artifact, threads)
        if self.model is None:
            raise RuntimeError("a Runnable holds an artifact and its device, or a model")
        return OnnxRuntimeRunner(self.model, threads=threads)


@contextlib.contextmanager
def open_runnable(
    text: str, shapes: Mapping[str, tuple[int, ...]] | None = None, device: str = ""
) -> Iterator[Runnable]:
    """Open what `text` names: an artifact (folder or .effc), or any source that effc build takes.

    `device` is where an artifact runs, like serial:///dev/ttyACM0; a model stays on this machine.
    DeviceError where the artifact's device can't be reached from here.
    """
    path = Path(text)
    if is_artifact(path) or path.is_dir():
        with open_artifact(path) as artifact:
            yield _artifact(text, artifact, device)
    else:
        yield open_model(text, shapes or {})


@contextlib.contextmanager
def load(
    text: str, *, threads: int = 1, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> Iterator[Runner]:
    """A runner of what `text` names, to call `infer` on; see `open_runnable`."""
    with open_runnable(text, shapes) as runnable, runnable.runner(threads) as runner:
        yield runner


def open_model(text: str, shapes: Mapping[str, tuple[int, ...]]) -> Runnable:
    """A model of static shapes, checked, to run with onnxruntime."""
    source = load_source(text, shapes)
    model = source.model
    check_model(model)
    fix_shapes(model, shapes)
    infer_shapes(model)
    weights = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value)
    return Runnable(
        text,
        static_specs([v for v in model.graph.inputs if v.name not in model.graph.initializers]),
        static_specs(model.graph.outputs),
        None,
        weights,
        source.sha256,
        model=model,
    )


def _artifact(text: str, artifact: Artifact, address: str = "") -> Runnable:
    manifest = artifact.manifest
    backend = make_backend(manifest.backend)
    availability = backend.probe()
    if not availability.ok:
        raise DeviceError(
            f"artifact {text!r} needs the backend {manifest.backend!r}: {availability.reason}",
            hint=availability.hint,
        )
    target = Target(load_profile(manifest.target), precision=manifest.precision)
    device = (
        backend.device_at(target, address) if address else next(iter(backend.devices(target)), None)
    )
    if device is None:
        raise DeviceError(
            f"artifact {text!r} can't run from here: {backend.why_no_device(target)}",
            hint="effc targets lists what can be run from this machine",
        )
    described = manifest.preprocess
    size = sum((artifact.path / name).stat().st_size for name in manifest.files)
    return Runnable(
        text,
        manifest.inputs,
        manifest.outputs,
        Preprocess.from_description(described) if described is not None else None,
        size,
        manifest.source.get("sha256", ""),
        artifact=artifact,
        device=device,
    )


def choose_preprocess(runnable: Runnable, given: Preprocess | None) -> Preprocess | None:
    """The preprocessing of the command, which may not contradict the one stored in the artifact."""
    stored = runnable.preprocess
    if given is not None and stored is not None and given != stored:
        raise ConfigError(
            f"--preprocess {given} contradicts the artifact, which was built for {stored}",
            hint="leave --preprocess out, or build again with it",
        )
    return given or stored


def pairing(
    ours: tuple[TensorSpec, ...], theirs: tuple[TensorSpec, ...], role: str
) -> dict[str, str]:
    """Name in `a` -> name in `b`: by name where all names agree, otherwise by position."""
    if {s.name for s in ours} == {s.name for s in theirs}:
        other = {s.name: s for s in theirs}
        pairs = [(s, other[s.name]) for s in ours]
    elif len(ours) == len(theirs):
        pairs = list(zip(ours, theirs, strict=True))
    else:
        raise ConfigError(
            f"the two differ in their number of {role}s: {len(ours)} and {len(theirs)}"
        )
    for one, two in pairs:
        if one.shape != two.shape or (role == "input" and one.dtype != two.dtype):
            raise ConfigError(
                f"{role} {one.name!r} is {one.dtype}{list(one.shape)} in the one and "
                f"{two.dtype}{list(two.shape)} in the other",
                hint="compare what has the same interface; --shape fixes dynamic inputs of models",
            )
    return {one.name: two.name for one, two in pairs}


def renamed(feeds: Feeds, names: dict[str, str]) -> Feeds:
    """`feeds` under the names of the other side of a pairing."""
    return {names[name]: array for name, array in feeds.items()}
