"""What an import loads, and which imports the checks refuse."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "torchvision", "timm", "tvm", "tensorrt", "coremltools", "onnx_graphsurgeon")


def modules_after(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_import_effc_is_lean() -> None:
    """The bare import loads not even numpy: names of the public API are imported when they are used."""
    loaded = modules_after("import effc")
    assert loaded & {*HEAVY, "onnx", "onnx_ir", "onnxruntime", "numpy", "click", "rich"} == set()


@pytest.mark.parametrize(
    "module", ["effc.cli", "effc.build", "effc.backends", "effc.passes", "effc.zoo"]
)
def test_no_toolchain_is_loaded_before_it_is_used(module: str) -> None:
    assert modules_after(f"import {module}") & set(HEAVY) == set()


def test_the_runtime_needs_numpy_alone() -> None:
    loaded = modules_after("import effc.runtime")
    assert "numpy" in loaded
    assert loaded & {*HEAVY, "onnx", "onnx_ir", "onnxruntime", "msgspec", "click", "rich"} == set()


def test_listing_targets_loads_no_numpy() -> None:
    loaded = modules_after("from effc.core.profiles import all_profiles; all_profiles()")
    assert loaded & {*HEAVY, "onnx", "onnxruntime", "numpy"} == set()


@pytest.mark.parametrize(
    "line", ["import passes", "from core.ir import const", "import backends.tvm"]
)
def test_bare_names_are_banned(root: Path, line: str) -> None:
    """`import passes` works where the checkout is on sys.path, and makes a second copy of every class."""
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--output-format=concise", "--stdin-filename=x.py", "-"],
        cwd=root, input=f"{line}\n", capture_output=True, text=True,
    )  # fmt: skip
    assert "TID251" in done.stdout, done.stdout + done.stderr


def test_the_import_contracts_catch_a_breach(source_tree: Path, tmp_path: Path) -> None:
    """A core module that imports a pass fails import-linter (the real config, a copy of the tree)."""
    tree = tmp_path / "effc"
    shutil.copytree(
        source_tree, tree, symlinks=True, ignore=shutil.ignore_patterns("build", "*.egg-info")
    )
    (tree / "core" / "ir.py").write_text("import effc.passes\n")
    (tree / "backends" / "ort" / "breach.py").write_text("import tvm\n")
    code = "from importlinter.cli import lint_imports_command as c; c()"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, '.'); {code}", "--no-cache"],
        cwd=tree, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "effc.core.ir -> effc.passes" in done.stdout
    assert "effc.backends.ort.breach -> tvm" in done.stdout
