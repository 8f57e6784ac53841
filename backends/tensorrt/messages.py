"""TensorRT's words about a model, turned into one located line with a remedy.

The texts are those of TensorRT 10, 11 and TensorRT for RTX 1.7.1; what is not known is passed on shortened.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import onnx_ir as ir

from effc.backends.tensorrt.layers import nodes_of
from effc.backends.tensorrt.sandbox import Outcome, ParserError
from effc.core.errors import LoweringError, Problem
from effc.core.ir import graphs
from effc.core.source import place_of

# pattern of the text -> reason, remedy
_KNOWN: Sequence[tuple[str, str, str]] = (
    (
        r"Kernel weight dimension failed to broadcast",
        "its group does not divide the channels of its input as its weight says",
        "the weight is [out, in / group, ...]: correct group or the weight",
    ),
    (
        r"Plugin not found",
        "TensorRT has no such operator, and no plugin of that name",
        "export it with standard operators, or cut the model there",
    ),
    (
        r"Node input was not registered",
        "it reads a value that nothing makes",
        "name an input, an initializer or a node's output there",
    ),
    (
        r"Non-zero zero point is not supported",
        "TensorRT quantizes symmetrically, and its zero point is not 0",
        "let effc quantize the float model for this target",
    ),
    (
        r"has type Int32 but must have type .*Int8",
        "TensorRT takes no quantized bias",
        "leave the bias real",
    ),
    (
        r"Unsupported data type for the Cast|Unsupported ONNX data type",
        "TensorRT has no such type",
        "cast to float32, float16, int32 or int64",
    ),
    (
        r"within workspace limit",
        "no kernel fits the workspace",
        "give more with --backend-option workspace=512M, or leave it out",
    ),
    (
        r"no optimization profile has been defined",
        "an input has a dynamic dimension, and no profile says its range",
        "fix it with --shape, or give --backend-option profile=NAME=MIN:OPT:MAX",
    ),
    (
        r"contains HW-specific datatypes: fp8",
        "the GPU does not compute FP8",
        "take --precision fp16 there; FP8 needs Ada (SM89) or later",
    ),
    (
        r"contains HW-specific datatypes: b16",
        "the GPU does not compute bfloat16",
        "take --precision fp16",
    ),
    (
        r"contains HW-specific datatypes: int4",
        "the GPU does not compute INT4",
        "take 8-bit weights",
    ),
    (
        r"FP32 GEMM is not supported",
        "TensorRT for RTX has no float32 matrix product on SM75 (Turing)",
        "take --precision fp16",
    ),
    (
        r"has no runners that implement it",
        "TensorRT has no kernel for it here",
        "cut the model there, or write it with other operators",
    ),
    (
        r"is_decomposable",
        "TensorRT for RTX takes Attention in half precision with heads of 16 channels or more",
        "take --precision fp16, or write it as MatMul and Softmax",
    ),
    (r"^false$", "TensorRT does not take this operator", "cut the model there"),
    (
        r"out of memory|cudaError 2\b|MEM_ALLOC_FAILED",
        "the GPU's memory does not suffice to build",
        "close what else uses the GPU, or give --backend-option workspace=512M",
    ),
)
_GENERAL = "see the operators in backends/tensorrt/README.md, or cut the model there"


def explain(text: str) -> tuple[str, str]:
    """(reason, remedy) of one of TensorRT's messages."""
    for pattern, reason, remedy in _KNOWN:
        if re.search(pattern, text):
            return reason, remedy
    line = re.sub(r"\s+", " ", text.replace("Assertion failed: ", "")).strip()
    return f"TensorRT says: {line[:200]}", _GENERAL


def parser_problems(model: ir.Model, errors: Sequence[ParserError]) -> list[Problem]:
    """One problem for each node that the parser refuses."""
    places = {n.name: place_of(n) for g in graphs(model) for n in g}
    found: dict[str, Problem] = {}
    for error in errors:
        reason, remedy = explain(error.text)
        problem = Problem(error.node, error.op, reason, remedy, places.get(error.node, ""))
        found.setdefault(error.node or f"{error.op} {len(found)}", problem)
    return list(found.values())


def build_error(outcome: Outcome, target: str) -> LoweringError:
    """The error of a network that was parsed and could not be built."""
    texts = [m for m in outcome.messages if "Error Code" in m] or list(outcome.messages)
    reason, remedy = explain(texts[-1]) if texts else ("TensorRT gives no reason", _GENERAL)
    named = re.search(r"Cannot compile operation '([^']*)'", texts[-1]) if texts else None
    nodes = [named[1]] if named else list(nodes_of(outcome.where))
    where = ""
    if len(nodes) == 1:
        where = f"node {nodes[0]!r}: "
    elif nodes:
        where = f"among the {len(nodes)} nodes from {nodes[0]!r} to {nodes[-1]!r}: "
    return LoweringError(f"{target} can't take the model: {where}{reason}", hint=remedy)
