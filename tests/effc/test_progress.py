"""Progress: lines in logs are few and tell the time left; a terminal gets a bar."""

from __future__ import annotations

import io
import sys

import pytest

from effc.commands import progress
from effc.commands.progress import progress_on_stderr


def test_lines_are_few_and_tell_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(float(t) for t in range(100))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress_on_stderr("job") as show:
        for i in range(12):
            show(f"step {i}", (i + 1) / 20)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "job: step 4 (25 %, about 15 s left)",
        "job: step 9 (50 %, about 10 s left)",
    ]


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("TERM", "xterm")
    with progress_on_stderr("job") as show:
        show("halfway", 0.5)
    assert "halfway" in shown.getvalue() and "50%" in shown.getvalue()
