"""The bundle: everything that a device needs to build its own engines of a model."""

from __future__ import annotations

from effc.backends.tensorrt.bundle.finish import finish, finish_on
from effc.backends.tensorrt.bundle.verify import Bundled
from effc.backends.tensorrt.bundle.write import (
    form_pipelines,
    needs_samples,
    problems,
    write_bundle,
)

__all__ = [
    "Bundled",
    "finish",
    "finish_on",
    "form_pipelines",
    "needs_samples",
    "problems",
    "write_bundle",
]
