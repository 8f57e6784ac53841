"""Packages of several functions: the same network at several sizes, or its early and late exits.

Each was built and verified as an artifact of its own; joined, they share their equal weights.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from effc.backends.coreml.finish import GOLDENS, read_goldens
from effc.backends.coreml.interpret import Interpreter
from effc.backends.coreml.package import normalize, quiet
from effc.backends.coreml.runner import package_of, packed, ports_of, unpacked
from effc.core.artifact import Artifact, load_artifact
from effc.core.errors import ConfigError, VerificationError


def others_of(functions: Mapping[str, Path]) -> dict[str, Artifact]:
    """The artifacts to join, by the names of their functions; ConfigError where one is none of Core ML's."""
    found = {}
    for name, path in functions.items():
        artifact = load_artifact(path)
        if artifact.manifest.backend != "coreml":
            raise ConfigError(
                f"{str(path)!r} is built by {artifact.manifest.backend}, not for Core ML"
            )
        if artifact.manifest.verdict.status == "failed":
            raise ConfigError(
                f"{str(path)!r} gives wrong answers: {artifact.manifest.verdict.reason}"
            )
        found[name] = artifact
    return found


def join(path: Path, name: str, others: Mapping[str, Artifact]) -> None:
    """Make of the package `path` one of several functions, its own called `name` and the default.

    VerificationError where a joined function no longer gives the goldens of its artifact as it did.
    """
    with quiet(), tempfile.TemporaryDirectory(prefix="effc-") as folder:
        import coremltools as ct
        from coremltools import proto

        descriptor = ct.utils.MultiFunctionDescriptor()
        descriptor.add_function(str(path), "main", name)
        for other, artifact in others.items():
            descriptor.add_function(str(package_of(artifact)), "main", other)
        descriptor.default_function_name = name
        joined = Path(folder) / path.name
        ct.utils.save_multifunction(descriptor, str(joined))
        model = Path("Data") / "com.apple.CoreML" / "model.mlmodel"
        single, several = proto.Model_pb2.Model(), proto.Model_pb2.Model()
        single.ParseFromString((path / model).read_bytes())
        several.ParseFromString((joined / model).read_bytes())
        several.description.metadata.CopyFrom(single.description.metadata)
        (joined / model).write_bytes(several.SerializeToString(deterministic=True))
        _replace(path, joined)
    normalize(path)
    for other, artifact in others.items():
        _check(path, other, artifact)


def _replace(old: Path, new: Path) -> None:
    import shutil

    shutil.rmtree(old)
    shutil.copytree(new, old)


def _check(path: Path, name: str, artifact: Artifact) -> None:
    """The joined function against the one of the artifact, on its first golden."""
    feeds, _ = read_goldens(artifact.path / GOLDENS)
    inputs, outputs = ports_of(artifact)
    given = {p.mil: packed(p, np.asarray(feeds[0][p.name])) for p in inputs}
    with quiet():
        alone = Interpreter(package_of(artifact)).predict(given)
        joined = Interpreter(path, name).predict(given)
    for port in outputs:
        if not np.array_equal(
            unpacked(port, alone[port.mil]), unpacked(port, joined[port.mil]), equal_nan=True
        ):
            raise VerificationError(
                f"function {name!r} of the joined package differs from the artifact in {port.name!r}",
                hint="this is a bug in effc or coremltools: leave join out",
            )
