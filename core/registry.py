"""Named things, built in or plugged in through entry points, imported when asked for."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from effc.core.errors import ConfigError


class Registry:
    """Names -> `module:attribute`, from a literal table and from one entry-point group.

    A name that two distributions claim raises; a plug-in that fails to import is reported by
    `failures()` and raises with its reason when it is asked for.
    """

    def __init__(self, noun: str, group: str, builtin: Mapping[str, str]) -> None:
        self.noun = noun
        self.group = group
        self._builtin = builtin
        self._plugged: dict[str, str] | None = None

    def table(self) -> dict[str, str]:
        """All names with where they come from, built-ins first."""
        if self._plugged is None:
            plugged: dict[str, str] = {}
            for point in entry_points(group=self.group):
                if point.name in self._builtin or point.name in plugged:
                    other = self._builtin.get(point.name) or plugged[point.name]
                    raise ConfigError(
                        f"{self.noun} {point.name!r} is registered twice: {other} and {point.value}",
                        hint="uninstall one of the two packages, or rename one entry point",
                    )
                plugged[point.name] = point.value
            self._plugged = plugged
        return {**self._builtin, **self._plugged}

    def get(self, name: str) -> Any:
        """The object registered as `name`, imported now."""
        table = self.table()
        if name not in table:
            import difflib

            close = difflib.get_close_matches(name, table, 1)
            raise ConfigError(
                f"unknown {self.noun} {name!r}",
                hint=f"did you mean {close[0]!r}?"
                if close
                else f"known: {', '.join(sorted(table))}",
            )
        return load(table[name], self.noun)

    def failures(self) -> dict[str, str]:
        """Plug-ins that can't be imported, with the reason."""
        reasons: dict[str, str] = {}
        for name in self.table():
            if name in self._builtin:
                continue
            try:
                self.get(name)
            except ConfigError as error:
                reasons[name] = str(error)
        return reasons


def load(where: str, noun: str) -> Any:
    """Import `package.module:attribute` or `path/to/file.py:attribute`."""
    module_name, _, attribute = where.rpartition(":")
    if not module_name or not attribute:
        raise ConfigError(f"{noun} {where!r} is not of the form module:name or file.py:name")
    try:
        module = (
            _from_file(Path(module_name))
            if module_name.endswith(".py")
            else (importlib.import_module(module_name))
        )
        found: Any = module
        for part in attribute.split("."):
            found = getattr(found, part)
        return found
    except ConfigError:
        raise
    except Exception as error:  # a plug-in may raise anything while it is imported
        raise ConfigError(
            f"{noun} {where!r} can't be imported: {type(error).__name__}: {error}",
            hint="fix the module, or install what it needs",
        ) from error


def _from_file(path: Path) -> Any:
    if not path.is_file():
        raise ConfigError(f"no file {str(path)!r}")
    name = f"effc_user_{path.stem}_{abs(hash(path.resolve()))}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{str(path)!r} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
