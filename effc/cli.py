"""The command line: finds the command, runs it, and turns errors into one line and an exit code.

Exit codes: 0 done; 1 a bug in effc (with its traceback), or `doctor` found a fault; 2 the command, the
model or a file is wrong; 3 the target, its toolchain or this machine can't; 4 the artifact's answers are
wrong; 130 interrupted.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from effc.commands.output import Output
from effc.core.errors import EffcError

# name -> where; in the order of a first use. Modules are imported when a command is used or listed.
COMMANDS = {
    "build": "effc.commands.build:build",
    "run": "effc.commands.run:run",
    "bench": "effc.commands.bench:bench",
    "eval": "effc.commands.evaluate:evaluate",
    "finish": "effc.commands.finish:finish",
    "inspect": "effc.commands.inspect:inspect",
    "check": "effc.commands.check:check",
    "compare": "effc.commands.compare:compare",
    "blame": "effc.commands.blame:blame",
    "targets": "effc.commands.lists:targets",
    "passes": "effc.commands.lists:passes",
    "backends": "effc.commands.lists:backends",
    "zoo": "effc.commands.lists:zoo",
    "doctor": "effc.commands.doctor:doctor",
}


_ROOM = "make room, choose another place with -o, or another one for temporary files with TMPDIR"
_FAULTS = {  # what the machine lacks -> the remedy; any other OSError that gets to the top is a bug
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "the limit on the size of files is too low (ulimit -f)",
    errno.EROFS: "choose another place with -o, or another one for temporary files with TMPDIR",
    errno.EIO: "the disk failed: see the system's log",
    errno.EMFILE: "the limit on open files is too low (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine",
    errno.ENOMEM: "end other programs, or use a machine with more memory",
}


class Commands(click.Group):
    """A group whose commands are imported by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        where = COMMANDS.get(cmd_name)
        if where is None:
            return None
        module, _, name = where.partition(":")
        command: click.Command = getattr(import_module(module), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            close = difflib.get_close_matches(args[0], COMMANDS, 1)
            if close:
                raise click.UsageError(
                    f"No such command {args[0]!r}. Did you mean {close[0]!r}?", ctx
                ) from error
            raise


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"effc {version('effc')}")
        ctx.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version,
              help="Print the version and end.")  # fmt: skip
def cli() -> None:
    """From a vision model to a proven, measured artifact for one device.

    \b
    effc build model.onnx --target host -o out     build, verify and time it
    effc run out --input cat.jpg                   classify a picture with it
    effc bench out --against onnxruntime           time it again, side by side
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command of `arguments` (by default the process's) and exit."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    output = Output.of_process(json="--json" in arguments)
    sys.exit(run(arguments, output))


def run(arguments: Sequence[str], output: Output) -> int:
    """Run the command of `arguments`; the exit code. Only a bug leaves a traceback, on stderr."""
    try:
        code = cli.main(args=list(arguments), prog_name="effc", standalone_mode=False, obj=output)
        return code if isinstance(code, int) else 0
    except EffcError as error:
        output.error(error)
        return error.exit_code
    except click.exceptions.Abort:
        return _interrupted(output)
    except KeyboardInterrupt:
        return _interrupted(output)
    except click.ClickException as error:
        output.usage_error(error)
        return error.exit_code
    except BrokenPipeError:  # the reader, say `head`, went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if fault := machine_fault(error):
            output.fault("MachineError", *fault)
            return 3
        output.bug(error)
        return 1


def machine_fault(error: Exception) -> tuple[str, str] | None:
    """The message and the remedy where `error` says that the machine ran out of something."""
    if isinstance(error, MemoryError):
        return "there is not enough memory", "end other programs, or use a machine with more"
    if not isinstance(error, OSError) or error.errno not in _FAULTS:
        return None
    files = (error.filename, error.filename2)
    names = " to ".join(repr(os.fsdecode(f)) for f in files if isinstance(f, str | bytes))
    return ": ".join(t for t in (error.strerror, names) if t), _FAULTS[error.errno]


def _interrupted(output: Output) -> int:
    output.fault("Interrupted", "interrupted", "")
    return 130
