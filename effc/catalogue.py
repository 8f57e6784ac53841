"""The passes, backends and models there are, described for a list."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from typing import Any

import msgspec

from effc.backends import BACKENDS, make_backend
from effc.core.errors import ConfigError
from effc.core.passinfra import Pass, options_of
from effc.passes import PASSES, lookup
from effc.zoo import MODELS, member, names


class PassOption(msgspec.Struct, frozen=True):
    """One option of a pass."""

    name: str
    type: str
    default: str
    unit: str = ""
    help: str = ""


class PassRow(msgspec.Struct, frozen=True):
    """One pass: its promise, the first line of its docstring and the whole, its options."""

    id: str
    effect: str
    summary: str
    where: str
    options: tuple[PassOption, ...] = ()
    doc: str = ""


class BackendRow(msgspec.Struct, frozen=True):
    """One backend, and whether its toolchain is here."""

    id: str
    available: bool
    reason: str = ""
    hint: str = ""
    versions: dict[str, str] = {}


class ZooRow(msgspec.Struct, frozen=True):
    """One model of the zoo; `input_shape` is of its first input, `preprocess` what `--preprocess` takes."""

    name: str
    summary: str
    input_shape: tuple[int, ...]
    parameters: int
    preprocess: str
    reference: str


def pass_rows() -> tuple[PassRow, ...]:
    """Every built-in and plugged-in pass that can be imported."""
    broken = pass_failures()
    return tuple(describe_pass(name) for name in PASSES.table() if name not in broken)


def pass_failures() -> dict[str, str]:
    """Passes of plug-ins that can't be imported, with the reason."""
    return PASSES.failures()


def describe_pass(name: str) -> PassRow:
    """The pass called `name`: an id, or `file.py:Class`."""
    cls = lookup(name)
    doc = inspect.cleandoc(cls.__doc__ or "")
    where = PASSES.table().get(name, name)
    return PassRow(
        cls.id, cls.effect.name, doc.partition("\n")[0], where, tuple(_options(cls)), doc
    )


def backend_rows() -> tuple[BackendRow, ...]:
    """Every backend; one that can't be imported says why."""
    rows = []
    for name in BACKENDS.table():
        try:
            found = make_backend(name).probe()
        except ConfigError as error:
            rows.append(BackendRow(name, False, str(error), error.hint))
        else:
            versions = dict(found.versions or {})
            rows.append(BackendRow(name, found.ok, found.reason, found.hint, versions))
    return tuple(rows)


def zoo_rows() -> tuple[ZooRow, ...]:
    """Every member of the zoo that can be imported; timm's architectures are not listed."""
    broken = zoo_failures()
    found = (member(name) for name in names() if name not in broken)
    return tuple(
        ZooRow(m.name, m.summary, m.input_shape, m.parameters, m.preprocess, m.reference)
        for m in found
    )


def zoo_failures() -> dict[str, str]:
    """Models of plug-ins that can't be imported, with the reason."""
    return MODELS.failures()


def _options(cls: type[Pass]) -> list[PassOption]:
    types = typing.get_type_hints(cls)
    options = []
    for field in options_of(cls):
        default: Any = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        kind = types[field.name]
        options.append(
            PassOption(
                field.name.replace("_", "-"),
                getattr(kind, "__name__", str(kind)) if not typing.get_args(kind) else str(kind),
                "required" if default is dataclasses.MISSING else str(default),
                str(field.metadata.get("unit", "")),
                str(field.metadata.get("help", "")),
            )
        )
    return options
