"""The checkout, a copy of its sources without what builds leave, and a wheel built from that copy."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("backends", "core", "effc", "frontend", "hwprofiles", "passes", "zoo")


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="session")
def source_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a download without git has: here a build leaves its folders without harm."""
    tree = tmp_path_factory.mktemp("source") / "effc"
    tree.mkdir()
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tree)
    for room in ROOMS:
        shutil.copytree(
            ROOT / room, tree / room, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    return tree


@pytest.fixture(scope="session")
def wheel(source_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", source_tree, tmp_path_factory.mktemp("wheel"))


def build(kind: str, tree: Path, out: Path) -> Path:
    """Build a wheel or sdist by the project's own build backend."""
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return out / done.stdout.strip().splitlines()[-1]
