"""TFLite files into the IR: float32, quantized to int8, uint8 or int16, and with quantized weights.

The interface stays TFLite's own: names, dtypes and layout of inputs and outputs, so an int8 model takes
and gives int8. Every quantized tensor is a QuantizeLinear/DequantizeLinear pair around operators on
real numbers, with the file's own scales, zero points and weights; an operator that only moves elements
works on the stored integers. Convolutions and their like compute channels first, with a Transpose where
the layout changes.
Source: https://ai.google.dev/edge/litert/conversion/tensorflow/quantization/quantization_spec and the
reference kernels of TensorFlow Lite.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from effc.core.check import check_model, normalize
from effc.core.errors import FrontendError
from effc.core.extras import require
from effc.core.ir import no_garbage_collection, shape_of
from effc.core.shapes import infer_shapes
from effc.core.source import Source
from effc.frontend.files import open_regular, printable
from effc.frontend.tflite import blocks, elementwise, movement, reductions, windows
from effc.frontend.tflite.dilation import fold_dilations
from effc.frontend.tflite.graph import Graph, Unsupported
from effc.frontend.tflite.read import DAMAGED, Contents, Operator, read

MAX_FILE_BYTES = 1 << 32
_SHOWN = 20  # refused operators in one message

CONVERTERS = {
    **windows.CONVERTERS,
    **blocks.CONVERTERS,
    **elementwise.CONVERTERS,
    **movement.CONVERTERS,
    **reductions.CONVERTERS,
}

# operators that need more than a converter, and what to do about them
_REMEDIES = {
    "TFLite_Detection_PostProcess": "export the detector without its post-processing (boxes and scores)",
    "IF": "convert without control flow: freeze the condition",
    "WHILE": "convert without control flow: unroll the loop",
    "CALL_ONCE": "freeze the variables before converting",
    "VAR_HANDLE": "freeze the variables before converting",
    "READ_VARIABLE": "freeze the variables before converting",
    "DENSIFY": "convert without sparse weights",
    "LSTM": "effc is for vision models: no recurrent layers",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "effc is for vision models: no recurrent layers",
    "NON_MAX_SUPPRESSION_V4": "export the detector without its post-processing (boxes and scores)",
    "NON_MAX_SUPPRESSION_V5": "export the detector without its post-processing (boxes and scores)",
}


def load(path: str | os.PathLike[str]) -> ir.Model:
    """The model in a TFLite file, its structure checked and all shapes known. FrontendError otherwise."""
    return load_source(path).model


def load_source(path: str | os.PathLike[str]) -> Source:
    """`load`, with the SHA-256 of the file and notes about what the import did."""
    file = Path(path)
    schema: Any = require(f"TensorFlow Lite model {printable(file)}", "tflite", "tflite")[0]
    try:
        with os.fdopen(open_regular(file), "rb") as stream:
            if os.fstat(stream.fileno()).st_size > MAX_FILE_BYTES:
                raise FrontendError(f"it has over {MAX_FILE_BYTES >> 30} GB")
            data = stream.read()
        with no_garbage_collection():
            contents = read(schema, data)
            model = convert(contents)
    except FrontendError as error:
        raise FrontendError(f"{printable(file)}: {error}", hint=error.hint) from error
    except (OSError, MemoryError) as error:
        raise FrontendError(f"{printable(file)} can't be read: {error}") from error
    digest = hashlib.sha256(data).hexdigest()
    return Source(model, "tflite", str(path), digest, tuple(_notes(contents)))


def convert(contents: Contents) -> ir.Model:
    """The model in the IR. FrontendError that lists every operator which effc can't take."""
    refused = [
        (o, "is a custom operator", "")
        if o.custom
        else (o, "is an operator that effc does not take", "")
        for o in contents.operators
        if o.custom or o.op not in CONVERTERS
    ]
    if refused:
        raise _refusal(refused)
    contents = fold_dilations(contents)
    g = Graph(contents)
    for operator in contents.operators:
        g.enter(operator)
        try:
            CONVERTERS[operator.op](g, operator)
        except Unsupported as error:
            refused.append((operator, str(error), error.remedy))
            g.poison(operator)
    if refused:
        raise _refusal(refused)
    model = g.model(contents.outputs)
    check_model(model, allow_nonfinite=True, allow_empty=True)
    normalize(model)
    infer_shapes(model)
    for value, i in g.declared():
        found, said = shape_of(value), contents.tensors[i].shape
        if found is not None and found != said and value.graph is not None:
            raise FrontendError(
                f"tensor {contents.tensors[i].name!r} has the shape {list(said)} in the file, but its "
                f"operator makes {list(found)}",
                hint=DAMAGED,
            )
    return model


def _refusal(refused: list[tuple[Operator, str, str]]) -> FrontendError:
    groups: dict[tuple[str, str], list[Operator]] = {}
    remedies: dict[str, None] = {}
    for operator, reason, remedy in refused:
        groups.setdefault((operator.op, reason), []).append(operator)
        remedies[remedy or _remedy(operator)] = None
    parts = []
    for (op, reason), operators in groups.items():
        numbers = ", ".join(f"#{o.index}" for o in operators[:_SHOWN])
        more = f" and {len(operators) - _SHOWN} more" if len(operators) > _SHOWN else ""
        parts.append(f"{op} (operator {numbers}{more}) {reason}")
    return FrontendError("; ".join(parts), hint="; ".join(remedies))


def _remedy(operator: Operator) -> str:
    if operator.op in _REMEDIES:
        return _REMEDIES[operator.op]
    if operator.custom:
        return f"convert the model with TensorFlow's own operators in place of {operator.op}"
    return f"replace {operator.op} in the model, or export that part to ONNX"


def _notes(contents: Contents) -> list[str]:
    notes = []
    dynamic = [t.name for i in contents.inputs if (t := contents.tensors[i]).dynamic]
    if dynamic:
        notes.append(f"inputs of dynamic shape have the file's own: {', '.join(dynamic[:3])}")
    if contents.subgraphs > 1:
        notes.append(f"the first of {contents.subgraphs} subgraphs")
    hybrid = [o for o in contents.operators if _is_hybrid(contents, o)]
    if hybrid:
        notes.append(
            f"{len(hybrid)} operators have quantized weights and float activations: TFLite quantizes "
            "those activations at run time, effc computes with them as they are"
        )
    return notes


def _is_hybrid(contents: Contents, operator: Operator) -> bool:
    if operator.op not in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
        return False
    x, w = (contents.tensors[operator.input(k)] for k in range(2))
    return x.dtype == np.float32 and w.dtype in (np.int8, np.uint8) and w.data is not None
