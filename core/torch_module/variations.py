"""Variations of pictures: with few samples a network learns more from parts of them, mirrored or not."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

# a smaller side is no picture's: spectrograms and features keep their positions
_LEAST_SIDE = 24
_LEAST_AREA = 0.35  # of the picture, as in training on ImageNet, where it is 0.08
_STRETCH = 0.2  # sides change their ratio by up to exp of this


def is_picture(x: Tensor) -> bool:
    """Whether `x` is [N, C, H, W] floats of the size of pictures."""
    return x.ndim == 4 and x.is_floating_point() and min(x.shape[2:]) >= _LEAST_SIDE


def varied(x: Tensor, random: torch.Generator) -> Tensor:
    """Every picture of `x` [N, C, H, W] cut at random, resized to H x W again, and mirrored or not."""
    return torch.cat([_cut(one, random) for one in torch.split(x, 1)])


def _cut(x: Tensor, random: torch.Generator) -> Tensor:
    area, top, left, mirror, ratio = torch.rand(5, generator=random).tolist()
    full = tuple(x.shape[2:])
    side = math.sqrt(_LEAST_AREA + (1 - _LEAST_AREA) * area)
    stretch = math.exp(_STRETCH * (2 * ratio - 1))
    height = min(full[0], round(full[0] * side * stretch))
    width = min(full[1], round(full[1] * side / stretch))
    y, z = round(top * (full[0] - height)), round(left * (full[1] - width))
    part = x[:, :, y : y + height, z : z + width]
    if mirror < 0.5:
        part = part.flip(3)
    if tuple(part.shape[2:]) == full:
        return part
    return functional.interpolate(part, full, mode="bilinear", align_corners=False, antialias=True)
