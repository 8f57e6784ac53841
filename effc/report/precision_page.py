"""The part of the HTML report about precision: the mixes that were tried, the blame table, tensor ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from effc.report.charts import Bar, bars, spark
from effc.report.units import milliseconds, size

_NODES = 30
_RANGES = 24


def precision_section(described: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Titles and bodies; nothing where the build kept the model's numbers."""
    if not described:
        return []
    found = [("Precision", _mixes(described) + _notes(described))]
    rows = described.get("blame") or ()
    if rows:
        found.append(("Where the noise comes from", _blame(rows)))
        ranges = _ranges(rows)
        if ranges:
            found.append(("Ranges of the noisiest tensors", ranges))
    return found


def _mixes(described: Mapping[str, Any]) -> str:
    best = {t["label"] for t in described.get("pareto", ())}
    rows = []
    for trial in (*described.get("trials", ()), *described.get("pareto", ())):
        row = (
            escape(trial["label"]) + (" *" if trial["label"] in best else ""),
            f"{trial['drop']:.2f} ({escape(trial['metric'])})",
            "" if trial["agreement"] is None else f"{trial['agreement']:.1f} %",
            "exact" if trial["sqnr_db"] is None else f"{trial['sqnr_db']:.1f} dB",
            "" if trial["seconds"] is None else milliseconds(trial["seconds"]),
            size(trial["bytes"]),
        )
        if row not in rows:
            rows.append(row)
    head = ("mix", "drop", "agreement", "SQNR", "time (estimate)", "constants")
    note = '<p class="note">* no other is both faster and more accurate (Pareto set).</p>'
    return _table(head, rows) + note if rows else ""


def _notes(described: Mapping[str, Any]) -> str:
    notes = [escape(n) for n in described.get("notes", ())]
    if described.get("synthetic"):
        notes.append("Calibrated on made-up samples: give real ones by --samples.")
    return "".join(f'<p class="note">{n}</p>' for n in notes)


def _blame(rows: Sequence[Mapping[str, Any]]) -> str:
    items = []
    for row in rows[:_NODES]:
        gain = row["gain_seconds"]
        saved = "" if gain is None else f", saves {milliseconds(gain)}"
        if gain is not None and gain < 0:
            saved = f", costs {milliseconds(-gain)}"
        alone = "exact" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f} dB"
        label = ", ".join(row["nodes"])
        items.append(
            Bar(
                label,
                row["share"],
                f"{100 * row['share']:.0f} %",
                f"{label} ({row['op']}): SQNR alone {alone}{saved}; {row['cause']}",
                "d" if row["share"] > 0.2 else "a",
            )
        )
    more = f" The {_NODES} costliest of {len(rows)}." if len(rows) > _NODES else ""
    note = (
        '<p class="note">Share of the noise at the outputs when each node alone is quantized; the pointer '
        "shows "
        f"time and cause.{more}</p>"
    )
    return bars(items) + note


def _ranges(rows: Sequence[Mapping[str, Any]]) -> str:
    """Histograms of the noisiest tensors beside the span of their integers."""
    seen: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        for r in row["ranges"]:
            if r["sqnr_db"] is not None and r["histogram"]:
                seen.setdefault(r["tensor"], r)
    worst = sorted(seen.values(), key=lambda r: r["sqnr_db"])[:_RANGES]
    cells = [
        (
            f"<code>{escape(r['tensor'])}</code>",
            r["kind"],
            f"{r['sqnr_db']:.1f} dB",
            f"{r['low']:.3g} .. {r['high']:.3g}",
            f"{r['grid_low']:.3g} .. {r['grid_high']:.3g}",
            f"{100 * r['clipped']:.2g} %",
            spark(r["histogram"], (r["low"], r["high"]), (r["grid_low"], r["grid_high"])),
        )
        for r in worst
    ]
    head = ("tensor", "", "SQNR", "data", "integers span", "clipped", "histogram (log)")
    return _table(head, cells) if cells else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(h)}</th>" for h in head)
    body = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
