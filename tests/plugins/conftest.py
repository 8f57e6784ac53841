"""Plug-ins as users install them: by pip, into a folder of their own that is put on PYTHONPATH."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent


def pip_install(source: Path, into: Path) -> Path:
    """Install the package at `source` into the folder `into`, from a copy: builds leave files behind."""
    copy = into.with_name(f"{into.name}-source")
    shutil.copytree(source, copy)
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index",
         "-t", into, copy],
        check=True,
    )  # fmt: skip
    return into


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pip_install(HERE / "example_plugin", tmp_path_factory.mktemp("plugins") / "example")


@pytest.fixture
def effc(tmp_path: Path) -> Callable[..., tuple[int, Any]]:
    """Run the command line with folders on PYTHONPATH: the exit code and the JSON document."""

    def run(*arguments: object, plugins: tuple[Path, ...] = ()) -> tuple[int, Any]:
        done = subprocess.run(
            [sys.executable, "-m", "effc", *map(str, arguments), "--json"],
            cwd=tmp_path, capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, plugins))},
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, json.loads(done.stdout)

    return run
