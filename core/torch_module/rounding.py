"""Weights that are integers times a scale, whose rounding is learned.

AdaRound: Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization".
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from effc.core.quant import QuantParams, integer_range
from effc.core.torch_module.quantization import round_through, spread

# the stretched sigmoid reaches 0 and 1 with finite variables
_LOW, _HIGH = -0.1, 1.1
# how far from its integer a trained weight begins, in steps: near the edge it would leave at once
_INSIDE = 0.3


class LearnedRounding(nn.Module):
    """`forward()` = s * (clamp(floor(w / scale) + h + zero) - zero), h in 0..1 learned for each weight.

    It starts as the weight itself, h = its fraction. s begins as `scale`, and can be learned too. `hard`
    rounds every h to 0 or 1. `limits` are the least and the greatest integer, where those of the type are
    not all used.
    """

    def __init__(
        self,
        weight: npt.NDArray[Any],
        params: QuantParams,
        limits: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        real = torch.from_numpy(np.array(weight, np.float32))
        scale = torch.from_numpy(np.array(params.scale, np.float32))
        zero = torch.from_numpy(params.zero_point.astype(np.float32))
        self.scale = spread(scale, real, params.axis, params.block)
        # the scales of blocks are spread over their elements, which must not part
        self.exponent = nn.Parameter(torch.zeros_like(self.scale), requires_grad=not params.block)
        self.zero = spread(zero, real, params.axis, params.block)
        self.low, self.high = limits or integer_range(params.dtype)
        ratio = real / torch.where(self.scale == 0, torch.ones_like(self.scale), self.scale)
        self.floor = torch.floor(ratio)
        share = ((ratio - self.floor - _LOW) / (_HIGH - _LOW)).clamp(1e-4, 1 - 1e-4)
        self.logits = nn.Parameter(torch.log(share / (1 - share)))
        self.decided = torch.zeros_like(real, dtype=torch.bool)
        self.hard = False

    def up(self) -> Tensor:
        """How far up each weight is rounded, in 0..1."""
        h = (torch.sigmoid(self.logits) * (_HIGH - _LOW) + _LOW).clamp(0, 1)
        if self.hard:
            return (h >= 0.5).to(h.dtype)
        return torch.where(self.decided, (h >= 0.5).to(h.dtype), h)

    def decide(self, share: float) -> None:
        """Round the `share` of all weights that lean most to a side for good; the others make up for it."""
        with torch.no_grad():
            lean = (self.logits.abs() + self.decided * 1e9).reshape(-1)
            count = min(lean.numel(), round(share * lean.numel()))
            if count:
                least = torch.topk(lean, count).values[-1]
                self.decided = self.decided | (lean >= least).reshape(self.decided.shape)

    def forward(self) -> Tensor:
        q = (self.floor + self.up() + self.zero).clamp(self.low, self.high)
        result: Tensor = (q - self.zero) * (self.scale * torch.exp(self.exponent))
        return result

    def learned_scale(self, params: QuantParams) -> npt.NDArray[np.float32]:
        """The scale as it is now, in the form that `params` has it."""
        return rescaled(params, self.exponent)

    def undecided(self, power: float) -> Tensor:
        """The regularizer: the mean of 1 - |2h - 1|^power, which is 0 where every h is 0 or 1."""
        return (1 - (2 * self.up() - 1).abs().pow(power)).mean()

    def integers(self) -> npt.NDArray[np.int32]:
        """The rounded weights."""
        with torch.no_grad():
            up = (self.logits >= 0).to(self.floor.dtype)  # h >= 0.5
            q = (self.floor + up + self.zero).clamp(self.low, self.high)
        return q.to(torch.int32).numpy()


class LearnedTensor(nn.Module):
    """`forward()` = start + unit * a learned tensor that begins at 0: steps have the size of `unit`."""

    def __init__(self, start: npt.NDArray[Any], unit: float) -> None:
        super().__init__()
        self.start = torch.from_numpy(np.array(start, np.float32))
        self.unit = unit
        self.change = nn.Parameter(torch.zeros_like(self.start))

    def forward(self) -> Tensor:
        return self.start + self.unit * self.change


class LearnedScale(nn.Module):
    """`forward()` = start * exp(a learned number): a scale stays positive."""

    def __init__(self, start: npt.NDArray[Any]) -> None:
        super().__init__()
        self.start = torch.from_numpy(np.array(start, np.float32))
        self.exponent = nn.Parameter(torch.zeros_like(self.start))

    def forward(self) -> Tensor:
        return self.start * torch.exp(self.exponent)


class Fixed(nn.Module):
    """`forward()` = a tensor."""

    def __init__(self, tensor: npt.NDArray[Any]) -> None:
        super().__init__()
        self.tensor = torch.from_numpy(np.array(tensor))

    def forward(self) -> Tensor:
        return self.tensor


class TrainedIntegers(nn.Module):
    """`forward()` = s * (clamp(round(latent) + zero) - zero); the gradient passes the rounding as it is.

    `latent` is in steps of the scale, and begins at the float weight, moved to where it rounds to `start`.
    s begins as the scale of `params` and can be learned (LSQ, Esser et al. 2020).
    """

    def __init__(
        self,
        weight: npt.NDArray[Any],
        start: npt.NDArray[Any],
        params: QuantParams,
        limits: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        real = torch.from_numpy(np.array(weight, np.float32))
        integers = torch.from_numpy(start.astype(np.float32))
        scale = torch.from_numpy(np.array(params.scale, np.float32))
        zero = torch.from_numpy(params.zero_point.astype(np.float32))
        self.scale = spread(scale, real, params.axis, params.block)
        self.zero = spread(zero, real, params.axis, params.block)
        self.low, self.high = limits or integer_range(params.dtype)
        steps = real / self.scale.clamp(min=1e-30)
        centre = integers - self.zero
        inside = torch.clamp(steps, centre - _INSIDE, centre + _INSIDE)
        self.latent = nn.Parameter(inside)
        self.exponent = nn.Parameter(torch.zeros_like(self.scale), requires_grad=not params.block)

    def forward(self) -> Tensor:
        q = (round_through(self.latent) + self.zero).clamp(self.low, self.high)
        result: Tensor = (q - self.zero) * (self.scale * torch.exp(self.exponent))
        return result

    def integers(self) -> npt.NDArray[np.int32]:
        """The rounded weights."""
        with torch.no_grad():
            q = (torch.round(self.latent) + self.zero).clamp(self.low, self.high)
        return q.to(torch.int32).numpy()

    def learned_scale(self, params: QuantParams) -> npt.NDArray[np.float32]:
        """The scale as it is now, in the form that `params` has it."""
        return rescaled(params, self.exponent)


def rescaled(params: QuantParams, exponent: Tensor) -> npt.NDArray[np.float32]:
    """The scale of `params` times exp(exponent); that of blocks stays."""
    if params.block:
        return params.scale
    factor = torch.exp(exponent.detach()).numpy().reshape(params.scale.shape)
    return np.asarray(params.scale * factor, np.float32)
