"""Whether an engine's answers are those that were recorded, and what its times say."""

from __future__ import annotations

import math
from typing import Any

from .store import Tensor


def compare(
    goldens: list[dict[str, Tensor]], answers: list[dict[str, Tensor]], limit_db: float
) -> dict[str, Any]:
    """Status, largest error of an output's range, signal to noise and agreement of the best class, by output.

    `limit_db` is the least signal-to-noise ratio, in decibels, that passes.
    """
    outputs: list[dict[str, Any]] = []
    for name in goldens[0]:
        noise = signal = scale = worst = 0.0
        same = 0
        for golden, answer in zip(goldens, answers):  # noqa: B905 - Python 3.8 has no strict
            wanted, found = golden[name].values(), answer[name].values()
            if len(wanted) != len(found):
                return _failed(f"output {name!r} has {len(found)} numbers instead of {len(wanted)}")
            if not all(math.isfinite(v) for v in found):
                return _failed(f"output {name!r} is not finite")
            for a, b in zip(wanted, found):  # noqa: B905
                if math.isfinite(a):
                    difference = abs(float(a) - float(b))
                    noise += difference * difference
                    signal += float(a) * float(a)
                    worst, scale = max(worst, difference), max(scale, abs(float(a)))
            same += _best(wanted) == _best(found)
        sqnr = None if noise == 0 else 10 * math.log10(signal / noise) if signal else -math.inf
        outputs.append({
            "name": name, "max_abs": worst, "max_rel": worst / scale if scale else worst,
            "sqnr_db": sqnr, "same_largest": same / len(goldens),
        })  # fmt: skip
    low = [o for o in outputs if o["sqnr_db"] is not None and not o["sqnr_db"] >= limit_db]
    if low:
        found_db = low[0]["sqnr_db"]
        failed = _failed(
            f"output {low[0]['name']!r} has SQNR {found_db:.1f} dB; {limit_db:g} dB are asked"
        )
        return dict(failed, outputs=outputs, max_error=max(o["max_rel"] for o in outputs))
    return {
        "status": "passed", "reason": f"{len(goldens)} samples with SQNR of at least {limit_db:g} dB",
        "outputs": outputs, "max_error": max(o["max_rel"] for o in outputs),
    }  # fmt: skip


def _failed(reason: str) -> dict[str, Any]:
    return {"status": "failed", "reason": reason, "outputs": [], "max_error": None}


def _best(values: tuple[Any, ...]) -> int:
    return max(range(len(values)), key=values.__getitem__) if values else -1


def median(values: list[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
