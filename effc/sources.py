"""Every kind of source that a user may name: `zoo:NAME`, and what the frontends read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import onnx_ir as ir

from effc.core.source import Source
from effc.frontend import load_source


def load(text: str, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Source:
    """Load `zoo:NAME`, `module:attribute`, `file.py:attribute` or a model file."""
    if not text.startswith("zoo:"):
        return load_source(text, shapes or {})
    from effc import zoo

    name = text.removeprefix("zoo:")
    model = zoo.build(name)
    wants = zoo.member(name.partition("{")[0]).preprocess
    digest = hashlib.sha256(ir.to_proto(model).SerializeToString(deterministic=True)).hexdigest()
    return Source(model=model, kind="zoo", name=text, sha256=digest, preprocess=wants)
