"""Names are looked up, suggested, loaded by path; what can't be imported says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from effc.core.errors import ConfigError
from effc.core.registry import Registry, load


def test_unknown_name_is_met_with_the_closest() -> None:
    registry = Registry("pass", "effc.nothing", {"fold-bias": "x:Y"})
    with pytest.raises(ConfigError, match="unknown pass 'fold-bais'") as caught:
        registry.get("fold-bais")
    assert "fold-bias" in caught.value.hint


def test_get_imports_the_attribute() -> None:
    assert Registry("thing", "effc.nothing", {"p": "pathlib:Path.home"}).get("p") == Path.home


def test_load_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("class Own:\n    value = 7\n")
    assert load(f"{file}:Own", "pass").value == 7
    assert load(f"{file}:Own.value", "pass") == 7


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("raise RuntimeError('boom')", "RuntimeError: boom"),
        ("import nothing_of_that_name", "No module named"),
        ("x = 1", "has no attribute 'Own'"),
        ("def (", "SyntaxError"),
    ],
)
def test_a_file_that_fails_says_why(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(ConfigError, match=reason):
        load(f"{file}:Own", "pass")


def test_a_missing_file_and_a_bad_form() -> None:
    with pytest.raises(ConfigError, match="no file"):
        load("nowhere.py:Own", "pass")
    with pytest.raises(ConfigError, match="not of the form"):
        load("nowhere", "pass")
