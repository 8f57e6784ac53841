"""Bands of rows: the same bits from less memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from effc.backends.tvm.mcu.cores import Core
from effc.backends.tvm.mcu.lower import lower
from effc.backends.tvm.mcu.patches import cuts, in_bands, split
from effc.core.integers import reference

from ..integer_graphs import Graph
from .test_lower import add, conv

Exact = Callable[..., Any]
DSP = Core("cortex-m7", dsp=True)


def network(seed: int = 0) -> Graph:
    """Wide and shallow in front, with a residual branch, small behind."""
    g = Graph(seed)
    x = g.input("int8", (1, 2, 33, 20))
    a = conv(g, x, 8, (3, 3), pads=(1, 1, 1, 1))
    b = conv(g, a, 8, (5, 5), pads=(2, 2, 2, 2), group=8)
    c = conv(g, b, 8, (1, 1))
    d = add(g, a, c, (1, 8, 33, 20), (0.5, 0.5))
    e = conv(g, d, 12, (3, 3), strides=(2, 2), pads=(0, 1, 1, 1))
    f = g.node("MaxPool", [e], "int8", (1, 12, 8, 5), kernel_shape=[2, 2], strides=[2, 2])
    g.output(conv(g, f, 4, (1, 1)))
    return g


def test_places_to_cut() -> None:
    model = network().model()
    # behind b and c, the branch from a is still wanted
    assert [c.count for c in cuts(model.graph)] == [1, 4, 5, 6]


@pytest.mark.parametrize("bands", [2, 5])
@pytest.mark.parametrize("count", [1, 4, 6])
def test_the_rewritten_graph_is_the_same_function(count: int, bands: int) -> None:
    g = network(count)
    model, feeds = g.model(), g.feeds()
    right = reference.run(model, feeds)
    changed = model.clone()
    split(changed, count, bands)
    assert [n.op_type for n in changed.graph].count("Concat") == 1
    for name, array in reference.run(changed, feeds).items():
        np.testing.assert_array_equal(array, right[name])


def test_bands_as_firmware(exact: Exact) -> None:
    g = network(1)
    model = g.model()
    whole = lower(model, DSP)
    split(model, 6, 4)
    program = exact(model, g.feeds(), DSP)
    assert not {"Concat", "Slice"} & {c.op for c in program.calls}  # bands are views
    assert program.plan.bytes < 0.75 * whole.plan.bytes


def test_bands_are_chosen_for_the_room() -> None:
    model = network(2).model()
    whole = lower(model, DSP)
    room = int(0.7 * whole.plan.bytes)
    program = in_bands(model, DSP, "m", room)
    assert program is not None and program.bands > 1 and program.plan.bytes <= room
    more = sum(c.macs for c in program.calls) / sum(c.macs for c in whole.calls)
    assert 1 < more < 1.5
    assert in_bands(model, DSP, "m", 2000) is None
    assert [n.op_type for n in model.graph].count("Concat") == 0  # the model stays
