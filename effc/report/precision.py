"""What commands print about precision: the blame table, the mixes that were tried, the notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import RenderableType
from rich.markup import escape
from rich.text import Text

from effc.report.terminal import table
from effc.report.units import milliseconds, size

if TYPE_CHECKING:
    from effc.precision.blame import BlameRow

WORST = 12


def blame_parts(rows: Sequence[BlameRow], *, most: int = WORST) -> list[RenderableType]:
    """The nodes that cost most, worst first."""
    if not rows:
        return [Text("no node is quantized")]
    made = table("node", "op", ">noise", ">SQNR alone", ">gain", ">saved", "likely cause")
    for row in rows[:most]:
        gain = "" if row.gain_seconds is None else _signed(row.gain_seconds)
        made.add_row(
            escape(", ".join(row.nodes)), row.op, f"{100 * row.share:.0f} %", decibels(row.sqnr_db),
            gain, size(row.saved_bytes), escape(row.cause),
        )  # fmt: skip
    parts: list[RenderableType] = [made]
    if len(rows) > most:
        rest = sum(r.share for r in rows[most:])
        parts.append(
            Text(f"{len(rows) - most} more make {100 * rest:.0f} % of the noise", style="dim")
        )
    return parts


def precision_parts(described: Mapping[str, Any] | None) -> list[RenderableType]:
    """How a quantized artifact came to be: score, Pareto set, notes. Nothing for others."""
    if not described:
        return []
    parts: list[RenderableType] = []
    if described.get("pareto"):
        made = table(
            "mix", ">drop", ">agreement", ">SQNR", ">time (estimate)", ">constants",
            title="Pareto set",
        )  # fmt: skip
        for trial in described["pareto"]:
            seconds = trial["seconds"]
            made.add_row(
                escape(trial["label"]), f"{trial['drop']:.2f} ({trial['metric']})",
                "" if trial["agreement"] is None else f"{trial['agreement']:.1f} %",
                decibels(trial["sqnr_db"]),
                "" if seconds is None else milliseconds(seconds), size(trial["bytes"]),
            )  # fmt: skip
        parts += ["", made]
    if described.get("synthetic"):
        parts.append(
            Text("caution: calibrated on made-up samples; give real ones by --samples", "yellow")
        )
    parts += [Text(note, style="dim") for note in described.get("notes", ())]
    return parts


def blame_document(rows: Sequence[BlameRow]) -> Any:
    """The table as JSON, with the ranges and histograms to plot."""
    return {"blame": msgspec.to_builtins(rows)}


def decibels(value: float | None) -> str:
    """`37.2 dB`, or that nothing differs."""
    return "exact" if value is None else f"{value:.1f} dB"


def _signed(seconds: float) -> str:
    return ("" if seconds >= 0 else "-") + milliseconds(abs(seconds))
