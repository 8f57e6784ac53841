"""Packages that are not effc's own dependencies: imported when asked for, refused with a remedy."""

from __future__ import annotations

import importlib
from types import ModuleType

from effc.core.errors import BackendUnavailable


def require(what: str, extra: str, *packages: str, hint: str = "") -> tuple[ModuleType, ...]:
    """Import `packages`; BackendUnavailable, naming effc's `extra` that installs them, where one fails.

    `what` is the thing that needs them, for the message; `hint` says how to get what no extra installs.
    """
    modules = []
    for package in packages:
        try:
            modules.append(importlib.import_module(package))
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] not in packages:
                raise _broken(what, package, extra, error) from error
            raise BackendUnavailable(
                f"{what} needs {package}, not installed here",
                hint=hint or f"pip install 'effc[{extra}]' (tools/effc installs it by itself)",
            ) from error
        except Exception as error:  # a broken installation raises OSError, RuntimeError, ...
            raise _broken(what, package, extra, error) from error
    return tuple(modules)


def _broken(what: str, package: str, extra: str, error: Exception) -> BackendUnavailable:
    return BackendUnavailable(
        f"{what} needs {package}, which fails to import: {type(error).__name__}: {error}",
        hint=f"reinstall it with pip install 'effc[{extra}]'",
    )
