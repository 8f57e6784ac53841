"""Matrix products."""

from __future__ import annotations

import math

import numpy as np

from effc.backends.coreml.interpret.ops.registry import Undefined, op
from effc.core.measure import Array


@op("linear")
def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """x [*d, d_in], weight [d_out, d_in], bias [d_out]."""
    y = np.matmul(x, weight.T)
    return y if bias is None else y + bias


@op("matmul")
def matmul(
    x: Array, y: Array, transpose_x: Array | bool = False, transpose_y: Array | bool = False
) -> Array:
    """numpy's rules; transposing has no effect on a vector."""
    if transpose_x and x.ndim > 1:
        x = x.swapaxes(-1, -2)
    if transpose_y and y.ndim > 1:
        y = y.swapaxes(-1, -2)
    return np.matmul(x, y)


@op("einsum")
def einsum(values: list[Array], equation: str) -> Array:
    """Only the two documented forms: "nchw,nwhu->nchu" and "chw,whr->chr", in any letters."""
    left, right = values
    terms, arrow, _ = equation.replace(" ", "").partition("->")
    first = terms.split(",")[0]
    forms = {4: "abcd,adce->abce", 3: "abc,cbd->abd"}
    letters: dict[str, str] = {}
    renamed = "".join(
        letters.setdefault(c, "abcdefgh"[len(letters)]) if c.isalpha() and len(letters) < 8 else c
        for c in equation.replace(" ", "")
    )
    if not arrow or renamed != forms.get(len(first)):
        raise Undefined(f"equation {equation!r}")
    # the second and third axes from the end of x, y: [.., c, h, w] x [.., w, h, u]
    product = np.matmul(left.swapaxes(-3, -2), right.swapaxes(-3, -2))
    return product.swapaxes(-3, -2)


@op("scaled_dot_product_attention", since=18)
def scaled_dot_product_attention(
    query: Array, key: Array, value: Array, attn_mask: Array | None = None
) -> Array:
    """query [b, *, l, e], key [b, *, s, e], value [b, *, s, v]; a bool mask keeps where it is true."""
    scores = query @ key.swapaxes(-1, -2) / np.float32(math.sqrt(query.shape[-1]))
    if attn_mask is not None:
        if attn_mask.dtype.kind == "b":
            scores = np.where(attn_mask, scores, np.float32(-np.inf))
        else:
            scores = scores + attn_mask
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return (e / e.sum(axis=-1, keepdims=True)) @ value
