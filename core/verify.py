"""Verification: the artifact's answers against goldens that were recorded before anything changed.

The tolerance follows from the weakest promise of the passes that ran:
EXACT    reassociation only: |a - b| <= 1e-4 * max |golden| for each output (float32; float16 outputs 1e-2),
         integers and booleans equal;
ROUNDED  lower precision: SQNR of every output at least 15 dB;
LOSSY    a different function: judged by the task's accuracy, here only that outputs are finite and shaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from effc.core.artifact import OutputError, Verdict
from effc.core.measure import Array
from effc.core.passinfra import Effect

EXACT_TOLERANCE = 1e-4
EXACT_TOLERANCE_HALF = 1e-2
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
) -> Verdict:
    """Hold `answers` to the promise `effect`."""
    errors = compare_outputs(goldens, answers)
    worst = max(errors, key=lambda e: e.max_rel)
    count = len(goldens)
    if effect is Effect.EXACT:
        for e in errors:
            dtype = np.asarray(goldens[0][e.name]).dtype
            limit = (
                0.0
                if dtype.kind in "iub"
                else (EXACT_TOLERANCE_HALF if dtype.itemsize < 4 else EXACT_TOLERANCE)
            )
            if not e.max_rel <= limit:
                return Verdict(
                    "failed",
                    f"output {e.name!r} is off by {e.max_rel:.3g} of its range; EXACT allows {limit:g}",
                    e.max_rel, limit, count, errors,
                )  # fmt: skip
        return Verdict(
            "passed", f"{count} samples within EXACT", worst.max_rel, EXACT_TOLERANCE, count, errors
        )
    if effect is Effect.ROUNDED:
        for e in errors:
            if e.sqnr_db is not None and not e.sqnr_db >= ROUNDED_SQNR_DB:
                return Verdict(
                    "failed",
                    f"output {e.name!r} has SQNR {e.sqnr_db:.1f} dB; ROUNDED asks {ROUNDED_SQNR_DB:g} dB",
                    e.max_rel, None, count, errors,
                )  # fmt: skip
        return Verdict(
            "passed", f"{count} samples within ROUNDED", worst.max_rel, None, count, errors
        )
    for e in errors:
        if not np.isfinite(e.max_rel):
            return Verdict(
                "failed",
                f"output {e.name!r} is not finite or misshapen",
                e.max_rel,
                None,
                count,
                errors,
            )
    return Verdict(
        "passed",
        f"{count} samples finite; LOSSY passes are judged by accuracy",
        worst.max_rel,
        None,
        count,
        errors,
    )
