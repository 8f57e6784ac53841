"""Recovering accuracy without labels: what is tried, and what is kept because it helps."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from effc.core.cost import model_cost
from effc.core.errors import EffcError
from effc.core.ir import attr, elements, is_op, shape_of
from effc.core.passinfra import PassRecord, show
from effc.core.shapes import infer_shapes
from effc.passes.quantize.narrow_weights import NarrowWeights, narrowable
from effc.precision.contract import clone
from effc.precision.score import Judge, Score

if TYPE_CHECKING:
    from effc.precision.plan import Workbench

ENOUGH_SQNR_DB = 40.0  # beyond this no method is worth its time

# what comes before and after quantize
_LADDER = (
    ("", ""),
    ("", ",correct-bias"),
    ("equalize-layers,", ",correct-bias"),
    ("migrate-difficulty,", ",correct-bias"),
)
# multiply-adds that training may run forward: about 1 and 4 minutes of one core that does 3e9 a second
# with its way back
_TRAINING_MACS = {8: 180e9, 4: 720e9}
_EPOCHS = {8: 24, 4: 20}


@dataclass(frozen=True, slots=True)
class Recovered:
    """The quantized model and the pipeline text that made it."""

    model: ir.Model
    text: str
    records: tuple[PassRecord, ...]
    score: Score
    notes: tuple[str, ...]


def recover(model: ir.Model, bench: Workbench, judge: Judge, scheme: str) -> Recovered:
    """Quantize `model` (which stays) by `scheme`, with the methods that raise the SQNR of the outputs."""
    options, narrow = bench.options, bench.target.precision == "w4a8"
    settings = [f"scheme={scheme}", *options.quantize]
    if not any(s.startswith("calibrator=") for s in settings):
        settings.append("calibrator=mse")  # the best or nearly so of all on every real model tried
    if options.keep_float:
        settings.append(f"keep-float={show(options.keep_float)}")
    quantize = f"quantize{{{','.join(settings)}}}"
    best: Recovered | None = None
    notes: list[str] = []
    # biases of layers that are narrowed are learned behind it
    ladder = _LADDER[:1] if narrow else _LADDER
    for i, (before, after) in enumerate(ladder):
        text, label = f"{before}{quantize}{after}", f"{before}quantize{after}"
        bench.progress(label, 0.05 + 0.2 * i / len(ladder))
        begun = time.monotonic()
        candidate = model.clone()
        records: tuple[PassRecord, ...] = ()
        try:
            if before:
                records = bench.run(candidate, before)[1]
                if not any(r.rewrites for r in records):
                    continue
            records += bench.run(candidate, f"{quantize}{after}")[1]
        except EffcError as error:
            if best is None:
                raise
            notes.append(f"{label}: {error}")
            continue
        score = judge.score(candidate)
        notes.append(_note(label, score, time.monotonic() - begun))
        if best is None or score.sqnr_db > best.score.sqnr_db:
            best = Recovered(candidate, text, records, score, ())
        if score.sqnr_db >= ENOUGH_SQNR_DB:
            break
    assert best is not None
    if narrow:
        best, said = _narrowed(best, bench, judge)
        notes.append(said)
    for i, text in enumerate(_learning(best.model, len(bench.samples), 4 if narrow else 8)):
        name = text.split("{")[0]
        # training goes on from learned rounding, and is left out with it
        if options.skip & {name, "adaround"} or best.score.sqnr_db >= ENOUGH_SQNR_DB:
            continue
        bench.progress(name, 0.3 + 0.15 * i)
        best, said = _learned(best, text, bench, judge)
        notes.append(said)
    return Recovered(best.model, best.text, best.records, best.score, tuple(notes))


def _learning(model: ir.Model, samples: int, bits: int) -> tuple[str, ...]:
    """Methods that learn, one behind the other; weights of 4 bits have further to go."""
    infer_shapes(model)
    each = model_cost(model).macs * min(samples, 128)
    epochs = min(_EPOCHS[bits], int(_TRAINING_MACS[bits] // max(each, 1)))
    steps, rate = (60, "2e-4") if bits == 8 else (80, "1e-3")
    found = [f"adaround{{iterations={steps}}}"]
    if epochs >= 2:
        found.append(f"train-quantized{{epochs={epochs},rate={rate}}}")
    return tuple(found)


def wide_nodes(model: ir.Model) -> tuple[str, ...]:
    """Layers whose weights keep 8 bits in w4a8: the first, and depthwise convolutions.

    Their weights are few and feel rounding most. The last layer, often kept as well, holds a third of a
    small network's weights, so it is narrowed.
    """
    layers = [n for n in model.graph if narrowable(n, model)]
    return tuple(str(n.name) for i, n in enumerate(layers) if i == 0 or _is_depthwise(n))


def _is_depthwise(node: ir.Node) -> bool:
    weight = shape_of(node.inputs[1]) if is_op(node, "Conv") else None
    return weight is not None and weight[1] == 1 and attr(node, "group", 1) > 1


def _narrowed(best: Recovered, bench: Workbench, judge: Judge) -> tuple[Recovered, str]:
    """`best` with weights of 4 bits but in `wide_nodes`, and what to say about it."""
    begun, wide = time.monotonic(), wide_nodes(best.model)
    layers = [n for n in best.model.graph if narrowable(n, best.model)]
    names = tuple(str(n.name) for n in layers if str(n.name) not in wide)
    if not names:
        return best, "4 bits: no layer's weights can have fewer than 8"
    text = f"{NarrowWeights(4, names)},correct-bias"
    sizes = {str(n.name): elements(shape_of(n.inputs[1]) or ()) for n in layers}
    share = 100 * sum(sizes[n] for n in wide) / max(sum(sizes.values()), 1)
    candidate = clone(best.model)
    _, records = bench.run(candidate, text)
    score = judge.score(candidate)
    found = Recovered(candidate, f"{best.text},{text}", best.records + records, score, ())
    what = f"4-bit weights but in {', '.join(wide)} ({share:.1f} % of the weights, 8 bits)"
    return found, _note(what, score, time.monotonic() - begun)


def _learned(best: Recovered, text: str, bench: Workbench, judge: Judge) -> tuple[Recovered, str]:
    """`best` behind the method `text` where that helps, and what to say about it."""
    begun, name = time.monotonic(), text.split("{")[0]
    candidate = clone(best.model)
    try:
        _, records = bench.run(candidate, text)
    except EffcError as error:
        return best, f"{name}: {error} ({error.hint})"
    score = judge.score(candidate)
    note = _note(name, score, time.monotonic() - begun)
    if score.sqnr_db <= best.score.sqnr_db:
        return best, f"{note}: left out"
    return Recovered(candidate, f"{best.text},{text}", best.records + records, score, ()), note


def _note(label: str, score: Score, seconds: float) -> str:
    agreement = "" if score.agreement is None else f", agreement {score.agreement:.1f} %"
    return (
        f"{label}: SQNR {score.sqnr_db:.1f} dB, drop {score.drop:.2f} ({score.metric}){agreement}, "
        f"{seconds:.1f} s"
    )
