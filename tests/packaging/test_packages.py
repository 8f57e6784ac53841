"""The explicit package list, the links and the package data against the tree; wheel and sdist."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from .conftest import ROOMS, build

DATA = (".toml", ".c", ".h", ".css", ".html", ".js", ".json")


def packages_of_tree(root: Path) -> dict[str, str]:
    """Package -> folder, for every folder with Python files."""
    found = {}
    for room in ROOMS:
        for folder, folders, files in os.walk(root / room):  # does not follow the links of effc/
            folders[:] = [f for f in folders if f != "__pycache__"]
            relative = Path(folder).relative_to(root)
            if any(f.endswith(".py") for f in files):
                dotted = ".".join(relative.parts)
                found[
                    "effc" if dotted == "effc" else f"effc.{dotted}".replace("effc.effc.", "effc.")
                ] = relative.as_posix()
    return found


def test_the_package_list_is_the_tree(root: Path, project: dict[str, Any]) -> None:
    tree = packages_of_tree(root)
    assert sorted(project["tool"]["setuptools"]["packages"]) == sorted(tree)
    assert project["tool"]["setuptools"]["package-dir"] == tree


def test_every_package_has_an_init(root: Path) -> None:
    assert [
        f for f in packages_of_tree(root).values() if not (root / f / "__init__.py").is_file()
    ] == []


@pytest.mark.parametrize("room", [r for r in ROOMS if r != "effc"])
def test_the_links_follow_the_names(root: Path, room: str) -> None:
    link = root / "effc" / room
    assert link.is_symlink()
    assert os.readlink(link) == f"../{room}"


def wanted_files(tree: Path) -> set[str]:
    """Every source and data file, by its path in a wheel."""
    wanted = set()
    for room in ROOMS:
        for folder, folders, files in os.walk(tree / room):
            folders[:] = [f for f in folders if f != "__pycache__"]
            inside = Path(folder).relative_to(tree)
            base = inside if room == "effc" else Path("effc") / inside
            wanted |= {(base / f).as_posix() for f in files if f.endswith((".py", *DATA))}
    return wanted


def test_the_wheel_holds_every_source_and_data_file(wheel: Path, source_tree: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    assert wanted_files(source_tree) - held == set()
    assert not [n for n in held if n.startswith(("core/", "passes/", "tests/", "backends/"))]


def test_the_sdist_builds_the_same_wheel(wheel: Path, source_tree: Path, tmp_path: Path) -> None:
    archive = build("sdist", source_tree, tmp_path)
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    again = build("wheel", unpacked, tmp_path)
    names = {n for n in zipfile.ZipFile(again).namelist() if ".dist-info/" not in n}
    assert names == {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}


def test_the_wheel_imports_and_finds_its_data(wheel: Path, tmp_path: Path) -> None:
    installed = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "-t", installed, wheel],
        check=True,
    )  # fmt: skip
    code = (
        "import effc.core.ir, effc.passes, effc.core.profiles as p\n"
        "print(effc.__file__, effc.core.ir.__file__, effc.passes.__file__, sep='\\n')\n"
        "print(p.load_profile('jetson').name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    *files, name = done.stdout.split()
    assert name == "jetson-orin-nano"
    assert all(Path(f).is_relative_to(installed) for f in files), files


def test_the_installer_knows_every_extra(root: Path, project: dict[str, Any]) -> None:
    """`all` is the sum of the others, and what would drag in torchvision is installed by itself."""
    spec = importlib.util.spec_from_file_location("bootstrap", root / "tools/lib/bootstrap.py")
    assert spec is not None and spec.loader is not None
    bootstrap = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bootstrap)
    extras = project["project"]["optional-dependencies"]
    own = set(extras) - {"all", "dev"}
    assert own >= {"tvm", "tensorrt", "tensorrt-rtx", "coreml", "torch", "tflite"}
    parts = {r for e in own for r in bootstrap.expand(extras, e)}
    assert set(bootstrap.expand(extras, "all")) == parts
    ((together, _), (alone, options)) = bootstrap.steps(project, ["torch"])
    assert "torch==2.13.0" in together and not [r for r in together if "timm" in r]
    assert alone == ["timm==1.0.31", "torchvision==0.28.0"] and options == ["--no-deps"]
