"""Recurrent layers over sequences [s, b, i].

With direction `reverse` the sequence is read from its end, and the outputs come in the order in which
they were computed; `bidirectional` gives both directions in the order of time (coremltools' tests on
macOS). Parameters of hard_sigmoid and scaled_tanh: NeuralNetwork.proto.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from effc.backends.coreml.interpret.ops.activation import logistic
from effc.backends.coreml.interpret.ops.registry import Undefined, op
from effc.core.measure import Array

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": logistic,
    "tanh": np.tanh,
    "scaled_tanh": lambda x: (1.7159 * np.tanh(x * (2 / 3))).astype(x.dtype),
    "hard_sigmoid": lambda x: np.clip(0.2 * x + 0.5, 0, 1).astype(x.dtype),
    "sigmoid_hard": lambda x: np.clip(0.2 * x + 0.5, 0, 1).astype(x.dtype),
}


def _activation(name: str) -> Callable[[Array], Array]:
    if name not in ACTIVATIONS:
        raise Undefined(f"activation {name!r}")
    return ACTIVATIONS[name]


def _ordered(x: Array, direction: str) -> Array:
    if direction not in ("forward", "reverse"):
        raise Undefined(f"direction {direction!r}")
    return x if direction == "forward" else x[::-1]


def _sequence(states: list[Array], output_sequence: Array | bool) -> Array:
    return np.stack(states) if output_sequence else states[-1][None]


@op("rnn")
def rnn(
    x: Array,
    initial_h: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias: Array | None = None,
    direction: str = "forward",
    output_sequence: Array | bool = False,
    activation: str = "tanh",
) -> tuple[Array, Array]:
    act, h = _activation(activation), initial_h
    states = []
    for step in _ordered(x, direction):
        gate = step @ weight_ih.T + h @ weight_hh.T
        h = act(gate if bias is None else gate + bias)
        states.append(h)
    return _sequence(states, output_sequence), h


@op("gru")
def gru(
    x: Array,
    initial_h: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias: Array | None = None,
    direction: str = "forward",
    output_sequence: Array | bool = False,
    recurrent_activation: str = "sigmoid",
    activation: str = "tanh",
    reset_after: Array | bool = False,
    input_bias: Array | None = None,
) -> tuple[Array, Array]:
    """Gates in the order reset, output, update. The reset gate multiplies the state before the matrix.

    That is the formula of NeuralNetwork.proto and of coremltools' tests; the operation's own docstring
    puts it after. iOS 18's `reset_after` puts it after the matrix and `bias` (PyTorch's GRU).
    """
    recur, act, h = _activation(recurrent_activation), _activation(activation), initial_h
    size = h.shape[-1]
    wr, wo, wz = np.split(weight_ih, 3)
    rr, ro, rz = np.split(weight_hh, 3)
    hidden = np.zeros(3 * size, x.dtype) if bias is None else bias
    br, bo, bz = np.split(hidden, 3)
    entering = np.zeros(3 * size, x.dtype) if input_bias is None else input_bias
    ir, io, iz = np.split(entering, 3)
    states = []
    for step in _ordered(x, direction):
        r = recur(step @ wr.T + ir + h @ rr.T + br)
        z = recur(step @ wz.T + iz + h @ rz.T + bz)
        state = r * (h @ ro.T + bo) if reset_after else (r * h) @ ro.T + bo
        h = (1 - z) * act(step @ wo.T + io + state) + z * h
        states.append(h)
    return _sequence(states, output_sequence), h


def _lstm(
    x: Array,
    h: Array,
    c: Array,
    weights: tuple[Array, Array, Array | None, Array | None],
    activations: tuple[str, str, str],
    clip: Array | None,
) -> tuple[list[Array], Array, Array]:
    """Gates in the order input, forget, output, cell; peepholes input, forget, output."""
    weight_ih, weight_hh, bias, peephole = weights
    recur, cell, outer = (_activation(a) for a in activations)
    size = h.shape[-1]
    pi, pf, po = np.split(np.zeros(3 * size, x.dtype) if peephole is None else peephole, 3)
    states = []
    for step in x:
        gates = step @ weight_ih.T + h @ weight_hh.T
        if bias is not None:
            gates = gates + bias
        i, f, o, z = np.split(gates, 4, axis=-1)
        i, f = recur(i + pi * c), recur(f + pf * c)
        c = f * c + i * cell(z)
        if clip is not None:
            c = np.clip(c, -clip, clip)
        h = recur(o + po * c) * outer(c)
        states.append(h)
    return states, h, c


@op("lstm")
def lstm(
    x: Array,
    initial_h: Array,
    initial_c: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias: Array | None = None,
    peephole: Array | None = None,
    weight_ih_back: Array | None = None,
    weight_hh_back: Array | None = None,
    bias_back: Array | None = None,
    peephole_back: Array | None = None,
    direction: str = "forward",
    output_sequence: Array | bool = False,
    recurrent_activation: str = "sigmoid",
    cell_activation: str = "tanh",
    activation: str = "tanh",
    clip: Array | None = None,
) -> tuple[Array, Array, Array]:
    """initial_h, initial_c [b, directions * h] -> states, last state, last memory."""
    acts = (recurrent_activation, cell_activation, activation)
    forward = (weight_ih, weight_hh, bias, peephole)
    if direction != "bidirectional":
        states, h, c = _lstm(_ordered(x, direction), initial_h, initial_c, forward, acts, clip)
        return _sequence(states, output_sequence), h, c
    if weight_ih_back is None or weight_hh_back is None:
        raise Undefined("bidirectional without weights of the backward direction")
    backward = (weight_ih_back, weight_hh_back, bias_back, peephole_back)
    (h1, h2), (c1, c2) = np.split(initial_h, 2, axis=-1), np.split(initial_c, 2, axis=-1)
    first, h1, c1 = _lstm(x, h1, c1, forward, acts, clip)
    second, h2, c2 = _lstm(x[::-1], h2, c2, backward, acts, clip)
    h, c = np.concatenate([h1, h2], axis=-1), np.concatenate([c1, c2], axis=-1)
    if not output_sequence:
        return h[None], h, c
    both = [np.concatenate([a, b], axis=-1) for a, b in zip(first, second[::-1], strict=True)]
    return np.stack(both), h, c
