"""Progress on stderr: a bar with the time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

Progress = Callable[[str, float], None]  # what happens now, and how much is done (0..1)

_QUIET_SECONDS = 5.0


@contextlib.contextmanager
def progress_on_stderr(title: str) -> Iterator[Progress]:
    """A function that shows how far a job is."""
    if not sys.stderr.isatty():
        yield _Lines(title)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.fields[what]:<28}"),
        BarColumn(40),
        TaskProgressColumn(),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=1.0, what=title)

        def show(what: str, done: float) -> None:
            bar.update(task, completed=done, what=what)

        yield show


class _Lines:
    """One line on stderr every few seconds, with the time left, so that logs stay short."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.begun = self.shown = time.monotonic()

    def __call__(self, what: str, done: float) -> None:
        now = time.monotonic()
        if now - self.shown < _QUIET_SECONDS:
            return
        self.shown = now
        left = (now - self.begun) * (1 - done) / done if done > 0.01 else None
        remaining = f", about {left:.0f} s left" if left is not None else ""
        print(f"{self.title}: {what} ({100 * done:.0f} %{remaining})", file=sys.stderr, flush=True)
