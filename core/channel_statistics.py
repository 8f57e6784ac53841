"""What a folded batch norm knew: mean and deviation of each channel, kept beside the value that has them.

They stand in `value.meta`, which clones keep and files don't, with the names of the constants that its node
had then: where another pass has changed those since, the statistics are forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from effc.core.ir import Array

_KEY = "effc.channel_statistics"


@dataclass(frozen=True, slots=True)
class ChannelStatistics:
    """Mean and standard deviation, float32 [C], along axis 1, over the training set's pixels."""

    mean: Array
    deviation: Array
    constants: tuple[str, ...]


def remember(value: ir.Value, mean: Array, deviation: Array) -> None:
    """Keep the statistics of `value`, whose node is as it will stay."""
    value.meta[_KEY] = ChannelStatistics(mean, deviation, _constants(value))


def recall(value: ir.Value) -> ChannelStatistics | None:
    """The statistics of `value`; None where nobody knows them, or its node has changed."""
    found = value.meta.get(_KEY)
    if isinstance(found, ChannelStatistics) and found.constants == _constants(value):
        return found
    return None


def _constants(value: ir.Value) -> tuple[str, ...]:
    node = value.producer()
    return tuple(str(v.name) for v in node.inputs[1:] if v is not None) if node is not None else ()
