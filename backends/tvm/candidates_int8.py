"""Which blockings integer kernels can have; see `candidates`."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from effc.backends.tvm.candidates import DirectSpace, Space, conv_key, near
from effc.backends.tvm.isa import Isa
from effc.backends.tvm.kernels.axes import Axis
from effc.backends.tvm.kernels.blocking import even
from effc.backends.tvm.kernels.choice import Blocking
from effc.backends.tvm.kernels.conv import conv_axes, is_depthwise
from effc.backends.tvm.kernels.depthwise import task_rows
from effc.backends.tvm.kernels.int8_conv import IntConvSpec, int_direct_of
from effc.backends.tvm.kernels.int8_gemm import IntGemmSpec, int_product_of
from effc.backends.tvm.kernels.int8_quads import depthwise_plan


def int_conv_space(spec: IntConvSpec, isa: Isa) -> Space | None:
    """The blockings of an integer convolution; None where there is no choice."""
    spec = replace(spec, conv=replace(spec.conv, blocking=None))
    space: Space
    if is_depthwise(spec.conv, isa):
        space = IntDepthwiseSpace(spec, isa)
    else:
        space = DirectSpace(int_direct_of(spec.conv, isa), _key(spec, isa))
    return space if space.effective(Blocking()) is not None else None


def int_gemm_space(spec: IntGemmSpec, isa: Isa) -> Space | None:
    """The blockings of an integer product with constant weights; None where there is no choice."""
    spec = replace(spec, blocking=None)
    m, n, k = math.prod(spec.out.shape[:-1]), spec.out.shape[-1], spec.a.shape[-1]
    key = f"int8 gemm m{m} n{n} k{k} to {spec.how.dtype}{' add' * (spec.how.z is not None)}"
    space = DirectSpace(int_product_of(spec, isa), key)
    return space if space.effective(Blocking()) is not None else None


@dataclass(frozen=True)
class IntDepthwiseSpace:
    """Of an integer depthwise convolution: pixels of a tile, rows of a task."""

    spec: IntConvSpec
    isa: Isa

    @property
    def key(self) -> str:
        return _key(self.spec, self.isa)

    @cached_property
    def _axes(self) -> tuple[Axis, ...]:
        return conv_axes(self.spec.conv)

    @property
    def _rows(self) -> int:
        return math.prod(a.count for a in self._axes[:-1])

    @property
    def _task(self) -> int:
        out = self.spec.conv.output.shape
        return task_rows(self._rows, out[0] * -(-out[1] // self.isa.lanes))

    def _widest(self, blocking: Blocking) -> int:
        plan = depthwise_plan(replace(self.spec.conv, blocking=blocking), self.isa)
        return max(t.width for t in plan.tiles)

    def effective(self, blocking: Blocking) -> Hashable | None:
        if blocking.chunks or blocking.unroll or blocking.stationary is not None:
            return None
        if not math.prod(self.spec.conv.output.shape):
            return None
        plan = depthwise_plan(replace(self.spec.conv, blocking=blocking), self.isa)
        whole = depthwise_plan(self.spec.conv, self.isa)
        if self._widest(blocking) > self.isa.registers - 5:
            return None
        if (plan.patterns is None) != (whole.patterns is None) or plan.dynamic:
            return None
        return plan.tiles, min(blocking.group or self._task, self._rows)

    def candidates(self, best: Blocking) -> Iterator[Blocking]:
        count = self._axes[-1].count
        widths = {even(count, -(-count // w))[0] for w in range(1, self.isa.registers)}
        now = best.tile or self._widest(Blocking())
        for tile in sorted(widths, key=lambda w: (abs(w - now), -w)):
            yield replace(best, tile=tile)
        rows = self._rows
        for group in near(best.group or self._task, (1, 2, 4, 8, 16, -(-rows // 2), rows)):
            yield replace(best, group=group)


def _key(spec: IntConvSpec, isa: Isa) -> str:
    shifted = " shifted" if spec.shift(isa) else ""
    added = " add" * (spec.how.z is not None)
    return f"int8 {conv_key(spec.conv)}{shifted} to {spec.how.dtype}{added}"
