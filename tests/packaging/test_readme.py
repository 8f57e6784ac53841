"""README.md says what is so: its tour is run again, its table is made again, its links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from effc.core.profiles import all_profiles, load_profile
from effc.targets import describe_target


def tool(root: Path, name: str) -> ModuleType:
    """A script of tools/ as a module."""
    import sys

    spec = importlib.util.spec_from_file_location(name, root / f"tools/{name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def text(root: Path) -> str:
    return (root / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_tour_prints_what_the_readme_shows(root: Path, text: str, tmp_path: Path) -> None:
    host = describe_target(load_profile("host"))
    if not host.measure:
        pytest.skip(f"nothing can be built for this host: {host.why}")
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    tour = tool(root, "doc_tour")
    tour.save_files(text, tmp_path)
    shown = tour.all_steps(text)
    assert len(shown) >= 6
    for step in shown:
        printed = tour.Step(step.command, tuple(tour.run(step.command, tmp_path)))
        assert tour.stable(printed) == tour.stable(step), step.command


def test_what_the_tour_compares_is_not_nothing(root: Path) -> None:
    """Numbers and who was faster don't matter; words, names and verdicts do."""
    tour = tool(root, "doc_tour")

    def stable(line: str) -> list[str]:
        found: list[str] = tour.stable(tour.Step("", (line,)))
        return found

    assert stable("1  effc tvm  0.128 ms .. 1 ms  0.36x") == stable(
        "1 effc tvm 128 us .. 9.5 us  2x (inside the noise)"
    )
    assert stable("passed: 4 samples") != stable("failed: 4 samples")
    assert stable("conv_0  conv  8 %") != stable("conv_0  tvm:conv  8 %")


def test_the_table_of_targets_is_up_to_date(root: Path, text: str) -> None:
    tables = tool(root, "doc_tables")
    table = text.partition(tables.BEGIN)[2].partition(tables.END)[0]
    for name in ("host", *(p.name for p in all_profiles())):
        assert f"`{name}`" in table
    if (
        "avx512vnni" in load_profile("host").features
        and describe_target(load_profile("host")).measure
    ):
        assert tables.replaced(text, tables.targets_table()) == text


def test_its_links_lead_somewhere(root: Path, text: str) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert links
    assert [link for link in links if "://" not in link and not (root / link).exists()] == []
