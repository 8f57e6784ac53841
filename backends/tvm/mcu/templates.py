"""C functions made from the texts of the folder `templates`."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from effc.backends.tvm.mcu.program import Kernel


@cache
def template(name: str) -> str:
    """The text of `templates/<name>`."""
    return (files("effc.backends.tvm.mcu") / "templates" / name).read_text(encoding="utf-8")


class Kernels:
    """Makes kernels and names them: what has the same text is one function."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], str] = {}
        self._taken: set[str] = set()

    def make(
        self,
        source: str,
        name: str,
        numbers: Mapping[str, int],
        words: Mapping[str, str] | None = None,
    ) -> Kernel:
        """The kernel of the template `source`, `name` in the best case.

        `numbers` become constants of the function, `words` are put in for identifiers.
        """
        return self.made(template(f"{source}.c"), name, numbers, words)

    def made(
        self,
        text: str,
        name: str,
        numbers: Mapping[str, int],
        words: Mapping[str, str] | None = None,
    ) -> Kernel:
        """The same of a template's text."""
        for word, by in (words or {}).items():
            text = re.sub(rf"\b{word}\b", lambda _, by=by: by, text)  # type: ignore[misc]
        listed = ", ".join(f"{k} = {v}" for k, v in numbers.items())
        enum = textwrap.fill(
            f"enum {{ {listed} }};", 96, subsequent_indent="         ", break_long_words=False
        )
        text = text.replace("/*CONSTANTS*/", enum if numbers else "")
        text = "\n".join(line.rstrip() for line in text.splitlines() if line.strip())
        key = (name, text)
        found = self._names.get(key)
        if found is None:
            found, n = f"effc_{name}", 1
            while found in self._taken:
                n += 1
                found = f"effc_{name}_v{n}"
            self._names[key] = found
            self._taken.add(found)
        return Kernel(found, re.sub(r"\bNAME(?=\b|_)", found, text))
