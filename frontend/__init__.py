"""Frontends: from what a user names to a checked model in the IR.

A frontend is an object with two functions (`Frontend`). Plug-ins register theirs by an entry point of
the group `effc.frontends`; they are asked before the built-in ones, so they may claim new formats.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from effc.core.errors import ConfigError, FrontendError
from effc.core.registry import Registry
from effc.core.source import Source

FRONTENDS = Registry("frontend", "effc.frontends", {})


class Frontend(Protocol):
    """What an entry point of `effc.frontends` gives."""

    def accepts(self, text: str, head: bytes) -> bool:
        """Whether `text` is for this frontend; `head` is the first 512 bytes if it is a regular file."""
        ...

    def load(self, text: str, shapes: Mapping[str, tuple[int, ...]]) -> Source:
        """Read it. FrontendError or ConfigError, with a hint, where that can't be done.

        `shapes` are the static input shapes that the user chose. A frontend that needs none may ignore
        them: they are applied to dynamic inputs afterwards.
        """
        ...


def load_source(text: str, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Source:
    """Load a model file, `package.module:attribute` or `file.py:attribute`.

    The structure of the result is checked (`effc.core.check`), its weights are not read.
    """
    chosen = shapes or {}
    broken = []
    head = _head(text)
    for name in FRONTENDS.table():
        try:
            frontend: Frontend = FRONTENDS.get(name)
        except ConfigError as error:
            broken.append(str(error))
            continue
        if frontend.accepts(text, head):
            return frontend.load(text, chosen)
    from effc.frontend import onnx, torch
    from effc.frontend.files import is_tflite

    if torch.is_object_name(text):
        return torch.load_source(text, chosen)
    try:
        if is_tflite(head):
            from effc.frontend import tflite

            return tflite.load_source(text)
        return onnx.load_source(text)
    except FrontendError as error:
        if not broken:
            raise
        raise FrontendError(str(error), hint=f"{error.hint} ({'; '.join(broken)})") from error


def _head(text: str) -> bytes:
    from effc.frontend.files import HEAD_BYTES, open_regular

    try:
        with os.fdopen(open_regular(Path(text)), "rb") as stream:
            return stream.read(HEAD_BYTES)
    except (FrontendError, OSError, ValueError):
        return b""
