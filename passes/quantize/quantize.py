"""quantize: post-training quantization to integers, as Q/DQ."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from effc.core.data import Samples, levels
from effc.core.errors import ConfigError, PassError
from effc.core.ir import const, shape_of
from effc.core.passinfra import Effect, Pass, PassContext
from effc.core.quant import (
    Array,
    QuantParams,
    dequantized_constant,
    insert_pair,
    quant_params,
    quantize_constant,
)
from effc.core.quant_units import FLOAT_WEIGHTS
from effc.core.schemes import Scheme, bounds, scheme
from effc.core.shapes import infer_shapes
from effc.passes.quantize.calibrate import calibrate
from effc.passes.quantize.parameters import (
    activation_params,
    bias_params,
    join,
    least_weight_scale,
    level_params,
    quantize_weight,
    weight_params,
)
from effc.passes.quantize.placement import Join, Placement, place
from effc.passes.quantize.ranges import Range, choose_range, observer
from effc.passes.quantize.synthetic import calibration_samples

# what the model was calibrated on, as JSON in the model's metadata
CALIBRATION = "effc.calibration"


@dataclass(frozen=True, slots=True)
class Quantize(Pass):
    """Conv(x, w, b) -> Conv(DQ(Q(x)), DQ(w'), DQ(b')), and so on, where the scheme allows it.

    Activations get the range that the calibrator finds on the samples; weights theirs by output channel;
    biases become int32 of scale sx * sw. Without samples it makes some up. Declines for what the scheme does
    not quantize, for nodes named in `keep-float`, and for what is quantized already.

    Sources: Jacob et al. 2018 (arXiv:1712.05877); Krishnamoorthi 2018 (arXiv:1806.08342).
    """

    id: ClassVar[str] = "quantize"
    effect: ClassVar[Effect] = Effect.ROUNDED

    scheme: str = field(
        default="vnni", metadata={"help": "whose quantizers: vnni, ort, tensorrt, ..."}
    )
    calibrator: str = field(
        default="min-max",
        metadata={"help": "min-max, moving-average, percentile, mse or entropy"},
    )
    percentile: float = field(
        default=99.99, metadata={"help": "of the calibrator percentile", "unit": "%"}
    )
    weight_bits: int = field(default=8, metadata={"help": "8, 4 or 2", "unit": "bits"})
    weight_clip: bool = field(
        default=False, metadata={"help": "search the weight range of least squared error"}
    )
    keep_float: tuple[str, ...] = field(
        default=(), metadata={"help": "nodes that stay float, joined by +"}
    )

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        chosen = scheme(self.scheme)
        if self.weight_bits not in (2, 4, 8):
            raise ConfigError(
                f"quantize.weight-bits={self.weight_bits}", hint="weights have 8, 4 or 2 bits"
            )
        if not 50 < self.percentile <= 100:
            raise ConfigError(
                f"quantize.percentile={self.percentile}", hint="it lies between 50 and 100"
            )
        unknown = set(self.keep_float) - {n.name for n in model.graph}
        if unknown:
            raise ConfigError(
                f"quantize.keep-float names {', '.join(sorted(unknown))}, which the model does not have",
                hint="names as in the model when the pass runs",
            )
        infer_shapes(model)
        placement = place(model.graph, chosen, self.keep_float)
        if not placement.points and not placement.weights:
            return 0
        samples = calibration_samples(ctx.samples, model, ctx.seed)
        params, apart = self._activations(model, placement, chosen, samples)
        count = self._insert(model, placement, chosen, params, apart)
        model.metadata_props[CALIBRATION] = json.dumps(
            {
                "samples": len(samples),
                "fingerprint": samples.fingerprint,
                "synthetic": samples.synthetic,
                "calibrator": self.calibrator,
            }
        )
        return count

    def _ranges(
        self, model: ir.Model, placement: Placement, chosen: Scheme, samples: Samples
    ) -> list[Range]:
        """The range of every group."""
        seen = calibrate(model, placement.groups, samples, lambda: observer(self.calibrator))
        found = []
        for values, one in zip(placement.groups, seen, strict=True):
            low, high = choose_range(
                self.calibrator,
                one,
                levels=256,
                symmetric=chosen.activation.symmetric,
                percentile=self.percentile,
            )
            limits = [bounds(v) for v in values]
            low = max(low, min(b[0] for b in limits))
            high = min(high, max(b[1] for b in limits))
            found.append((low, high))
        return found

    def _activations(
        self, model: ir.Model, placement: Placement, chosen: Scheme, samples: Samples
    ) -> tuple[list[QuantParams], list[Join]]:
        """The parameters of every group, and the joins that need a requantization."""
        ranges, apart = join(placement.joins, self._ranges(model, placement, chosen, samples))
        params = [activation_params(chosen.activation, r) for r in ranges]
        for value in model.graph.inputs:
            group = next((p.group for p in placement.points if p.value is value), None)
            known = levels(samples, str(value.name)) if group is not None else None
            if group is not None and known is not None and placement.groups[group] == (value,):
                params[group] = level_params(chosen.activation, known)
        return params, apart

    def _insert(
        self,
        model: ir.Model,
        placement: Placement,
        chosen: Scheme,
        params: list[QuantParams],
        apart: list[Join],
    ) -> int:
        graph = model.graph
        kept: dict[str, Array] = {}
        for constant in placement.constants:
            array = const(constant.value)
            if array is None:
                continue
            own = activation_params(chosen.activation, (float(array.min()), float(array.max())))
            new = own if constant.group is None else params[constant.group]
            out = quantize_constant(constant.value, new, users=list(constant.users))
            kept[str(out.name)] = array
        for point in placement.points:
            readers = None if point.readers is None else list(point.readers)
            out = insert_pair(point.value, params[point.group], users=readers)
            for one in apart:
                if one.value is point.value:
                    insert_pair(out, params[one.whole], users=[one.node])
        for weight in placement.weights:
            array = const(weight.value)
            if array is None:
                raise PassError(f"weight {weight.value.name!r} is no constant", pass_id=self.id)
            biases = [_bias(n, chosen) for n in weight.users]
            least = [least_weight_scale(b, x) for b, x in biases if b is not None and x is not None]
            found = weight_params(
                array,
                weight.axis,
                bits=self.weight_bits,
                per_channel=chosen.weight.per_channel,
                clip=self.weight_clip,
                least=np.max(least, axis=0) if least else None,
            )
            out = dequantized_constant(
                graph,
                str(weight.value.name),
                quantize_weight(array, found, self.weight_bits),
                found,
                users=list(weight.users),
                old=weight.value,
            )
            kept[str(out.name)] = array
            for node, (bias, x) in zip(weight.users, biases, strict=True):
                value = node.inputs[2] if bias is not None else None
                if value is not None and bias is not None and x is not None:
                    out = quantize_constant(value, bias_params(x, found), users=[node])
                    kept[str(out.name)] = bias
        model.meta[FLOAT_WEIGHTS] = {**_known(model), **kept}
        _drop_unread(graph)
        return len(placement.points) + len(placement.weights)


def _bias(node: ir.Node, chosen: Scheme) -> tuple[Array | None, QuantParams | None]:
    """The constant bias of `node` to quantize, [C], and the parameters of its input, whose pair stands."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    bias = const(value)
    source = node.inputs[0]
    x = quant_params(source.producer()) if source is not None else None
    if chosen.bias != "int32" or bias is None or len(shape_of(value) or ()) != 1 or x is None:
        return None, None
    return bias, x


def _drop_unread(graph: ir.Graph) -> None:
    """Without this every quantized model would carry its float weights along."""
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            del graph.initializers[name]


def _known(model: ir.Model) -> Mapping[str, Any]:
    found: Mapping[str, Any] = model.meta.get(FLOAT_WEIGHTS, {})
    return found
