"""Options that several commands share, and the types of their values."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from effc.core.preprocess import Preprocess

F = TypeVar("F", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)


class ShapeType(click.ParamType):  # type: ignore[type-arg]  # generic only in newer versions
    """`name=1,3,224,224` -> ("name", (1, 3, 224, 224)); `name=` is a scalar."""

    name = "name=1,3,224,224"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, tuple[int, ...]]:
        if isinstance(value, tuple):
            return value
        name, equals, text = str(value).rpartition("=")
        separators = re.split(r"[,x ]+", text.strip().strip("[]()")) if text.strip() else []
        if not equals or not name or not all(d.isascii() and d.isdigit() for d in separators):
            self.fail(f"{value!r} is not like x=1,3,224,224", param, ctx)
        shape = tuple(int(d) for d in separators)
        if any(d == 0 or d >= 1 << 31 for d in shape):
            self.fail(f"{value!r} has an extent that no tensor can have", param, ctx)
        return name, shape


class KeyValueType(click.ParamType):  # type: ignore[type-arg]  # generic only in newer versions
    """`key=value` -> ("key", "value")."""

    name = "key=value"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        key, equals, text = str(value).partition("=")
        if not equals or not key.strip():
            self.fail(f"{value!r} is not like key=value", param, ctx)
        return key.strip(), text.strip()


class DurationType(click.ParamType):  # type: ignore[type-arg]  # generic only in newer versions
    """`90`, `90s`, `5m`, `1h30m` -> seconds."""

    name = "duration"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        if isinstance(value, float):
            return value
        text = str(value).strip().lower()
        match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?", text)
        if match is None or not text:
            self.fail(f"{value!r} is not like 90s, 5m or 1h30m", param, ctx)
        hours, minutes, seconds = (float(g or 0) for g in match.groups())
        return 3600 * hours + 60 * minutes + seconds


class ThreadsType(click.ParamType):  # type: ignore[type-arg]  # generic only in newer versions
    """`2` or `1,2` -> (1, 2)."""

    name = "N[,N...]"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = str(value).split(",")
        if not all(p.strip().isascii() and p.strip().isdigit() for p in parts):
            self.fail(f"{value!r} is not like 2 or 1,2", param, ctx)
        counts = tuple(dict.fromkeys(int(p) for p in parts))
        if any(not 1 <= c <= 1024 for c in counts):
            self.fail("thread counts lie between 1 and 1024", param, ctx)
        return counts


class PreprocessType(click.ParamType):  # type: ignore[type-arg]  # generic only in newer versions
    """A name, or mean=...,std=..., with options."""

    name = "preprocessing"

    def convert(self, value: Any, param: Any, ctx: Any) -> Preprocess:
        from effc.core.preprocess import Preprocess

        return value if isinstance(value, Preprocess) else Preprocess.parse(str(value))


def json_option(f: F) -> F:
    """`--json`: it is looked for before the command line is parsed, so its value is not used."""
    option = click.option(
        "--json", "json_", is_flag=True, expose_value=False, is_eager=True, callback=_set_json,
        help="Print one JSON document on stdout and nothing else there.",
    )  # fmt: skip
    return option(f)


def shape_option(f: F) -> F:
    """`--shape NAME=D,D,...`, again for each input."""
    option = click.option(
        "--shape", "shapes", type=ShapeType(), multiple=True,
        help="Fix the dynamic shape of an input; again for each.",
    )  # fmt: skip
    return option(f)


def device_option(f: F) -> F:
    """`--device`, where an artifact runs."""
    option = click.option(
        "--device", default="", metavar="serial:///dev/ttyACM0",
        help="The board that runs the artifact's firmware, at a serial port (?baud=115200), or `host`: "
        "its C on this machine.  [default: the device or its emulator, if it can be reached]",
    )  # fmt: skip
    return option(f)


def preprocess_option(f: F) -> F:
    """`--preprocess`, how pictures become the model's input."""
    option = click.option(
        "--preprocess", type=PreprocessType(),
        help="How pictures become the input: imagenet, inception (x/127.5-1), unit (x/255) or raw, or "
        "mean=...,std=...; then ,resize=squash|crop ,layout=NCHW|NHWC ,color=RGB|BGR|GRAY.",
    )  # fmt: skip
    return option(f)


def _set_json(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    from effc.commands.output import Output

    if value and not (isinstance(ctx.obj, Output) and ctx.obj.json):
        ctx.obj = Output(json=True)
    elif ctx.obj is None:
        ctx.obj = Output()
