"""Layer by layer: what a compressed weight can no longer say, the others of its row make up for.

The squared error of a linear layer's output is (w - v) H (w - v)^T for a row of weights w and its
replacement v, H the second moments of the layer's inputs on samples. Columns are settled one after the
other, and each one's error is spread over those still free, as the inverse of H says (Hassibi and Stork,
"Optimal brain surgeon", 1993; Frantar and Alistarh, SparseGPT, arXiv 2301.00774, and GPTQ, arXiv
2210.17323). The bias is one more column, and the last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import onnx_ir as ir

from effc.core.data import Samples
from effc.core.ir import Array, add_const, attr, const, is_op, shape_of
from effc.core.passinfra import PassContext
from effc.core.reference import OnnxRuntimeRunner
from effc.passes.compress.weights import Weight
from effc.passes.quantize.calibrate import with_outputs

_ROWS = 128  # of one sample that are looked at
_WIDEST = 2304  # inputs of a neuron: the inverse costs their cube
_DAMPING = 0.01  # of the mean moment, added to all


@dataclass(frozen=True, slots=True)
class Moments:
    """Second moments of the inputs of a linear layer, a one appended: float64 [groups, K + 1, K + 1]."""

    h: Array
    turned: bool = False  # the weight is [K, outputs]

    def rows(self, array: Array) -> Array:
        """A weight as [groups, outputs of a group, K]."""
        ordered = array.T if self.turned else array
        return ordered.reshape(self.h.shape[0], -1, self.h.shape[1] - 1)

    def array(self, rows: Array, shape: tuple[int, ...]) -> Array:
        """The inverse of `rows`."""
        return rows.reshape(shape[::-1]).T if self.turned else rows.reshape(shape)

    @property
    def mean(self) -> Array:
        """Of the inputs, [groups, K]."""
        return self.h[:, :-1, -1]

    @property
    def centered(self) -> Array:
        """Moments [groups, K, K] of what a bias can't make up for."""
        found: Array = self.h[:, :-1, :-1] - self.mean[:, :, None] * self.mean[:, None, :]
        return found


def moments(
    model: ir.Model, weights: Sequence[Weight], samples: Samples, count: int, seed: int
) -> dict[str, Moments]:
    """Moments on the first `count` samples, by the weight's name.

    For weights of one Conv, or one Gemm or MatMul that holds them as [outputs, K] or [K, outputs].
    """
    layers = {w.name: w.users[0] for w in weights if _is_simple(w)}
    if not layers:
        return {}
    inputs = {str(v.name) for v in model.graph.inputs}
    wanted = sorted({str(n.inputs[0].name) for n in layers.values() if n.inputs[0]} - inputs)
    rng = np.random.default_rng(seed)
    sums: dict[str, Array] = {}
    with OnnxRuntimeRunner(with_outputs(model, wanted)) as runner:
        for feeds in islice(samples, count):
            values = {**feeds, **runner.infer(feeds)}
            for name, node in layers.items():
                assert node.inputs[0] is not None
                x = _columns(node, values[str(node.inputs[0].name)], rng)
                one = np.ones((*x.shape[:2], 1), np.float32)
                x = np.concatenate([x, one], axis=2)
                h = np.swapaxes(x, 1, 2) @ x / np.float32(x.shape[1])
                sums[name] = sums[name] + h if name in sums else h.astype(np.float64)
    n = min(count, len(samples))
    turned = {w.name: not is_op(w.users[0], "Conv") and w.axis != 0 for w in weights}
    return {name: Moments(h / n, turned[name]) for name, h in sums.items()}


def real_moments(
    model: ir.Model, weights: Sequence[Weight], ctx: PassContext, count: int
) -> dict[str, Moments]:
    """`moments` on the samples that the user gave; nothing where they are made up."""
    if not count or ctx.samples is None or ctx.samples.synthetic:
        return {}
    return moments(model, weights, ctx.samples, count, ctx.seed)


def _is_simple(weight: Weight) -> bool:
    if len(weight.users) != 1 or len(list(weight.value.uses())) != 1:
        return False
    node, array = weight.users[0], weight.array
    if is_op(node, "Conv"):
        return array.ndim == 4 and array[0].size <= _WIDEST and not attr(node, "auto_pad")
    if not is_op(node, "Gemm", "MatMul") or array.ndim != 2 or node.inputs[1] is not weight.value:
        return False
    if attr(node, "transA", 0) or attr(node, "alpha", 1.0) != 1 or attr(node, "beta", 1.0) != 1:
        return False
    return bool(array.shape[1 - weight.axis] <= _WIDEST)


def _columns(node: ir.Node, x: Array, rng: np.random.Generator) -> Array:
    """What the layer multiplies, float32 [groups, rows, K]."""
    if not is_op(node, "Conv"):
        flat = x.reshape(-1, x.shape[-1])
        return _some(flat, rng)[None]
    kernel = shape_of(node.inputs[1])
    assert kernel is not None
    groups = attr(node, "group", 1)
    top, left, bottom, right = attr(node, "pads", (0, 0, 0, 0))
    sy, sx = attr(node, "strides", (1, 1))
    dy, dx = attr(node, "dilations", (1, 1))
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    extent = ((kernel[2] - 1) * dy + 1, (kernel[3] - 1) * dx + 1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, extent, axis=(2, 3))
    windows = windows[:, :, ::sy, ::sx, ::dy, ::dx]  # [n, c, oh, ow, kh, kw]
    n, c, oh, ow = windows.shape[:4]
    places = np.arange(n * oh * ow)
    if len(places) > _ROWS:
        places = np.sort(rng.choice(places, _ROWS, replace=False))
    at = np.unravel_index(places, (n, oh, ow))
    taken = windows[at[0], :, at[1], at[2]]  # [rows, c, kh, kw]
    taken = taken.reshape(len(places), groups, -1)
    return np.swapaxes(taken, 0, 1)


def _some(rows: Array, rng: np.random.Generator) -> Array:
    return rows[rng.choice(len(rows), _ROWS, replace=False)] if len(rows) > _ROWS else rows


def inverse_root(moments: Moments) -> Array:
    """Upper triangular u [groups, K + 1, K + 1] with u^T u the inverse of the damped moments."""
    h = moments.h.copy()
    diagonal = np.einsum("gii->gi", h)
    diagonal += _DAMPING * diagonal.mean(axis=1, keepdims=True) + 1e-12
    return np.swapaxes(np.linalg.cholesky(np.linalg.inv(h)), 1, 2)


def settle(rows: Array, root: Array, choose: Callable[[Array, int], Array]) -> tuple[Array, Array]:
    """Settle the columns of `rows` [groups, outputs, K] in order; the settled rows and the biases' change.

    `choose(column [groups, outputs], k)` gives what column k becomes.
    """
    work = np.concatenate([rows.astype(np.float64), np.zeros((*rows.shape[:2], 1))], axis=2)
    for k in range(rows.shape[2]):
        column = work[:, :, k]
        settled = choose(column, k)
        error = (column - settled) / root[:, k, k][:, None]
        work[:, :, k + 1 :] -= error[:, :, None] * root[:, None, k, k + 1 :]
        work[:, :, k] = settled
    return work[:, :, :-1], work[:, :, -1]


def has_bias(weight: Weight) -> bool:
    """Whether `shift_bias` can change the layer's bias."""
    node = weight.users[0]
    if len(node.inputs) < 3 or not is_op(node, "Conv", "Gemm"):
        return False
    bias = const(node.inputs[2])
    outputs = weight.array.shape[weight.axis]
    return bias is not None and bias.size == outputs and bias.dtype == np.float32


def shift_bias(weight: Weight, change: Array) -> str:
    """Add `change`, [outputs] in any shape, to the bias of a layer that has one; the new constant's name."""
    node = weight.users[0]
    value = node.inputs[2]
    bias = const(value)
    graph = node.graph
    assert isinstance(graph, ir.Graph) and value is not None and bias is not None
    moved = (bias.astype(np.float64) + change.reshape(bias.shape)).astype(np.float32)
    new = add_const(graph, f"{value.name}/shifted", moved)
    node.replace_input_with(2, new)
    if not value.uses() and str(value.name) in graph.initializers:
        del graph.initializers[str(value.name)]
    return str(new.name)
