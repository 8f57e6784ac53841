"""What the listing commands print: targets, passes, backends, the zoo, the doctor's findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.text import Text

from effc.report.terminal import Parts, fields, table
from effc.report.units import extents, quantity, size

if TYPE_CHECKING:
    from effc.catalogue import BackendRow, PassRow, ZooRow
    from effc.core.target import HardwareProfile, Number
    from effc.doctor import Diagnosis
    from effc.targets import TargetRow

_STATUS = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def targets_report(rows: Sequence[TargetRow], failures: Mapping[str, str]) -> Parts:
    """One line a target, with what can be done from here, and why not."""
    made = table("target", "what", "backend", "build", "run", "measure", "why not")
    for r in rows:
        name = r.name + (f" ({', '.join(r.aliases)})" if r.aliases else "")
        marks = [_mark(v) for v in (r.build, r.run, r.measure)]
        made.add_row(escape(name), escape(r.title), r.backend, *marks, escape(r.why))
    return [made, *_failures(failures)]


def profile_report(profile: HardwareProfile) -> Parts:
    """The facts about one target, each with its basis."""
    rows = [
        ("name", profile.name + (f" ({', '.join(profile.aliases)})" if profile.aliases else "")),
        ("title", profile.title),
        ("vendor", profile.vendor),
        ("backend", profile.backend),
        ("triple", f"{profile.triple} {profile.mcpu}"),
        ("features", ", ".join(profile.features)),
        ("cores", str(profile.cores)),
    ]
    if profile.frequency is not None:
        rows.append(
            ("frequency", _number(profile.frequency, f"{quantity(profile.frequency.value)}Hz"))
        )
    for m in profile.memories:
        text = _number(m.bytes, size(m.bytes.value))
        if m.bandwidth is not None:
            text += "; " + _number(m.bandwidth, f"{quantity(m.bandwidth.value)}B/s")
        rows.append((m.name, text))
    for dtype, peak in profile.peak.items():
        rows.append((f"peak {dtype}", _number(peak, f"{quantity(peak.value)}MAC/s")))
    rows += [(k, v) for k, v in profile.toolchain.items()]
    return [fields([*rows, ("notes", profile.notes)])]


def passes_report(rows: Sequence[PassRow], failures: Mapping[str, str]) -> Parts:
    """One line a pass, and its options."""
    made = table("pass", "effect", "what", "options")
    for r in rows:
        options = ", ".join(f"{o.name}={o.default}" for o in r.options)
        made.add_row(escape(r.id), r.effect, escape(r.summary), escape(options))
    hint = Text(
        "effc passes NAME tells all about one; --pass ID{option=value} adds one", style="dim"
    )
    return [made, *_failures(failures), hint]


def pass_report(row: PassRow) -> Parts:
    """All about one pass."""
    parts: Parts = [fields([("pass", row.id), ("effect", row.effect), ("from", row.where)])]
    parts += ["", Text(row.doc or "(no description)")]
    if row.options:
        made = table("option", "type", "default", "unit", "what")
        for o in row.options:
            made.add_row(o.name, o.type, escape(o.default), o.unit, escape(o.help))
        parts += ["", made]
    return parts


def backends_report(rows: Sequence[BackendRow]) -> Parts:
    """One line a backend."""
    made = table("backend", "here", "versions", "why not", "remedy")
    for r in rows:
        versions = ", ".join(f"{k} {v}" for k, v in r.versions.items())
        made.add_row(r.id, _mark(r.available), versions, escape(r.reason), escape(r.hint))
    return [made]


def zoo_report(rows: Sequence[ZooRow], failures: Mapping[str, str]) -> Parts:
    """One line a model."""
    made = table("model", "what", "input", ">parameters", "reference")
    for r in rows:
        made.add_row(
            escape(f"zoo:{r.name}"), escape(r.summary), extents(r.input_shape), quantity(r.parameters),
            escape(r.reference),
        )  # fmt: skip
    hint = Text("zoo:timm/ARCHITECTURE builds any architecture of timm (extra torch)", style="dim")
    return [made, *_failures(failures), hint]


def doctor_report(found: Diagnosis) -> Parts:
    """One line a finding, with the remedy below where there is one."""
    made = table("", "what", "found")
    for f in found.checks:
        text = escape(f.detail) + (
            f"\n[dim]{escape(f.remedy)}[/dim]" if f.status != "ok" and f.remedy else ""
        )
        made.add_row(Text(f.status, style=_STATUS[f.status]), escape(f.name), text)
    line = (
        "effc can work here" if found.ok else "effc can't work here until the failures are mended"
    )
    return [made, Text(line, style="green" if found.ok else "red")]


def _mark(value: bool) -> str:
    return "[green]yes[/green]" if value else "[dim]no[/dim]"


def _number(number: Number, text: str) -> str:
    return f"{text} ({number.basis}: {number.source})"


def _failures(failures: Mapping[str, str]) -> Parts:
    return [Text(f"{name}: {reason}", style="yellow") for name, reason in failures.items()]
