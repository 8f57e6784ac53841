"""The blame table: what each quantized node costs and gains, and the likely cause."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir

from effc.core.host import available_cores
from effc.core.ir import const, is_op
from effc.core.measure import Array, Feeds
from effc.core.quant import QuantParams, integer_range, quant_params
from effc.core.quant_units import FLOAT_WEIGHTS
from effc.core.reference import OnnxRuntimeRunner
from effc.precision.contract import Group

RANGE_SAMPLES = 8
TENSORS_AT_ONCE = 48  # extra outputs of one run, so that memory stays bounded
HISTOGRAM_BINS = 64
OUTLIER = 6.0  # largest channel over the median one
CLIPPED = 0.5  # share of the noise that saturation makes
PEAK = 12.0  # largest weight over the standard deviation, within a channel


class TensorRange(msgspec.Struct, frozen=True):
    """What one quantized tensor looks like beside its grid."""

    tensor: str
    kind: str  # "activation" or "weight"
    sqnr_db: float | None  # None: exact
    low: float  # of the data
    high: float
    grid_low: (
        float  # the least and greatest real that the integers can hold (of the widest channel)
    )
    grid_high: float
    clipped: float  # share of the elements outside the grid
    clipped_noise: float  # share of the noise that those make
    channel_ratio: float  # range of the widest channel over the median one
    channel: int  # the widest
    histogram: tuple[int, ...] = ()  # of the data, HISTOGRAM_BINS from low to high


class BlameRow(msgspec.Struct, frozen=True):
    """One node (or nodes that share a kernel), alone quantized."""

    nodes: tuple[str, ...]
    op: str
    sqnr_db: float | None  # of the model's outputs when only these are quantized; None: exact
    drop: float  # in the points of `metric`
    metric: str
    share: float  # of the noise of all rows, 0..1
    gain_seconds: float | None
    saved_bytes: int  # of weights
    cause: str
    ranges: tuple[TensorRange, ...] = ()


def blame(model: ir.Model, groups: Sequence[Group], feeds: Sequence[Feeds]) -> list[BlameRow]:
    """The rows of the Q/DQ `model`, the costliest first; ranges are taken from the first `feeds`."""
    nodes = {str(n.name): n for n in model.graph}
    ranges = tensor_ranges(model, feeds[:RANGE_SAMPLES])
    total = sum(g.score.noise for g in groups) or 1.0
    rows = []
    for group in groups:
        members = [nodes[n] for n in group.names if n in nodes]
        mine = tuple(
            ranges[str(v.name)]
            for n in members
            for v in n.inputs
            if v is not None and str(v.name) in ranges
        )
        rows.append(
            BlameRow(
                group.names,
                "+".join(dict.fromkeys(n.op_type for n in members)),
                None if math.isinf(group.score.sqnr_db) else group.score.sqnr_db,
                group.score.drop,
                group.score.metric,
                group.score.noise / total,
                group.gain,
                sum(_saved(v) for n in members for v in n.inputs),
                likely_cause(mine),
                mine,
            )
        )
    return sorted(rows, key=lambda r: r.share, reverse=True)


def likely_cause(ranges: Iterable[TensorRange]) -> str:
    """One phrase about the noisiest tensor."""
    inexact = [r for r in ranges if r.sqnr_db is not None]
    if not inexact:
        return "none: its tensors are exact"
    worst = min(inexact, key=lambda r: r.sqnr_db or 0.0)
    where = f"{worst.kind} {worst.tensor} ({worst.sqnr_db:.0f} dB)"
    if worst.clipped_noise > CLIPPED:
        return f"saturating {where}: {100 * worst.clipped:.2g} % of it lies outside the grid"
    if worst.kind == "activation" and worst.channel_ratio > OUTLIER:
        return (
            f"outlier channel {worst.channel} of {where}: "
            f"{worst.channel_ratio:.0f} times the median channel"
        )
    if worst.kind == "weight" and worst.channel_ratio > PEAK:
        return f"outlier in {where}: {worst.channel_ratio:.0f} standard deviations"
    span, grid = worst.high - worst.low, worst.grid_high - worst.grid_low
    if span > 0 and grid > 2 * span:
        return f"tiny range of {where}: it uses {100 * span / grid:.0f} % of its grid"
    return f"rounding of {where}"


def tensor_ranges(model: ir.Model, feeds: Sequence[Feeds]) -> dict[str, TensorRange]:
    """Output name of each DequantizeLinear -> its tensor beside its grid."""
    weights: Mapping[str, Array] = model.meta.get(FLOAT_WEIGHTS, {})
    found: dict[str, TensorRange] = {}
    activations: list[tuple[str, str, QuantParams]] = []  # real, dequantized
    for node in model.graph:
        params = quant_params(node) if is_op(node, "DequantizeLinear") else None
        if params is None or node.inputs[0] is None:
            continue
        out, stored = str(node.outputs[0].name), node.inputs[0]
        producer = stored.producer()
        if (
            producer is not None
            and is_op(producer, "QuantizeLinear")
            and producer.inputs[0] is not None
        ):
            activations.append((str(producer.inputs[0].name), out, params))
        elif out in weights and weights[out].ndim > 1:  # biases have 32 bits
            found[out] = _weight_range(out, weights[out], const(stored), params)
    for start in range(0, len(activations), TENSORS_AT_ONCE):
        part = activations[start : start + TENSORS_AT_ONCE]
        found.update(_activation_ranges(model, part, feeds))
    return found


@dataclass
class _Stream:
    """Sums over samples of one activation."""

    params: QuantParams
    signal: float = 0.0
    noise: float = 0.0
    clipped_noise: float = 0.0
    clipped: int = 0
    count: int = 0
    low: Array | None = None  # by channel
    high: Array | None = None
    kept: list[Array] = field(default_factory=list)  # a thinned copy for the histogram

    def add(self, x: Array) -> None:
        x = x.astype(np.float32)
        error = (self.params.dequantize(self.params.quantize(x)) - x).astype(np.float64) ** 2
        low, high = grid(self.params)
        step = (high - low) / 256
        outside = (x < low - step) | (x > high + step)
        self.signal += float((x.astype(np.float64) ** 2).sum())
        self.noise += float(error.sum())
        self.clipped_noise += float(error[outside].sum())
        self.clipped += int(outside.sum())
        self.count += x.size
        by_channel = (
            np.moveaxis(x, 1, 0).reshape(x.shape[1], -1) if x.ndim > 2 else x.reshape(1, -1)
        )
        lows, highs = by_channel.min(1), by_channel.max(1)
        self.low = lows if self.low is None else np.minimum(self.low, lows)
        self.high = highs if self.high is None else np.maximum(self.high, highs)
        flat = x.reshape(-1)
        self.kept.append(flat[:: max(1, flat.size // 4096)])


def _activation_ranges(
    model: ir.Model, tensors: Sequence[tuple[str, str, QuantParams]], feeds: Sequence[Feeds]
) -> dict[str, TensorRange]:
    watched = model.clone()
    by_name = {str(o.name): o for n in watched.graph for o in n.outputs}
    inputs = {str(v.name) for v in watched.graph.inputs}
    wanted = {real for real, _, _ in tensors}
    present = {str(o.name) for o in watched.graph.outputs}
    watched.graph.outputs.extend(by_name[n] for n in wanted if n in by_name and n not in present)
    streams: defaultdict[str, _Stream] = defaultdict(lambda: _Stream(tensors[0][2]))
    with OnnxRuntimeRunner(watched, threads=available_cores(), integer_kernels=False) as runner:
        for feed in feeds:
            values: dict[str, Any] = {**feed, **runner.infer(feed)}
            for real, out, params in tensors:
                if real in values and (real in inputs or real in by_name):
                    if out not in streams:
                        streams[out] = _Stream(params)
                    streams[out].add(values[real])
    real_of = {out: real for real, out, _ in tensors}
    return {out: _summary(real_of[out], stream) for out, stream in streams.items() if stream.count}


def _summary(name: str, s: _Stream) -> TensorRange:
    assert s.low is not None and s.high is not None
    spans = s.high - s.low
    median = float(np.median(spans))
    low, high = float(s.low.min()), float(s.high.max())
    bins = np.histogram(
        np.concatenate(s.kept), HISTOGRAM_BINS, (low, high if high > low else low + 1)
    )
    grid_low, grid_high = grid(s.params)
    return TensorRange(
        name, "activation", _db(s.signal, s.noise), low, high, grid_low, grid_high,
        s.clipped / s.count, s.clipped_noise / s.noise if s.noise else 0.0,
        float(spans.max()) / median if median > 0 else 1.0, int(spans.argmax()),
        tuple(int(x) for x in bins[0]),
    )  # fmt: skip


def _weight_range(name: str, real: Array, stored: Array | None, params: QuantParams) -> TensorRange:
    assert stored is not None
    w = real.astype(np.float64)
    error = (params.dequantize(stored).astype(np.float64) - w) ** 2
    low, high = grid(params)
    axis = 0 if params.per_tensor else params.axis % w.ndim
    rows = np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1)
    # from the 90 % that are not the outliers; a channel of zeros has none
    deviation = np.quantile(np.abs(rows), 0.9, axis=1) / 1.645
    peaks = np.where(deviation > 0, np.abs(rows).max(1) / np.maximum(deviation, 1e-30), 1.0)
    bins = np.histogram(w, HISTOGRAM_BINS)
    return TensorRange(
        name, "weight", _db(float((w**2).sum()), float(error.sum())), float(w.min()), float(w.max()),
        low, high, 0.0, 0.0, float(peaks.max()), int(peaks.argmax()), tuple(int(x) for x in bins[0]),
    )  # fmt: skip


def grid(params: QuantParams) -> tuple[float, float]:
    """The least and the greatest real that the integers can hold, of the widest channel."""
    low, high = integer_range(params.dtype)
    zero = params.zero_point.astype(np.float64)
    scale = params.scale.astype(np.float64)
    return float(((low - zero) * scale).min()), float(((high - zero) * scale).max())


def _db(signal: float, noise: float) -> float | None:
    if noise == 0:
        return None
    return 10 * math.log10(signal / noise) if signal > 0 else 0.0


def _saved(value: ir.Value | None) -> int:
    producer = value.producer() if value is not None else None
    if value is None or producer is None or not is_op(producer, "DequantizeLinear"):
        return 0
    stored = producer.inputs[0]
    tensor = stored.const_value if stored is not None else None
    if tensor is None or stored is None or not stored.is_initializer():
        return 0
    return int(tensor.size * 4 - tensor.nbytes)
