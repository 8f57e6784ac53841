"""How integer depthwise convolutions read taps: quads of pixels and the patterns of weights they need."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from effc.backends.tvm.isa import Isa
from effc.backends.tvm.kernels.axes import Axis, Tile, tile_axis
from effc.backends.tvm.kernels.conv import ConvSpec, conv_axes
from effc.backends.tvm.kernels.depthwise import VARIANTS, widest_tile
from effc.backends.tvm.kernels.int8_dot import QUAD, arrange, is_arm, scheme

Array = npt.NDArray[Any]
EXACT = (1 << 24) // (255 * 128)  # taps whose sum float32 holds
Pattern = tuple[int, int, int, int]  # the tap that meets each of four pixels; -1: none


@dataclass(frozen=True, slots=True)
class Quads:
    """How a tile reads a row of taps: from pixel `start` on (relative to tap 0 of its first output)
    four pixels, and which outputs take which pattern of them."""

    start: int
    uses: tuple[tuple[int, Pattern], ...]


@lru_cache(maxsize=4096)
def cover(axis: Axis, tile: Tile) -> tuple[Quads, ...] | None:
    """The cheapest reading of a tile that stays inside the row; None where there is none."""
    if axis.step != 1 and len(axis.taps) > 1:
        return None
    first = tile.begin * axis.stride + axis.offset
    last = first + (tile.tiles - 1) * tile.width * axis.stride
    least, most = -first, axis.size - QUAD - last
    if least > most:
        return None
    best: tuple[float, tuple[Quads, ...]] | None = None
    for grid in (1, 2, 4):
        for phase in range(grid):
            found = _cover(axis, tile, range(least, most + 1), grid, phase)
            if found is not None:
                # turning is a load and a permutation
                cost = sum(2.0 + len(q.uses) for q in found)
                if best is None or cost < best[0]:
                    best = cost, found
    return None if best is None else best[1]


def _cover(
    axis: Axis, tile: Tile, allowed: range, grid: int, phase: int
) -> tuple[Quads, ...] | None:
    needs = [
        {i * axis.stride + j: j for j in range(len(axis.taps)) if tile.valid[j][i]}
        for i in range(tile.width)
    ]
    every = sorted({p for need in needs for p in need})
    if not every:
        return ()
    wanted = range((every[0] - phase) // grid * grid + phase - grid, every[-1] + 1, grid)
    starts = sorted({min(max(s, allowed.start), allowed.stop - 1) for s in wanted})
    uses: dict[int, list[tuple[int, Pattern]]] = {}
    for i, need in enumerate(needs):
        left = dict(need)
        while left:
            chosen = max(
                starts, key=lambda s: (sum(p in left for p in range(s, s + QUAD)), s in uses)
            )
            taken = [left.pop(p, -1) for p in range(chosen, chosen + QUAD)]
            if all(t < 0 for t in taken):
                return None
            uses.setdefault(chosen, []).append((i, (taken[0], taken[1], taken[2], taken[3])))
    return tuple(Quads(start, tuple(use)) for start, use in sorted(uses.items()))


@dataclass(frozen=True)
class DepthwisePlan:
    """Tiles of the innermost axis, and the patterns of weights that they need (None: tap by tap)."""

    axes: tuple[Axis, ...]
    tiles: tuple[Tile, ...]
    patterns: tuple[Pattern, ...] | None
    dynamic: bool
    words: bool  # whether taps are multiplied as int16

    @property
    def tap_dtype(self) -> str:
        """The type of taps that are multiplied one by one."""
        if self.words:
            return "int16"
        return "float32" if math.prod(len(a.taps) for a in self.axes) <= EXACT else "int32"

    @property
    def rows_of_taps(self) -> int:
        """Taps of all axes but the innermost one."""
        return math.prod(len(a.taps) for a in self.axes[:-1])


@lru_cache(maxsize=1024)
def depthwise_plan(spec: ConvSpec, isa: Isa) -> DepthwisePlan:
    """How the kernel of `spec` reads its input."""
    axes = conv_axes(spec)
    inner = axes[-1]
    own = spec.blocking.tile if spec.blocking else None
    if scheme(isa) in ("vnni", "sdot"):
        tiles = tile_axis(inner, own or isa.registers - 6)
        covers = [cover(inner, t) for t in tiles]
        if len(tiles) <= VARIANTS and all(c is not None for c in covers):
            every = {p for c in covers for q in c or () for _, p in q.uses}
            return DepthwisePlan(axes, tiles, tuple(sorted(every)), False, is_arm(isa))
    tiles = tile_axis(inner, own or widest_tile(isa, inner))
    dynamic = len(tiles) > VARIANTS
    if dynamic:
        tiles = (Tile(0, 1, inner.count, ((True,),) * len(inner.taps)),)
    return DepthwisePlan(axes, tiles, None, dynamic, is_arm(isa))


def pack_int_depthwise(spec: ConvSpec, isa: Isa, weight: Array) -> Array:
    """[C, 1, *kernel] int8 -> [block, row of taps, pattern, lane, 4] (`arrange` d), or
    [block, taps, lane] of numbers of the type `tap_dtype`; zeros past C."""
    plan = depthwise_plan(spec, isa)
    channels, lanes = weight.shape[0], isa.lanes
    flat = weight.reshape(channels, plan.rows_of_taps, -1)
    flat = np.pad(flat, ((0, -channels % lanes), (0, 0), (0, 0)))
    blocks = flat.reshape(-1, lanes, *flat.shape[1:])  # block, lane, row, tap
    if plan.patterns is None:
        return np.ascontiguousarray(np.moveaxis(blocks, 1, -1).astype(plan.tap_dtype)).ravel()
    with_none = np.concatenate([blocks, np.zeros_like(blocks[..., :1])], axis=-1)
    picked = with_none[..., np.asarray(plan.patterns).reshape(-1, QUAD)]  # ..., pattern, 4
    return arrange(np.moveaxis(picked, 1, -2), isa)
