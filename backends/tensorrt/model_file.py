"""The model as TensorRT's parser reads it: an ONNX file."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

# over this size weights go to a file of their own: protobuf stops at 2 GB
_EXTERNAL_BYTES = 1 << 30


def write_onnx(model: ir.Model, path: Path) -> list[Path]:
    """Write `model` at `path`, large weights beside it; every file written."""
    weights = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value)
    if weights > _EXTERNAL_BYTES:
        ir.save(model, path, external_data=f"{path.stem}.data")
        return [path, path.with_name(f"{path.stem}.data")]
    path.write_bytes(ir.to_proto(model).SerializeToString(deterministic=True))
    return [path]
