"""What the GPU adds to an engine that was built elsewhere: its verdict and its times."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from effc.core.artifact import Artifact
from effc.core.errors import ConfigError
from effc.core.measure import Array, Device
from effc.core.passinfra import Effect
from effc.core.verify import judge

GOLDENS = "goldens.npz"
REPEATS = 100


def finish(artifact: Artifact, device: Device) -> Artifact:
    """The artifact with the verdict and the times of `device`; the manifest is not written."""
    manifest = artifact.manifest
    feeds, goldens = read_goldens(artifact)
    promise = max((Effect[p.effect] for p in manifest.passes if p.rewrites), default=Effect.EXACT)
    with device.runner(artifact) as runner:
        answers = [runner.infer(f) for f in feeds]
        timed = runner.time(feeds[0], REPEATS)
        layers = runner.layers(feeds[0], 20)
    details: Mapping[str, Any] = {
        **manifest.details,
        "layer_times": [msgspec.to_builtins(x) for x in layers],
    }
    return Artifact(
        artifact.path,
        msgspec.structs.replace(
            manifest,
            verdict=judge(goldens, answers, promise),
            measurements=(timed,),
            details=dict(details),
        ),
    )


def read_goldens(artifact: Artifact) -> tuple[list[dict[str, Array]], list[dict[str, Array]]]:
    """The recorded inputs and answers."""
    path = artifact.path / GOLDENS
    found: dict[str, dict[int, dict[str, Array]]] = {"feeds": {}, "answers": {}}
    try:
        archive = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
        for key in archive.files:
            role, index, name = key.split("/", 2)
            found[role].setdefault(int(index), {})[name] = archive[key]
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{str(path)!r} holds no goldens: {str(error).splitlines()[0]}", hint="build it again"
        ) from error
    feeds, answers = ([s[i] for i in sorted(s)] for s in (found["feeds"], found["answers"]))
    if not feeds or len(feeds) != len(answers):
        raise ConfigError(f"{str(path)!r} holds no goldens", hint="build it again")
    return feeds, answers
