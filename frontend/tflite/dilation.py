"""Dilated convolutions that TensorFlow wrote as SPACE_TO_BATCH_ND, convolution, BATCH_TO_SPACE_ND.

Source: tf.nn.convolution (docs of `dilations`), which is defined by those three steps.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from effc.frontend.tflite.read import Contents, Operator, Tensor

PADS = "Pads"  # an option of ours: top, left, bottom, right


def fold_dilations(contents: Contents) -> Contents:
    """The same graph, with each such triple as one convolution with dilations and explicit padding."""
    uses = Counter(i for operator in contents.operators for i in operator.inputs)
    uses.update(contents.outputs)
    makers = {o: operator for operator in contents.operators for o in operator.outputs}
    gone: set[int] = set()
    folded: dict[int, Operator] = {}
    for operator in contents.operators:
        if operator.op != "BATCH_TO_SPACE_ND" or len(operator.inputs) < 3:
            continue
        conv = makers.get(operator.inputs[0])
        if conv is None or conv.op not in ("CONV_2D", "DEPTHWISE_CONV_2D") or not conv.inputs:
            continue
        first = makers.get(conv.inputs[0])
        if first is None or first.op != "SPACE_TO_BATCH_ND" or len(first.inputs) < 3:
            continue
        if not all(len(o.outputs) == 1 for o in (first, conv, operator)):
            continue
        if uses[first.outputs[0]] != 1 or uses[conv.outputs[0]] != 1:
            continue
        made = _folded(contents.tensors, first, conv, operator)
        if made is not None:
            folded[operator.index] = made
            gone |= {first.index, conv.index}
    operators = (folded.get(o.index, o) for o in contents.operators if o.index not in gone)
    return replace(contents, operators=tuple(operators))


def _folded(
    tensors: tuple[Tensor, ...], first: Operator, conv: Operator, last: Operator
) -> Operator | None:
    block, edges = (_ints(tensors, first.inputs[k]) for k in (1, 2))
    again, crops = (_ints(tensors, last.inputs[k]) for k in (1, 2))
    if block is None or edges is None or crops is None or block != again:
        return None
    if (len(block), len(edges), len(crops)) != (2, 4, 4) or min(block) < 1:
        return None
    options = conv.options
    plain = (options.get("StrideH"), options.get("StrideW"), options.get("Padding")) == (1, 1, 1)
    dilations = (options.get("DilationHFactor", 1), options.get("DilationWFactor", 1))
    if not plain or dilations != (1, 1):
        return None
    x, between = tensors[first.inputs[0]], tensors[first.outputs[0]]
    made, y = tensors[conv.outputs[0]], tensors[last.outputs[0]]
    if not (_alike(x, between) and _alike(made, y)) or len(x.shape) != 4 or len(y.shape) != 4:
        return None
    kernel = tensors[conv.input(1)].shape[1:3]
    top, bottom, left, right = (e - c for e, c in zip(edges, crops, strict=True))
    if min(top, bottom, left, right) < 0 or len(kernel) != 2:
        return None
    for axis, pads in ((0, top + bottom), (1, left + right)):
        size = x.shape[1 + axis] + pads - (kernel[axis] - 1) * block[axis]
        if size != y.shape[1 + axis]:
            return None
    return Operator(
        conv.index,
        conv.op,
        False,
        (first.inputs[0], *conv.inputs[1:]),
        last.outputs,
        {
            **options,
            "DilationHFactor": block[0],
            "DilationWFactor": block[1],
            PADS: [top, left, bottom, right],
        },
    )


def _ints(tensors: tuple[Tensor, ...], i: int) -> list[int] | None:
    data = tensors[i].data if i >= 0 else None
    if data is None or data.dtype.kind != "i" or data.size > 16:
        return None
    return [int(v) for v in data.reshape(-1)]


def _alike(a: Tensor, b: Tensor) -> bool:
    if a.dtype != b.dtype:
        return False
    p, q = a.quantization, b.quantization
    if p is None or q is None:
        return p is q
    return (
        p.scale.tobytes() == q.scale.tobytes() and p.zero_point.tobytes() == q.zero_point.tobytes()
    )
