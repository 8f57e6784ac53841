"""Passes, their promises, pipelines whose text round-trips, and the instruments that stand outside."""

from __future__ import annotations

import dataclasses
import enum
import re
import time
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self
from urllib.parse import quote, unquote

import onnx_ir as ir

from effc.core.errors import ConfigError, EffcError, PassError
from effc.core.ir import no_garbage_collection

if TYPE_CHECKING:
    from effc.core.data import Samples
    from effc.core.target import Target


class Effect(enum.IntEnum):
    """What a pass promises about the numbers; the pipeline holds it to that."""

    EXACT = 0  # the same function, up to floating-point reassociation
    ROUNDED = 1  # the same function at a lower precision (fp16, int8)
    LOSSY = 2  # a different, smaller function (pruning, low rank)


@dataclass(frozen=True, slots=True)
class PassContext:
    """What a pass may know beside the model."""

    target: Target | None = None
    samples: Samples | None = None
    seed: int = 0


class Pass(ABC):
    """Rewrites a model in place. A subclass is a frozen dataclass whose fields are its options.

    `field(default=..., metadata={"help": ..., "unit": ...})` documents an option. The docstring is the
    pass's equation (before -> after), when it declines, and the paper it comes from.
    """

    id: ClassVar[str]
    effect: ClassVar[Effect]

    @abstractmethod
    def run(self, model: ir.Model, ctx: PassContext) -> int:
        """Apply the pass to `model` and return how many rewrites were made."""

    def __str__(self) -> str:
        """The pass as pipeline text: options that differ from their defaults, in field order."""
        options = ",".join(
            f"{f.name.replace('_', '-')}={show(getattr(self, f.name))}"
            for f in options_of(type(self))
            if getattr(self, f.name) != _default(f)
        )
        return f"{self.id}{{{options}}}" if options else self.id


@dataclass(frozen=True, slots=True)
class Repeat(Pass):
    """A mark in a pipeline: back to its start (or behind the last mark) until a round changes nothing.

    `limit` bounds the rounds. Alone, outside `Pipeline.run`, it does nothing.
    """

    id: ClassVar[str] = "repeat"
    effect: ClassVar[Effect] = Effect.EXACT

    limit: int = dataclasses.field(
        default=8, metadata={"help": "how many rounds at most", "unit": "rounds"}
    )

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class PassRecord:
    """What one pass did, as it stands in the manifest."""

    id: str
    options: str
    effect: str
    rewrites: int
    seconds: float


class Instrument(Protocol):
    """Watches a pipeline run. `after` may raise to stop it."""

    def before(self, step: Pass, model: ir.Model) -> None: ...
    def after(self, step: Pass, model: ir.Model, record: PassRecord) -> None: ...
    def failed(self, step: Pass, model: ir.Model, error: Exception) -> None: ...


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A sequence of passes. `Pipeline.parse(str(p), lookup) == p`."""

    passes: tuple[Pass, ...] = ()

    def __str__(self) -> str:
        return ",".join(str(p) for p in self.passes)

    def __add__(self, other: Pipeline) -> Pipeline:
        return Pipeline(self.passes + other.passes)

    @property
    def effect(self) -> Effect:
        """The weakest promise of its passes."""
        return max((p.effect for p in self.passes), default=Effect.EXACT)

    @classmethod
    def parse(cls, text: str, lookup: Callable[[str], type[Pass]]) -> Self:
        """`fold-batch-norm,quantize{bits=8,per=channel}` -> the passes; `lookup` maps an id to its class."""
        return cls(tuple(make_pass(lookup(name), options) for name, options in _split(text)))

    def run(
        self, model: ir.Model, ctx: PassContext, instruments: Sequence[Instrument] = ()
    ) -> tuple[PassRecord, ...]:
        """Run every pass on `model`, in place; one record a pass, summed over the rounds of a `repeat`.

        An error of a pass is a PassError that names it.
        """
        with no_garbage_collection():
            return self._run(model, ctx, instruments)

    def _run(
        self, model: ir.Model, ctx: PassContext, instruments: Sequence[Instrument]
    ) -> tuple[PassRecord, ...]:
        records: list[PassRecord] = []
        first, at, round_, changed = 0, 0, 1, False
        while at < len(self.passes):
            step = self.passes[at]
            record = _run_one(step, model, ctx, instruments)
            if at < len(records):  # a later round: one record a step, with the sums
                before = records[at]
                records[at] = dataclasses.replace(
                    before,
                    rewrites=before.rewrites + record.rewrites,
                    seconds=round(before.seconds + record.seconds, 6),
                )
            else:
                records.append(record)
            changed = changed or record.rewrites > 0
            at += 1
            if isinstance(step, Repeat):
                if changed and round_ < step.limit:
                    at, round_, changed = first, round_ + 1, False
                else:
                    first, round_, changed = at, 1, False
        return tuple(records)


def _run_one(
    step: Pass, model: ir.Model, ctx: PassContext, instruments: Sequence[Instrument]
) -> PassRecord:
    for i in instruments:
        i.before(step, model)
    start = time.perf_counter()
    try:
        rewrites = step.run(model, ctx)
        if not isinstance(rewrites, int):
            raise TypeError(f"run() returned {rewrites!r}, not the number of rewrites")
        record = PassRecord(
            step.id,
            str(step).removeprefix(step.id).strip("{}"),
            step.effect.name,
            rewrites,
            round(time.perf_counter() - start, 6),
        )
        for i in instruments:
            i.after(step, model, record)
    except Exception as error:
        for i in instruments:
            i.failed(step, model, error)
        if isinstance(error, EffcError):
            raise
        raise PassError(
            f"pass {step} failed: {type(error).__name__}: {error}",
            hint=f"leave it out with --skip {step.id}, and report this",
            pass_id=step.id,
            reproducer=getattr(error, "reproducer", ""),
        ) from error
    return record


def make_pass(cls: type[Pass], options: dict[str, str]) -> Pass:
    """Build a pass from option texts, converted to the types of its fields."""
    for name, kind in (("id", str), ("effect", Effect)):
        if not isinstance(getattr(cls, name, None), kind):
            raise ConfigError(
                f"the pass {cls.__qualname__} has no {name}",
                hint='a pass states both in its class, like: id = "my-pass"; effect = Effect.EXACT',
            )
    fields = {f.name.replace("_", "-"): f for f in options_of(cls)}
    types = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for key, text in options.items():
        field = fields.get(key.replace("_", "-"))
        if field is None:
            known = ", ".join(fields) or "none"
            raise ConfigError(f"pass {cls.id} has no option {key!r}", hint=f"its options: {known}")
        values[field.name] = _read(text, types[field.name], f"{cls.id}.{key}")
    try:
        return cls(**values)
    except TypeError as error:  # run() is missing, or an option without a default
        raise ConfigError(
            f"pass {cls.id} can't be made: {error}",
            hint=f"its options: {', '.join(fields) or 'none'}; its class needs a method run(model, ctx)",
        ) from error


def options_of(cls: type[Pass]) -> tuple[dataclasses.Field[Any], ...]:
    """The fields that are a pass's options; a class that is no dataclass has none."""
    return dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()


_NAME = re.compile(r"[A-Za-z0-9_.:/-]+")


def _split(text: str) -> Iterable[tuple[str, dict[str, str]]]:
    at = 0
    text = text.strip()
    while at < len(text):
        match = _NAME.match(text, at)
        if match is None:
            raise ConfigError(
                f"pipeline text: expected a pass name at {text[at : at + 20]!r}",
                hint='write it like "fold-batch-norm,fold-constants{max-bytes=1048576}"',
            )
        name, at = match.group(), match.end()
        options: dict[str, str] = {}
        if at < len(text) and text[at] == "{":
            end = text.find("}", at)
            if end < 0:
                raise ConfigError(f"pipeline text: '{{' of {name} is never closed")
            for item in filter(None, (s.strip() for s in text[at + 1 : end].split(","))):
                key, equals, value = item.partition("=")
                if not equals:
                    raise ConfigError(f"pipeline text: option {item!r} of {name} has no value")
                options[key.strip()] = value.strip()
            at = end + 1
        yield name, options
        while at < len(text) and text[at] in ", \n":
            at += 1


def _read(text: str, kind: Any, where: str) -> Any:
    try:
        if kind is bool:
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        if kind is str:
            return unquote(text)
        if kind in (int, float):
            return kind(text)
        if typing.get_origin(kind) is tuple:
            item = typing.get_args(kind)[0]
            return tuple(_read(t, item, where) for t in text.split("+") if t)
    except (KeyError, ValueError) as error:
        raise ConfigError(f"option {where}={text!r} is no {kind.__name__}") from error
    raise ConfigError(f"option {where} has a type that pipeline text can't carry: {kind}")


def show(value: Any) -> str:
    """An option's value as pipeline text; what that is cut at is escaped as in a URL (names may hold it)."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "+".join(show(v) for v in value)
    if not isinstance(value, str):
        return str(value)
    return "".join(quote(c, safe="") if c in "%,+{}" or c.isspace() else c for c in str(value))


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default
