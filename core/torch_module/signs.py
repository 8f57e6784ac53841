"""Weights of two or three values by channel, trained through their latent float weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

# TWN's approximation of the best threshold, in units of the mean magnitude
TERNARY_THRESHOLD = 0.7


class SignWeight(nn.Module):
    """`forward()` = alpha * sign(latent), alpha by channel of `axis`; or alpha * (-1, 0, 1) with `ternary`.

    Binary: alpha is the mean magnitude, the best in squared error (Rastegari et al. 2016, XNOR-Net). Ternary:
    zero below 0.7 times the mean magnitude, alpha the mean magnitude above (Li et al. 2016, TWN). The
    gradient reaches the latent weight through alpha, and straight through the sign where the latent weight
    is within the clip of BinaryConnect (Courbariaux et al. 2015), here three times alpha.
    """

    def __init__(self, weight: npt.NDArray[Any], axis: int, *, ternary: bool) -> None:
        super().__init__()
        self.latent = nn.Parameter(torch.from_numpy(np.array(weight, np.float32)))
        self.others = tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
        self.ternary = ternary

    def signs(self) -> Tensor:
        """-1 and 1, or -1, 0 and 1, as floats; a latent 0 counts as positive where there is no 0."""
        with torch.no_grad():
            if not self.ternary:
                return torch.where(self.latent >= 0, 1.0, -1.0)
            size = self.latent.abs()
            kept = size > TERNARY_THRESHOLD * size.mean(self.others, keepdim=True)
            return torch.sign(self.latent) * kept

    def scale(self) -> Tensor:
        """alpha, shaped to broadcast against the weight."""
        kept = self.signs().abs()
        count = kept.sum(self.others, keepdim=True).clamp(min=1)
        return (self.latent.abs() * kept).sum(self.others, keepdim=True) / count

    def forward(self) -> Tensor:
        alpha = self.scale()
        inside = self.latent.abs() <= 3 * alpha.detach()
        through = torch.where(inside, self.latent, self.latent.detach()) / alpha.detach().clamp(
            min=1e-12
        )
        return alpha * (self.signs() + through - through.detach())
