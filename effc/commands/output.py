"""What a command writes: a report for people, or one JSON document and nothing else on stdout."""

from __future__ import annotations

import os
import sys
import traceback
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import click

from effc.core.errors import EffcError, UnsupportedOpError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


@dataclass(frozen=True, slots=True)
class Output:
    """Where results go. With `json`, `stream` is stdout and everything else is on stderr."""

    json: bool = False
    stream: IO[bytes] | None = None

    @classmethod
    def of_process(cls, *, json: bool) -> Output:
        """The process's stdout; with `json`, what any library prints there goes to stderr instead."""
        if not json:
            return cls()
        sys.stdout.flush()
        stream = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)
        return cls(True, stream)

    def result(self, document: Any, *shown: RenderableType) -> None:
        """Write the `document` as JSON, or what is `shown` to people."""
        if self.json:
            self._write(document)
        else:
            console = terminal()
            with console.capture() as captured:
                for part in shown:
                    console.print(part)
            lines = captured.get().splitlines()
            click.echo("\n".join(line.rstrip() for line in lines))

    def error(self, error: EffcError) -> None:
        """One line with the reason, one with the remedy; every problem of an unsupported model."""
        extra: dict[str, Any] = {}
        problems = error.problems if isinstance(error, UnsupportedOpError) else ()
        if problems:
            extra["problems"] = [
                {"node": p.node, "op": p.op, "reason": p.reason, "remedy": p.remedy}
                for p in problems
            ]
        self.fault(error.kind, str(error), error.hint, **extra)
        if not self.json and len(problems) > 1:
            from effc.report.terminal import problem_table

            terminal(stderr=True).print(problem_table(problems))

    def usage_error(self, error: click.ClickException) -> None:
        """A command that click refused, with how it is used."""
        context = error.ctx if isinstance(error, click.UsageError) else None
        hint = f"see {context.command_path} --help" if context is not None else ""
        self.fault("UsageError", " ".join(error.format_message().split()), hint)

    def bug(self, error: Exception) -> None:
        """An error that effc does not expect, with its traceback."""
        traceback.print_exception(error)
        self.fault(
            "Bug",
            f"{type(error).__name__}: {error}",
            "this is a bug in effc: please report it with the traceback on stderr",
        )

    def fault(self, kind: str, message: str, hint: str, **extra: Any) -> None:
        """An error as JSON on stdout, or as lines on stderr."""
        if self.json:
            self._write({"error": {"kind": kind, "message": message, "hint": hint, **extra}})
            return
        click.echo(click.style("error: ", fg="red", bold=True) + message, err=True)
        if hint:
            click.echo(click.style("  hint: ", fg="cyan", bold=True) + hint, err=True)

    def _write(self, document: Any) -> None:
        import msgspec

        data = msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"
        stream: IO[bytes] = self.stream or sys.stdout.buffer
        stream.write(data)
        stream.flush()


def terminal(*, stderr: bool = False) -> Console:
    """The console of results; wide where no terminal limits it, so that nothing is cut off."""
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False)
    return console if console.is_terminal else Console(stderr=stderr, highlight=False, width=140)
