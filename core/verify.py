"""Verification: the artifact's answers against goldens that were recorded before anything changed.

The tolerance follows from the weakest promise of the passes that ran:
EXACT    reassociation only: |a - b| <= 1e-4 * max |golden| for each output (float32; float16 outputs 1e-2);
         integers and booleans equal, but quantized outputs within one unit: a sum in another order may
         fall on the other side of a rounding. A network that amplifies rounding may differ by more: then
         the limit is twice what onnxruntime's own optimizations change (the control), at most 1e-2;
ROUNDED  lower precision: SQNR of every output at least 15 dB;
LOSSY    a different function: judged by the task's accuracy, here only that outputs are finite and shaped.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from effc.core.artifact import OutputError, Verdict
from effc.core.ir import is_op
from effc.core.measure import Array
from effc.core.passinfra import Effect

EXACT_TOLERANCE = 1e-4
EXACT_TOLERANCE_HALF = 1e-2
CONTROL_FACTOR = 2.0
CONTROL_LIMIT = 1e-2
ROUNDED_SQNR_DB = 15.0


def compare_outputs(
    goldens: Sequence[Mapping[str, Array]], answers: Sequence[Mapping[str, Array]]
) -> tuple[OutputError, ...]:
    """The difference of every output over all samples; a missing or misshapen output is infinitely wrong."""
    errors = []
    for name in goldens[0]:
        max_abs = scale = noise = signal = 0.0
        for golden, answer in zip(goldens, answers, strict=True):
            if name not in answer or np.shape(answer[name]) != np.shape(golden[name]):
                max_abs = noise = float("inf")
                continue
            g = np.asarray(golden[name])
            a = np.asarray(answer[name])
            if g.size == 0:
                continue
            g64, a64 = g.astype(np.float64), a.astype(np.float64)
            same = (g64 == a64) | (np.isnan(g64) & np.isnan(a64))
            with np.errstate(invalid="ignore"):  # inf - inf, where both are right
                difference = np.where(same, 0.0, np.abs(g64 - a64))
            difference = np.where(np.isnan(difference), np.inf, difference)
            finite = g64[np.isfinite(g64)]
            max_abs = max(max_abs, float(difference.max()))
            scale = max(scale, float(np.abs(finite).max()) if finite.size else 0.0)
            noise += float((difference**2).sum())
            signal += float((finite**2).sum())
        sqnr = None
        if noise > 0:
            sqnr = (
                float(10 * np.log10(signal / noise))
                if 0 < signal < np.inf and noise < np.inf
                else (float("-inf"))
            )
        relative = 0.0 if max_abs == 0 else (max_abs / scale if scale > 0 else max_abs)
        errors.append(OutputError(name, max_abs, relative, sqnr))
    return tuple(errors)


def judge(
    goldens: Sequence[Mapping[str, Array]],
    answers: Sequence[Mapping[str, Array]],
    effect: Effect,
    control: Callable[[], Sequence[Mapping[str, Array]]] | None = None,
    quantized: Collection[str] = (),
) -> Verdict:
    """Hold `answers` to the promise `effect`.

    `control` gives the answers of the untouched model when only reassociation changes (onnxruntime with
    its optimizations); it is asked for only where EXACT's fixed limit is exceeded. `quantized` names the
    outputs that are quantized reals (see `quantized_outputs`).
    """
    errors = compare_outputs(goldens, answers)
    count, worst = len(goldens), max(e.max_rel for e in errors)

    def verdict(status: Literal["passed", "failed"], reason: str, limit: float | None) -> Verdict:
        return Verdict(status, reason, worst, limit, count, errors)

    if effect is Effect.EXACT:
        limits = {e.name: exact_tolerance(np.asarray(goldens[0][e.name]).dtype) for e in errors}
        for e in errors:
            if e.name in quantized and 0 < e.max_abs <= 1:
                limits[e.name] = e.max_rel
        over = [e for e in errors if not e.max_rel <= limits[e.name]]
        if not over:
            return verdict("passed", f"{count} samples within EXACT", max(limits.values()))
        noise: dict[str, float] = {}
        if control is not None:
            noise = {e.name: e.max_rel for e in compare_outputs(goldens, control())}
        for e in over:
            known = min(CONTROL_FACTOR * noise.get(e.name, 0.0), CONTROL_LIMIT)
            limit = max(limits[e.name], known) if limits[e.name] else 0.0
            if not e.max_rel <= limit:
                return verdict(
                    "failed",
                    f"output {e.name!r} is off by {e.max_rel:.3g} of its range; EXACT allows {limit:.3g}",
                    limit,
                )
            limits[e.name] = limit
        return verdict(
            "passed",
            f"{count} samples within EXACT; this network amplifies rounding, and onnxruntime differs "
            f"from itself by {max(noise[e.name] for e in over):.2g}",
            max(limits.values()),
        )
    if effect is Effect.ROUNDED:
        for e in errors:
            if e.sqnr_db is not None and not e.sqnr_db >= ROUNDED_SQNR_DB:
                return verdict(
                    "failed",
                    f"output {e.name!r} has SQNR {e.sqnr_db:.1f} dB; ROUNDED asks {ROUNDED_SQNR_DB:g} dB",
                    None,
                )
        return verdict("passed", f"{count} samples within ROUNDED", None)
    for e in errors:
        if not np.isfinite(e.max_rel):
            return verdict("failed", f"output {e.name!r} is not finite or misshapen", None)
    return verdict("passed", f"{count} samples finite; LOSSY passes are judged by accuracy", None)


def exact_tolerance(dtype: np.dtype[Any]) -> float:
    """The largest error of an EXACT output of this type, relative to its range."""
    if dtype.kind in "iub":
        return 0.0
    return EXACT_TOLERANCE_HALF if dtype.itemsize < 4 else EXACT_TOLERANCE


_MOVES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity")


def quantized_outputs(model: ir.Model) -> frozenset[str]:
    """The outputs that QuantizeLinear makes, also behind operators that only move elements."""
    found = set()
    for output in model.graph.outputs:
        node = output.producer()
        while node is not None and is_op(node, *_MOVES) and node.inputs[0] is not None:
            node = node.inputs[0].producer()
        if is_op(node, "QuantizeLinear"):
            found.add(str(output.name))
    return frozenset(found)
