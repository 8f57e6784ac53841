"""What is in a model: operators, parameters, MACs, live memory, and what a target's roof would allow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import msgspec
import onnx_ir as ir

from effc.core.check import check_model
from effc.core.cost import model_cost, roofline
from effc.core.profiles import HOST, load_profile
from effc.core.shapes import fix_shapes, infer_shapes
from effc.core.target import HardwareProfile
from effc.sources import load


class Layer(msgspec.Struct, frozen=True):
    """One node: `estimate_ms` and `bound` are the roofline's, where the target's profile has the figures."""

    name: str
    op: str
    shape: tuple[int, ...] | None
    dtype: str
    macs: int
    flops: int
    parameters: int
    bytes: int  # read and written
    estimate_ms: float | None = None
    bound: str = ""


class Port(msgspec.Struct, frozen=True):
    """An input or output as the model declares it; a dynamic dimension is its name, or `?`."""

    name: str
    dtype: str
    shape: tuple[int | str, ...] | None


class Inspection(msgspec.Struct, frozen=True):
    """The whole of it. `complete` is False where a dynamic shape makes the counts lower bounds."""

    source: str
    frontend: str
    sha256: str
    opsets: Mapping[str, int]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    nodes: int
    ops: Mapping[str, int]
    parameters: int
    weight_bytes: int
    macs: int
    flops: int
    activation_peak_bytes: int
    activation_peak_node: str
    complete: bool
    layers: tuple[Layer, ...]
    notes: tuple[str, ...] = ()
    target: str = ""
    threads: int = 0
    estimate_ms: float | None = None  # the sum over the layers: an estimate, never a measurement
    basis: str = ""  # where the peak and the bandwidth of the estimate come from


def inspect(
    source: str,
    *,
    target: str = "",
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    threads: int = 0,
) -> Inspection:
    """Load `source` and count. With `target`, the roofline by layer at `threads` (0: all cores)."""
    loaded = load(source, shapes or {})
    model = loaded.model
    check_model(model)
    fix_shapes(model, shapes or {})
    infer_shapes(model)
    cost = model_cost(model)
    profile = load_profile(target, measure=target == HOST) if target else None
    roofs = roofline(cost, profile, threads) if profile is not None else ()
    layers = []
    for i, n in enumerate(cost.nodes):
        moved = n.read_bytes + n.written_bytes
        roof = roofs[i] if roofs else None
        layers.append(
            Layer(
                n.name, n.op, n.shape, n.dtype, n.macs, n.flops, n.parameters, moved,
                1e3 * roof.seconds if roof else None, roof.bound if roof else "",
            )
        )  # fmt: skip
    return Inspection(
        source=source,
        frontend=loaded.kind,
        sha256=loaded.sha256,
        opsets=dict(model.opset_imports),
        inputs=tuple(_port(v) for v in model.graph.inputs),
        outputs=tuple(_port(v) for v in model.graph.outputs),
        nodes=len(model.graph),
        ops=dict(Counter(n.op for n in cost.nodes).most_common()),
        parameters=cost.parameters,
        weight_bytes=cost.weight_bytes,
        macs=cost.macs,
        flops=cost.flops,
        activation_peak_bytes=cost.activation_peak_bytes,
        activation_peak_node=cost.activation_peak_node,
        complete=all(n.known for n in cost.nodes),
        layers=tuple(layers),
        notes=loaded.notes,
        target=profile.name if profile is not None else "",
        threads=(threads or profile.cores) if profile is not None else 0,
        estimate_ms=1e3 * sum(r.seconds for r in roofs) if roofs else None,
        basis=_basis(profile) if profile is not None else "",
    )


def _port(value: ir.Value) -> Port:
    shape = None
    if value.shape is not None:
        shape = tuple(d if isinstance(d, int) else (d.value or "?") for d in value.shape)
    dtype = value.dtype.numpy().name if value.dtype is not None else ""
    return Port(str(value.name), dtype, shape)


def _basis(profile: HardwareProfile) -> str:
    if not profile.peak:
        return "the profile has no peak, so there is no estimate"
    dtype, peak = next(iter(profile.peak.items()))
    peak = profile.peak.get("float32", peak)
    text = f"{peak.value / 1e9:.0f} GMAC/s ({peak.basis}: {peak.source})"
    for memory in profile.memories:
        if memory.bandwidth is not None:
            rate = memory.bandwidth
            text += f"; {memory.name} {rate.value / 1e9:.1f} GB/s ({rate.basis})"
    return text
