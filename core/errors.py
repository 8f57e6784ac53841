"""Errors that a user can act on. Anything else that escapes is a bug in effc and keeps its traceback."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


class EffcError(Exception):
    """One line for the user: what happened and where; `hint` says what to do about it."""

    exit_code: ClassVar[int] = 2

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(" ".join(message.split()))
        self.hint = " ".join(hint.split())

    @property
    def kind(self) -> str:
        """The stable name of the error in JSON output."""
        return type(self).__name__


class ConfigError(EffcError):
    """The command, an option, a profile or a plug-in is wrong."""


class FrontendError(EffcError):
    """The source can't be read, is no model, or is not valid."""


class PassError(EffcError):
    """A pass failed. `pass_id` names it; `reproducer` is the file that shows it, if one was written."""

    def __init__(
        self, message: str, *, hint: str = "", pass_id: str = "", reproducer: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.pass_id = pass_id
        self.reproducer = reproducer


class InvariantError(PassError):
    """A pass left an invalid graph, or broke the promise of its effect."""


class BackendUnavailable(EffcError):
    """The toolchain that a target needs is not here."""

    exit_code: ClassVar[int] = 3


class LoweringError(EffcError):
    """The model can't be lowered to the target."""

    exit_code: ClassVar[int] = 3


@dataclass(frozen=True, slots=True)
class Problem:
    """One node that a target can't take."""

    node: str
    op: str
    reason: str
    remedy: str
    source: str = ""  # where in the user's code the node comes from, when the model says so


class UnsupportedOpError(LoweringError):
    """Lists every node that the target can't take."""

    def __init__(self, target: str, problems: Sequence[Problem]) -> None:
        first = problems[0]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(
            f"{target} can't take node {first.node!r} ({first.op}): {first.reason}{more}",
            hint=first.remedy,
        )
        self.problems = tuple(problems)


class TuningError(EffcError):
    """Autotuning failed or its records don't fit."""


class DeviceError(EffcError):
    """The device can't be reached, or running on it failed."""

    exit_code: ClassVar[int] = 3


class VerificationError(EffcError):
    """The artifact's answers differ from the goldens by more than the passes promised."""

    exit_code: ClassVar[int] = 4
