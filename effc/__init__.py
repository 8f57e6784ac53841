"""effc: from a vision model to a proven, measured artifact for one device.

`import effc` loads nothing heavy; each name is imported when it is used:

    import effc
    result = effc.build("model.onnx", "host", "out")     # what `effc build` does
    with effc.load("out") as runner:                     # run it
        scores = runner.infer({"input": image})["logits"]
    with effc.open_artifact("out") as artifact: ...      # its files and manifest

`effc.runtime.Model` runs an artifact of the CPU backend with numpy alone.

A pass of one's own is a subclass of `effc.Pass`, a backend one of `effc.Backend`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from effc.artifacts import open_artifact as open_artifact
    from effc.build import BuildResult as BuildResult
    from effc.build import build as build
    from effc.choices import BuildOptions as BuildOptions
    from effc.core.backend import Backend as Backend
    from effc.core.errors import EffcError as EffcError
    from effc.core.passinfra import Effect as Effect
    from effc.core.passinfra import Pass as Pass
    from effc.core.passinfra import PassContext as PassContext
    from effc.core.passinfra import Pipeline as Pipeline
    from effc.core.preprocess import Preprocess as Preprocess
    from effc.core.rewrite import Rule as Rule
    from effc.runnable import load as load

_PUBLIC = {
    "Backend": "effc.core.backend",
    "BuildOptions": "effc.choices",
    "BuildResult": "effc.build",
    "Effect": "effc.core.passinfra",
    "EffcError": "effc.core.errors",
    "Pass": "effc.core.passinfra",
    "PassContext": "effc.core.passinfra",
    "Pipeline": "effc.core.passinfra",
    "Preprocess": "effc.core.preprocess",
    "Rule": "effc.core.rewrite",
    "build": "effc.build",
    "load": "effc.runnable",
    "open_artifact": "effc.artifacts",
}

__all__ = sorted(_PUBLIC)  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name == "runtime":
        return import_module("effc.runtime")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'effc' has no attribute {name!r}")
    found = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*globals(), *__all__]


class _Package(ModuleType):
    """Keeps `effc.build` the function: importing the module of that name would put itself there."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name == "build" and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
