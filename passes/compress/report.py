"""What compressing passes tell about their work: JSON in the model's metadata, by pass."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

COMPRESSION = "effc.compression"


def note(model: ir.Model, pass_id: str, facts: Mapping[str, Any]) -> None:
    """Add what a pass did to `model.metadata_props["effc.compression"]`."""
    known = json.loads(model.metadata_props.get(COMPRESSION, "{}"))
    known.setdefault(pass_id, []).append(dict(facts))
    model.metadata_props[COMPRESSION] = json.dumps(known)


def read_notes(model: ir.Model) -> dict[str, Any]:
    """`{"compression": {pass: [facts, ...]}}` for the manifest; nothing where no such pass ran."""
    notes = model.metadata_props.get(COMPRESSION)
    return {"compression": json.loads(notes)} if notes else {}
