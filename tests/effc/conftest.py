"""Commands as a user types them, an artifact of a tiny model, and the real models where they are."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from effc.build import BuildResult, build
from effc.choices import BuildOptions
from effc.cli import run
from effc.commands.output import Output

Command = Callable[..., tuple[int, Any]]


def call(*arguments: object) -> tuple[int, Any]:
    """The exit code and the one JSON document of a command."""
    stream = io.BytesIO()
    code = run([*map(str, arguments), "--json"], Output(json=True, stream=stream))
    return code, json.loads(stream.getvalue())


@pytest.fixture(scope="session")
def command() -> Command:
    return call


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    """tiny-resnet for onnxruntime, with its latency."""
    out = tmp_path_factory.mktemp("built") / "tiny"
    options = BuildOptions(backend="ort", pipeline="fold-batch-norm,fold-bias", threads=(1,))
    return build("zoo:tiny-resnet", "host", out, options)


@pytest.fixture(scope="session")
def testdata() -> Path:
    default = Path(__file__).resolve().parents[3] / "shared/testdata"
    found = Path(os.environ.get("EFFC_TESTDATA", default))
    if not (found / "MANIFEST.json").is_file():
        pytest.skip("no test data: set EFFC_TESTDATA")
    return found
