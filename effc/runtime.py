"""Run a built model from Python with numpy alone: no TVM, no ONNX, no onnxruntime.

from effc.runtime import Model

with Model("out", threads=2) as model:      # an artifact of the tvm backend, or its model.so
    scores = model(input=image)["logits"]
"""

from __future__ import annotations

from effc.core.native import CallTime, Model, Tensor

__all__ = ["CallTime", "Model", "Tensor"]
