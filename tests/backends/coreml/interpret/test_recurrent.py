"""Recurrent layers against torch and onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import helper

S, B, N, H = 4, 2, 3, 5  # sequence, batch, input, hidden


def parts(rng: np.random.Generator, gates: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    shapes = [(gates * H, N), (gates * H, H), (gates * H,)]
    wih, whh, bias = (rng.normal(size=s).astype(np.float32) for s in shapes)
    return wih, whh, bias


def start(rng: np.random.Generator, width: int = H) -> np.ndarray:
    return rng.normal(size=(B, width)).astype(np.float32)


def sequence(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(S, B, N)).astype(np.float32)


def reorder(v: np.ndarray, order: str, wanted: str) -> np.ndarray:
    blocks = dict(zip(order, np.split(v, len(order)), strict=True))
    return np.concatenate([blocks[k] for k in wanted])


def torch_layer(kind: Any, weights: list[np.ndarray], **options: Any) -> Any:
    layer = kind(N, H, **options)
    with torch.no_grad():
        for p, w in zip(layer.parameters(), weights, strict=True):
            p.copy_(torch.from_numpy(w))
    return layer


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("output_sequence", [True, False])
def test_rnn(mil: Any, rng: np.random.Generator, direction: str, output_sequence: bool) -> None:
    wih, whh, bias = parts(rng, 1)
    x, h = sequence(rng), start(rng)
    got = mil.run(
        lambda mb, x, h: mb.rnn(
            x=x, initial_h=h, weight_ih=wih, weight_hh=whh, bias=bias, direction=direction,
            output_sequence=output_sequence, activation="relu",
        ),
        {"x": x, "h": h},
    )  # fmt: skip
    layer = torch_layer(torch.nn.RNN, [wih, whh, bias, bias * 0], nonlinearity="relu")
    given = torch.from_numpy(x if direction == "forward" else x[::-1].copy())
    states, last = layer(given, torch.from_numpy(h)[None])
    states = states if output_sequence else states[-1:]
    np.testing.assert_allclose(got[0], states.detach().numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got[1], last[0].detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_gru_resets_before_the_matrix(mil: Any, rng: np.random.Generator, direction: str) -> None:
    """onnxruntime's linear_before_reset = 0; onnx orders the gates update, reset, output."""
    wih, whh, bias = parts(rng, 3)
    x, h = sequence(rng), start(rng)
    got = mil.run(
        lambda mb, x, h: mb.gru(
            x=x, initial_h=h, weight_ih=wih, weight_hh=whh, bias=bias, direction=direction,
            output_sequence=True,
        ),
        {"x": x, "h": h},
        opset=17,
    )  # fmt: skip
    feeds = {
        "x": x if direction == "forward" else x[::-1].copy(),
        "w": reorder(wih, "roz", "zro")[None],
        "r": reorder(whh, "roz", "zro")[None],
        "b": np.concatenate([reorder(bias, "roz", "zro"), np.zeros(3 * H, np.float32)])[None],
        "h": h[None],
    }
    infos = [helper.make_tensor_value_info(k, 1, v.shape) for k, v in feeds.items()]
    outs = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in "yl"]
    node = helper.make_node("GRU", ["x", "w", "r", "b", "", "h"], ["y", "l"], hidden_size=H)
    model = helper.make_model(
        helper.make_graph([node], "g", infos, outs),
        opset_imports=[helper.make_opsetid("", 19)],
        ir_version=9,
    )
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    states, last = session.run(None, feeds)
    np.testing.assert_allclose(got[0], states[:, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got[1], last[0], rtol=1e-4, atol=1e-5)


def test_gru_resets_after_the_matrix(mil: Any, rng: np.random.Generator) -> None:
    wih, whh, bias = parts(rng, 3)
    entering = parts(rng, 3)[2]
    x, h = sequence(rng), start(rng)
    got = mil.run(
        lambda mb, x, h: mb.gru(
            x=x, initial_h=h, weight_ih=wih, weight_hh=whh, bias=bias, input_bias=entering,
            reset_after=True, output_sequence=True,
        ),
        {"x": x, "h": h},
    )  # fmt: skip
    turned = [reorder(v, "roz", "rzo") for v in (wih, whh, entering, bias)]
    states, last = torch_layer(torch.nn.GRU, turned)(*map(torch.from_numpy, (x, h[None])))
    np.testing.assert_allclose(got[0], states.detach().numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got[1], last[0].detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("output_sequence", [True, False])
def test_lstm(mil: Any, rng: np.random.Generator, direction: str, output_sequence: bool) -> None:
    both = direction == "bidirectional"
    first, second = parts(rng, 4), parts(rng, 4)
    x = sequence(rng)
    h, c = start(rng, H * (1 + both)), start(rng, H * (1 + both))
    back = {"weight_ih_back": second[0], "weight_hh_back": second[1], "bias_back": second[2]}
    got = mil.run(
        lambda mb, x, h, c: mb.lstm(
            x=x, initial_h=h, initial_c=c, weight_ih=first[0], weight_hh=first[1], bias=first[2],
            direction=direction, output_sequence=output_sequence, **(back if both else {}),
        ),
        {"x": x, "h": h, "c": c},
    )  # fmt: skip
    weights = []
    for wih, whh, bias in (first, second)[: 1 + both]:
        turned = [reorder(v, "ifoz", "ifzo") for v in (wih, whh, bias)]
        weights += [*turned, np.zeros(4 * H, np.float32)]
    layer = torch_layer(torch.nn.LSTM, weights, bidirectional=both)
    given = torch.from_numpy(x[::-1].copy() if direction == "reverse" else x)
    state = [
        torch.from_numpy(v).reshape(B, 1 + both, H).permute(1, 0, 2).contiguous() for v in (h, c)
    ]
    states, (last, memory) = layer(given, tuple(state))
    last, memory = (v.permute(1, 0, 2).reshape(B, -1).detach().numpy() for v in (last, memory))
    want = states.detach().numpy() if output_sequence else last[None]
    for g, w in zip(got, [want, last, memory], strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5)


def test_lstm_with_peepholes_and_clip(mil: Any, rng: np.random.Generator) -> None:
    """Peepholes of onnxruntime (order i, o, f); the clip by hand, of the memory."""
    wih, whh, bias = parts(rng, 4)
    p = rng.normal(size=3 * H).astype(np.float32)
    x, h, c = sequence(rng), start(rng), start(rng)

    def build(mb: Any, x: Any, h: Any, c: Any) -> Any:
        common = {"initial_h": h, "initial_c": c, "weight_ih": wih, "weight_hh": whh, "bias": bias}
        clip = np.float32(0.3)
        one = mb.slice_by_size(x=x, begin=[0, 0, 0], size=[1, B, N])
        return [
            *mb.lstm(x=x, peephole=p, output_sequence=True, **common),
            mb.lstm(x=one, clip=clip, **common)[2],
            mb.lstm(x=one, **common)[2],
        ]

    states, last, memory, clipped, free = mil.run(build, {"x": x, "h": h, "c": c})
    np.testing.assert_array_equal(clipped, np.clip(free, -0.3, 0.3))
    feeds = {
        "x": x,
        "w": reorder(wih, "ifoz", "iofz")[None],
        "r": reorder(whh, "ifoz", "iofz")[None],
        "b": np.concatenate([reorder(bias, "ifoz", "iofz"), np.zeros(4 * H, np.float32)])[None],
        "h": h[None],
        "c": c[None],
        "p": reorder(p, "ifo", "iof")[None],
    }
    infos = [helper.make_tensor_value_info(k, 1, v.shape) for k, v in feeds.items()]
    outs = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in "ylm"]
    node = helper.make_node(
        "LSTM", ["x", "w", "r", "b", "", "h", "c", "p"], ["y", "l", "m"], hidden_size=H
    )
    model = helper.make_model(
        helper.make_graph([node], "g", infos, outs),
        opset_imports=[helper.make_opsetid("", 19)],
        ir_version=9,
    )
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for got, want in zip((states, last, memory), session.run(None, feeds), strict=True):
        np.testing.assert_allclose(got, want.reshape(got.shape), rtol=1e-4, atol=1e-5)


def test_activations_of_recurrent_layers() -> None:
    from effc.backends.coreml.interpret.ops.recurrent import ACTIVATIONS

    x = np.linspace(-4, 4, 9, dtype=np.float32)
    t = torch.from_numpy(x)
    wants = {
        "hard_sigmoid": torch.clamp(0.2 * t + 0.5, 0, 1),
        "linear": t,
        "relu": torch.relu(t),
        "scaled_tanh": 1.7159 * torch.tanh(t * 2 / 3),
        "sigmoid": torch.sigmoid(t),
        "tanh": torch.tanh(t),
    }
    for name, want in wants.items():
        np.testing.assert_allclose(ACTIVATIONS[name](x), want.numpy(), rtol=1e-5)
