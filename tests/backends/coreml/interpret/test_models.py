"""Whole models: torch modules, converted by coremltools' own frontend, give torch's answers."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from effc.backends.coreml.interpret import Interpreter


class Block(nn.Module):
    """Mobile convolutions with squeeze and excitation, and a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand = nn.Sequential(
            nn.Conv2d(width, 2 * width, 1, bias=False), nn.BatchNorm2d(2 * width), nn.Hardswish()
        )
        self.depth = nn.Conv2d(2 * width, 2 * width, 5, padding=2, groups=2 * width)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(2 * width, 2 * width, 1))
        self.project = nn.Conv2d(2 * width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.relu6(self.depth(self.expand(x)))
        return x + self.project(y * torch.sigmoid(self.gate(y)))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.GroupNorm(4, 16), nn.SiLU(), Block(16), nn.MaxPool2d(3, 2, 1),
        Block(16), nn.ConvTranspose2d(16, 8, 4, 2, 1), nn.PReLU(8),
        nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(8, 4, 3, 1, 1, 1), nn.PixelShuffle(2),
        nn.Flatten(), nn.LazyLinear(10), nn.LogSoftmax(-1),
    )  # fmt: skip


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 8, 8)
        self.position = nn.Parameter(torch.randn(1, 16, 24))
        self.norm = nn.LayerNorm(24)
        self.qkv, self.out = nn.Linear(24, 72), nn.Linear(24, 24)
        self.mlp = nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24))
        self.head = nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.patches(x).flatten(2).transpose(1, 2) + self.position
        q, k, v = self.qkv(self.norm(y)).reshape(1, 16, 3, 4, 6).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        y = y + self.out(mixed.transpose(1, 2).reshape(1, 16, 24))
        y = y + self.mlp(y)
        return self.head(y.mean(1))


class Sequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(32, 12, bidirectional=True, batch_first=True)
        self.head = nn.Linear(24, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x[:, 0])[0])


MODELS = {"convolutional": convolutional, "transformer": Transformer, "sequence": Sequence}


def traced(mil: Any, model: nn.Module, x: torch.Tensor, path: Path, half: bool) -> Interpreter:
    ct = mil.ct
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converted = ct.convert(
            torch.jit.trace(model, x, check_trace=False),
            inputs=[ct.TensorType(name="x", shape=x.shape)],
            outputs=[ct.TensorType(name="y")],
            convert_to="mlprogram",
            compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
            minimum_deployment_target=ct.target.iOS17,
            skip_model_load=True,
        )
    converted.save(str(path))
    return Interpreter(path)


@pytest.mark.parametrize(("name", "half"), [*((n, False) for n in MODELS), ("convolutional", True)])
def test_model(mil: Any, tmp_path: Path, name: str, half: bool) -> None:
    torch.manual_seed(3)
    x = torch.randn(1, 3, 32, 32)
    model = MODELS[name]()
    model(x)  # shapes of the lazy layers
    model.eval()
    for p in model.parameters():
        with torch.no_grad():
            p.add_(0.05 * torch.randn_like(p))
    with torch.no_grad():
        want = model(x).numpy()
    interpreter = traced(mil, model, x, tmp_path / "m.mlpackage", half)
    got = interpreter.predict({"x": x.numpy()})["y"]
    assert interpreter.half == half
    scale = np.abs(want).max()
    np.testing.assert_allclose(got, want, atol=(2e-2 if half else 1e-5) * scale)
