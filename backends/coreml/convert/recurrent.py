"""LSTM, GRU and RNN with constant weights. Gates are put into MIL's order.

In which order MIL gives the steps of a reversed direction is not documented for each of them: a sequence
that runs backward is turned around before and after.
"""

from __future__ import annotations

import numpy as np

from effc.backends.coreml.convert.call import Call, Refusal, Var
from effc.backends.coreml.convert.table import op

_NAMES = {"sigmoid": "sigmoid", "tanh": "tanh", "relu": "relu"}


def _common(
    c: Call, gates: int
) -> tuple[str, list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Direction, and W, R, B (both biases) of each direction."""
    c.only_float()
    if c.has(4):
        lengths = c.need(4, "sequence lengths").reshape(-1)
        if np.any(lengths != c.shape()[1 if c.attr("layout", 0) else 0]):
            raise Refusal("its sequences have different lengths", "pad them in the application")
    if c.attr("clip") is not None:
        raise Refusal("it clips its gates, which Core ML does otherwise", "train without clip")
    if c.attr("activation_alpha") or c.attr("activation_beta"):
        raise Refusal("its activations have parameters")
    kind = c.numpy()
    w, r = (c.need(i, "weights").astype(kind) for i in (1, 2))
    hidden = r.shape[-1]
    b = c.need(3, "bias") if c.has(3) else np.zeros((len(w), 2 * gates * hidden))
    return c.text("direction", "forward"), list(w), list(r), list(b.astype(kind))


def _activations(c: Call, default: tuple[str, ...], directions: int) -> tuple[str, ...]:
    found = [a.decode() if isinstance(a, bytes) else a for a in c.attr("activations", ())]
    names = tuple(a.lower() for a in found) or default * directions
    n = len(default)
    if any(names[i * n : (i + 1) * n] != names[:n] for i in range(directions)):
        raise Refusal("its directions have different activations")
    if any(a not in _NAMES for a in names):
        raise Refusal(f"its activations are {', '.join(found)}; Core ML has sigmoid, tanh and relu")
    return names[:n]


def _ordered(matrix: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """The blocks of the first axis in another order."""
    parts = np.split(matrix, len(order), 0)
    return np.ascontiguousarray(np.concatenate([parts[i] for i in order], 0))


def _sequence(c: Call) -> Var:
    """[time, batch, features]"""
    return c.mb.transpose(x=c.x(), perm=[1, 0, 2]) if c.attr("layout", 0) else c.x()


def _state(c: Call, index: int, directions: int, hidden: int) -> Var:
    """[batch, directions * hidden]"""
    batch = c.shape()[0 if c.attr("layout", 0) else 1]
    if not c.has(index):
        return c.constant(np.zeros((batch, directions * hidden), c.numpy()))
    state = c.x(index)
    if not c.attr("layout", 0):
        state = c.mb.transpose(x=state, perm=[1, 0, 2])
    return c.reshaped(state, (batch, directions * hidden))


def _outputs(c: Call, sequence: Var, states: list[Var], directions: int) -> tuple[Var, ...]:
    """MIL: [time, batch, directions * hidden] and [batch, directions * hidden]."""
    steps, batch = int(sequence.shape[0]), int(sequence.shape[1])
    hidden = int(sequence.shape[2]) // directions
    y = c.reshaped(sequence, (steps, batch, directions, hidden))
    order = [1, 0, 2, 3] if c.attr("layout", 0) else [0, 2, 1, 3]
    results = [c.mb.transpose(x=y, perm=order)]
    for state in states:
        split = c.reshaped(state, (batch, directions, hidden))
        results.append(split if c.attr("layout", 0) else c.mb.transpose(x=split, perm=[1, 0, 2]))
    return tuple(results)


@op("LSTM")
def lstm(c: Call) -> tuple[Var, ...]:
    """ONNX orders the gates i o f c, MIL i f o z."""
    direction, w, r, b = _common(c, 4)
    n = len(w)
    if c.attr("input_forget", 0):
        raise Refusal("it couples the input and forget gates")
    gate, cell, out = _activations(c, ("sigmoid", "tanh", "tanh"), n)
    order, hidden = (0, 2, 1, 3), r[0].shape[-1]
    given: dict[str, object] = {}
    for i, suffix in enumerate(("", "_back")[:n]):
        half = 4 * hidden
        given[f"weight_ih{suffix}"] = _ordered(w[i], order)
        given[f"weight_hh{suffix}"] = _ordered(r[i], order)
        given[f"bias{suffix}"] = _ordered(b[i][:half] + b[i][half:], order)
        if c.has(7):
            peepholes = c.need(7, "peepholes").astype(c.numpy())
            given[f"peephole{suffix}"] = _ordered(peepholes[i], (0, 2, 1))
    x = _sequence(c)
    backward = direction == "reverse"
    sequence, h, state = c.mb.lstm(
        x=c.mb.reverse(x=x, axes=[0]) if backward else x,
        initial_h=_state(c, 5, n, hidden),
        initial_c=_state(c, 6, n, hidden),
        direction="forward" if backward else direction,
        output_sequence=True,
        recurrent_activation=gate,
        cell_activation=cell,
        activation=out,
        **given,
    )
    if backward:
        sequence = c.mb.reverse(x=sequence, axes=[0])
    return _outputs(c, sequence, [h, state], n)


@op("GRU")
def gru(c: Call) -> tuple[Var, ...]:
    """Unrolled: which bias of the new gate the reset multiplies is not what MIL's own GRU does."""
    direction, w, r, b = _common(c, 3)
    hidden = r[0].shape[-1]
    gate, new = _activations(c, ("sigmoid", "tanh"), len(w))
    after = bool(c.attr("linear_before_reset", 0))
    x = _sequence(c)
    results, states = [], []
    for i in range(len(w)):
        backward = direction == "reverse" or i == 1
        start = _state(c, 5, len(w), hidden)
        start = c.mb.slice_by_index(
            x=start,
            begin=[0, i * hidden],
            end=[int(start.shape[0]), (i + 1) * hidden],
            stride=[1, 1],
        )
        steps = _gru_steps(c, x, w[i], r[i], b[i], start, after, (gate, new), backward)
        results.append(c.mb.stack(values=steps if not backward else steps[::-1], axis=0))
        states.append(steps[-1])
    sequence = results[0] if len(results) == 1 else c.mb.concat(values=results, axis=2)
    state = states[0] if len(states) == 1 else c.mb.concat(values=states, axis=1)
    return _outputs(c, sequence, [state], len(w))


MAX_STEPS = 64


def _gru_steps(
    c: Call, x: Var, w: np.ndarray, r: np.ndarray, b: np.ndarray, h: Var, after: bool,
    activations: tuple[str, str], backward: bool,
) -> list[Var]:  # fmt: skip
    """One step after the other: MIL's own GRU before iOS 18 can't keep the biases of the new gate apart."""
    steps, hidden = int(x.shape[0]), r.shape[-1]
    if steps > MAX_STEPS:
        raise Refusal(f"it runs {steps} steps, and only {MAX_STEPS} are unrolled", "use LSTM")
    wb, rb = b[: 3 * hidden], b[3 * hidden :]
    gate, new = (getattr(c.mb, a) for a in activations)
    projected = c.mb.linear(x=x, weight=w, bias=wb)
    found = []
    for t in reversed(range(steps)) if backward else range(steps):
        at = c.mb.slice_by_index(
            x=projected, begin=[t, 0, 0], end=[t + 1, int(x.shape[1]), 3 * hidden], stride=[1, 1, 1]
        )
        z_in, r_in, n_in = c.mb.split(x=c.mb.squeeze(x=at, axes=[0]), num_splits=3, axis=1)
        zr = c.mb.linear(x=h, weight=r[: 2 * hidden], bias=rb[: 2 * hidden])
        z_h, r_h = c.mb.split(x=zr, num_splits=2, axis=1)
        z, reset = gate(x=c.mb.add(x=z_in, y=z_h)), gate(x=c.mb.add(x=r_in, y=r_h))
        if after:
            inner = c.mb.linear(x=h, weight=r[2 * hidden :], bias=rb[2 * hidden :])
            inner = c.mb.mul(x=reset, y=inner)
        else:
            inner = c.mb.linear(
                x=c.mb.mul(x=reset, y=h), weight=r[2 * hidden :], bias=rb[2 * hidden :]
            )
        n = new(x=c.mb.add(x=n_in, y=inner))
        keep = c.mb.mul(x=z, y=h)
        h = c.mb.add(x=c.mb.mul(x=c.mb.sub(x=c.like(1, z), y=z), y=n), y=keep)
        found.append(h)
    return found


@op("RNN")
def rnn(c: Call) -> tuple[Var, ...]:
    direction, w, r, b = _common(c, 1)
    hidden = r[0].shape[-1]
    (activation,) = _activations(c, ("tanh",), len(w))
    x = _sequence(c)
    sequences, states = [], []
    start = _state(c, 5, len(w), hidden)
    for i in range(len(w)):
        first = c.mb.slice_by_index(
            x=start,
            begin=[0, i * hidden],
            end=[int(start.shape[0]), (i + 1) * hidden],
            stride=[1, 1],
        )
        backward = direction == "reverse" or i == 1
        sequence, state = c.mb.rnn(
            x=c.mb.reverse(x=x, axes=[0]) if backward else x,
            initial_h=first,
            weight_ih=w[i],
            weight_hh=r[i],
            bias=b[i][:hidden] + b[i][hidden:],
            output_sequence=True,
            activation=activation,
        )
        if backward:
            sequence = c.mb.reverse(x=sequence, axes=[0])
        sequences.append(sequence)
        states.append(state)
    sequence = sequences[0] if len(w) == 1 else c.mb.concat(values=sequences, axis=2)
    state = states[0] if len(w) == 1 else c.mb.concat(values=states, axis=1)
    return _outputs(c, sequence, [state], len(w))
