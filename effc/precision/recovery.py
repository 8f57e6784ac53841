"""Recovering accuracy without training: what is tried, and what is kept because it helps."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from effc.core.errors import EffcError
from effc.core.passinfra import PassRecord, show
from effc.precision.contract import clone
from effc.precision.score import Judge, Score

if TYPE_CHECKING:
    from effc.precision.plan import Workbench

ENOUGH_SQNR_DB = 40.0  # beyond this no method is worth its time


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
    options = bench.options
    settings = [f"scheme={scheme}", *options.quantize]
    if not any(s.startswith("calibrator=") for s in settings):
        settings.append("calibrator=mse")  # the best or nearly so of all on every real model tried
    if bench.target.precision == "w4a8":
        settings.append("weight-bits=4")
    if options.keep_float:
        settings.append(f"keep-float={show(options.keep_float)}")
    quantize = f"quantize{{{','.join(settings)}}}"
    ladder = [  # what comes before and after
        ("", ""),
        ("", ",correct-bias"),
        ("equalize-layers,", ",correct-bias"),
        ("migrate-difficulty,", ",correct-bias"),
    ]
    best: Recovered | None = None
    notes: list[str] = []
    for i, (before, after) in enumerate(ladder):
        text, label = f"{before}{quantize}{after}", f"{before}quantize{after}"
        bench.progress(label, 0.05 + 0.3 * i / len(ladder))
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
    if "adaround" not in options.skip and best.score.sqnr_db < ENOUGH_SQNR_DB:
        bench.progress("adaround", 0.4)
        best, note = _round(best, bench, judge)
        notes.append(note)
    return Recovered(best.model, best.text, best.records, best.score, tuple(notes))


def _round(best: Recovered, bench: Workbench, judge: Judge) -> tuple[Recovered, str]:
    """`best` with learned rounding where that helps, and what to say about it."""
    begun = time.monotonic()
    candidate = clone(best.model)
    try:
        _, records = bench.run(candidate, "adaround")
    except EffcError as error:
        return best, f"adaround: {error} ({error.hint})"
    score = judge.score(candidate)
    note = _note("adaround", score, time.monotonic() - begun)
    if score.sqnr_db <= best.score.sqnr_db:
        return best, f"{note}: left out"
    return Recovered(candidate, f"{best.text},adaround", best.records + records, score, ()), note


def _note(label: str, score: Score, seconds: float) -> str:
    agreement = "" if score.agreement is None else f", agreement {score.agreement:.1f} %"
    return (
        f"{label}: SQNR {score.sqnr_db:.1f} dB, drop {score.drop:.2f} ({score.metric}){agreement}, "
        f"{seconds:.1f} s"
    )
