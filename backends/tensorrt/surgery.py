"""Operators replaced by TensorRT's plugins, with onnx-graphsurgeon."""

from __future__ import annotations

import contextlib
import sys

import numpy as np
import onnx_ir as ir

from effc.core.errors import ConfigError, Problem, UnsupportedOpError
from effc.core.ir import const, is_op, scalar, shape_of

# the first TensorRT without EfficientNMS_ONNX_TRT (README of the plugin)
PLUGIN_REMOVED = (10, 16)


def use_nms_plugin(model: ir.Model, version: str, target: str) -> ir.Model:
    """The model with NonMaxSuppression as EfficientNMS_ONNX_TRT; itself where there is none.

    The plugin's output has the fixed shape [batch * max_output_boxes_per_class, 3], where INMSLayer's depends
    on data. With several classes that could cut boxes off, and is refused, as is a TensorRT without it.
    """
    nodes = [n for n in model.graph if is_op(n, "NonMaxSuppression")]
    if not nodes:
        return model
    release = tuple(int(p) for p in version.split(".")[:2])
    if release >= PLUGIN_REMOVED:
        raise ConfigError(
            f"TensorRT {version} has no EfficientNMS_ONNX_TRT: it ended with 10.15",
            hint="take --backend-option nms=layer",
        )
    problems = [Problem(str(n.name), n.op_type, why, _LAYER) for n in nodes if (why := _why_not(n))]
    if problems:
        raise UnsupportedOpError(target, problems)
    import onnx_graphsurgeon as gs

    with contextlib.redirect_stdout(sys.stderr):  # graphsurgeon logs to stdout, which is the job's
        graph = gs.import_onnx(ir.to_proto(model))
        for node in graph.nodes:
            if node.op == "NonMaxSuppression":
                _replace(node)
        graph.cleanup().toposort()
        made: ir.Model = ir.from_proto(gs.export_onnx(graph, do_type_check=False))
        return made


_LAYER = "take --backend-option nms=layer"


def _why_not(node: ir.Node) -> str:
    for index in (2, 3, 4):
        value = node.inputs[index] if len(node.inputs) > index else None
        if value is not None and const(value) is None:
            return "the plugin takes constant limits, and one here is computed"
    scores = shape_of(node.inputs[1])
    if scores is None or scores[1] != 1:
        return "the plugin's output has room for the boxes of one class only"
    if len(node.inputs) < 3 or node.inputs[2] is None or not scalar(node.inputs[2]):
        return "without max_output_boxes_per_class it gives no boxes"
    return ""


def _replace(node: object) -> None:
    """Turn a gs.Node of NonMaxSuppression into the plugin."""
    inputs = list(node.inputs)  # type: ignore[attr-defined]
    limits = [float(np.asarray(t.values).reshape(())) for t in inputs[2:]] + [0.0] * (
        5 - len(inputs)
    )
    attributes = node.attrs  # type: ignore[attr-defined]
    node.op = "EfficientNMS_ONNX_TRT"  # type: ignore[attr-defined]
    node.attrs = {  # type: ignore[attr-defined]
        "plugin_version": "1",
        "max_output_boxes_per_class": int(limits[0]),
        "iou_threshold": limits[1],
        "score_threshold": limits[2],
        "center_point_box": int(attributes.get("center_point_box", 0)),
    }
    node.inputs = inputs[:2]  # type: ignore[attr-defined]
