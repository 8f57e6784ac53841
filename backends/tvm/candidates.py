"""Which blockings a kernel can have, the likely fast ones first: what tuning tries."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Protocol

from effc.backends.tvm.isa import Isa
from effc.backends.tvm.kernels.axes import Axis, tile_axis
from effc.backends.tvm.kernels.blocking import even
from effc.backends.tvm.kernels.choice import Blocking
from effc.backends.tvm.kernels.conv import ConvSpec, conv_axes, direct_of, is_depthwise
from effc.backends.tvm.kernels.depthwise import VARIANTS as EDGES
from effc.backends.tvm.kernels.depthwise import positions, task_rows, widest_tile
from effc.backends.tvm.kernels.direct import VARIANTS, Direct, Phase
from effc.backends.tvm.kernels.gemm import GemmSpec, gemm_of
from effc.backends.tvm.layout import TensorType

_FIRST = 6  # register tiles that are tried before anything else


class Space(Protocol):
    """The blockings of one kernel. `key` names the kernel, epilogue aside."""

    @property
    def key(self) -> str: ...

    def effective(self, blocking: Blocking) -> Hashable | None:
        """Equal for blockings that give the same code; None where the kernel can't be cut so."""

    def candidates(self, best: Blocking) -> Iterator[Blocking]:
        """Blockings worth measuring when `best` is the fastest that is known; some may be illegal."""


def conv_space(spec: ConvSpec, isa: Isa) -> Space | None:
    """The blockings of a convolution; None where there is no choice."""
    spec = replace(spec, blocking=None)
    if is_depthwise(spec, isa):
        space: Space = DepthwiseSpace(spec, isa)
    else:
        space = DirectSpace(direct_of(spec, isa), conv_key(spec))
    return space if space.effective(Blocking()) is not None else None


def gemm_space(spec: GemmSpec, isa: Isa) -> Space | None:
    """The blockings of a product with constant weights; None where there is no choice."""
    spec = replace(spec, blocking=None)
    m, n, k = math.prod(spec.out.shape[:-1]), spec.out.shape[-1], spec.a.shape[-1]
    space = DirectSpace(gemm_of(spec, isa), f"gemm m{m} n{n} k{k}{' bias' * spec.bias}")
    return space if space.effective(Blocking()) is not None else None


@dataclass(frozen=True)
class DirectSpace:
    """Of a direct convolution of one phase, or a product: tiles, chunks, tasks, order, unrolling."""

    direct: Direct
    key: str

    @property
    def _axes(self) -> tuple[Axis, ...]:
        return self.direct.phase_axes[0]

    def phase(self, blocking: Blocking) -> Phase:
        """How the kernel is cut."""
        return replace(self.direct, blocking=blocking).phases[0]

    def effective(self, blocking: Blocking) -> Hashable | None:
        direct = self.direct
        if blocking.chunks is not None and not 1 <= blocking.chunks <= direct.blocks:
            return None
        if len(direct.phase_axes) != 1 or not math.prod(direct.output.shape):
            return None
        phase = self.phase(blocking)
        widest = max(t.width for t in phase.tiles)
        blocks = max(r.width for r in phase.chunks)
        if (
            phase.dynamic
            or len(phase.tiles) > VARIANTS
            or not direct.rule.fits(direct.isa, widest, blocks)
        ):
            return None
        if not direct.native and blocks > 1:
            return None
        unroll = self._unroll(phase)
        return phase.tiles, phase.chunks, phase.group_tiles, phase.stationary, unroll

    def _unroll(self, phase: Phase) -> int:
        """Steps in the innermost body of the widest tile."""
        size = max(t.width for t in phase.tiles) * max(r.width for r in phase.chunks)
        channels = min(self.direct.channels, self.direct.lanes)
        channels = -(-channels // self.direct.quantum)
        most = min(phase.unroll or max(1, self.direct.rule.body // size), channels)
        return max(u for u in range(1, most + 1) if channels % u == 0)

    @cached_property
    def _tiles(self) -> list[Blocking]:
        """Register tiles, cheap ones first by the model; of tiles that cut alike, one."""
        walked = self.phase(Blocking()).walked[-1].count
        seen = set()
        found = []
        for _, width, parts in sorted(self.direct.tile_costs(self._axes)):
            widest = even(walked, -(-walked // width))[0]
            if (widest, parts) not in seen:
                seen.add((widest, parts))
                found.append(Blocking(tile=widest, chunks=parts))
        return found

    def candidates(self, best: Blocking) -> Iterator[Blocking]:
        tiles = self._tiles
        yield from tiles[:_FIRST]
        yield from self._around(best)
        yield from tiles[_FIRST:]

    def _around(self, best: Blocking) -> Iterator[Blocking]:
        """`best` with other tasks, another order or another unrolling."""
        phase = self.phase(best)
        number = sum(t.tiles for t in phase.tiles)
        yield replace(best, stationary=not phase.stationary)
        for unroll in near(self._unroll(phase), (1, 2, 4, 8, 16)):
            yield replace(best, unroll=unroll)
        for group in near(phase.group_tiles, (1, 2, 4, 8, 16, -(-number // 2), number)):
            yield replace(best, group=group)
            yield replace(best, group=group, stationary=not phase.stationary)
        if phase.parts > 1 or self.direct.blocks > 1:
            for chunks in (phase.parts - 1, phase.parts + 1):
                if 1 <= chunks <= self.direct.blocks:
                    yield replace(best, chunks=chunks)


@dataclass(frozen=True)
class DepthwiseSpace:
    """Of a depthwise convolution: pixels of a tile, rows of a task."""

    spec: ConvSpec
    isa: Isa

    @property
    def key(self) -> str:
        return conv_key(self.spec)

    @cached_property
    def _axes(self) -> tuple[Axis, ...]:
        return conv_axes(self.spec)

    @property
    def _rows(self) -> int:
        return math.prod(a.count for a in self._axes[:-1])

    @property
    def _default(self) -> tuple[int, int]:
        blocks = -(-self.spec.output.shape[1] // self.isa.lanes)
        return widest_tile(self.isa, self._axes[-1]), task_rows(
            self._rows, self.spec.output.shape[0] * blocks
        )

    def effective(self, blocking: Blocking) -> Hashable | None:
        if blocking.chunks or blocking.unroll or blocking.stationary is not None:
            return None
        if not math.prod(self.spec.output.shape):
            return None
        inner = self._axes[-1]
        width, rows = self._default
        width = blocking.tile or width
        tiles = tile_axis(inner, width)
        widest = max(t.width for t in tiles)
        reuse = len(positions(inner, widest)) + widest + 2 <= self.isa.registers
        if len(tiles) > EDGES or not (reuse or widest <= self.isa.registers - 3):
            return None
        return tiles, min(blocking.group or rows, self._rows)

    def candidates(self, best: Blocking) -> Iterator[Blocking]:
        width, rows = self._default
        count = self._axes[-1].count
        widths = {even(count, -(-count // w))[0] for w in range(1, self.isa.registers)}
        now = best.tile or width
        for tile in sorted(widths, key=lambda w: (abs(w - now), -w)):
            yield replace(best, tile=tile)
        whole = self._rows
        options = (1, 2, 4, 8, 16, -(-whole // 4), -(-whole // 2), whole)
        for group in near(best.group or rows, options):
            yield replace(best, group=group)


def near(now: int, options: Iterable[int]) -> Sequence[int]:
    """Other options than `now`, those with a ratio near one first."""
    others = {o for o in options if o >= 1} - {now}
    return sorted(others, key=lambda o: (abs(math.log(o / now)), o))


def conv_key(spec: ConvSpec) -> str:
    """The convolution in words."""

    def short(values: Iterable[int]) -> str:
        return "x".join(map(str, values))

    def lies(tensor: TensorType) -> str:
        block = tensor.layout.block
        return short(tensor.shape) + (f"/{block}c" if block else "")

    facts = [
        "conv", lies(spec.input), "to", lies(spec.output), f"k{short(spec.kernel)}",
        f"s{short(spec.strides)}", f"p{short(spec.pads)}", f"d{short(spec.dilations)}",
    ]  # fmt: skip
    groups = [f"g{spec.groups}"] if spec.groups > 1 else []
    return " ".join(chain(facts, groups, ["bias"] * spec.bias))
