"""The HTML report of a build: one file, no scripts, nothing loaded from elsewhere.

It holds only what is in the manifest, and the times by layer and live memory given beside it, so without
measurements two equal builds write equal reports.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from effc.core.artifact import Manifest, write_atomically
from effc.core.measure import LayerTime
from effc.report.charts import Bar, bars, steps
from effc.report.precision_page import precision_section
from effc.report.units import extents, milliseconds, precision_text, preprocess_text, size

_LAYERS = 40


def write_page(
    path: Path,
    manifest: Manifest,
    *,
    layers: Sequence[LayerTime] = (),
    memory: Sequence[tuple[str, int]] = (),
) -> None:
    """Write the report. `memory` is the live bytes of activations while each node runs."""
    write_atomically(path, page(manifest, layers=layers, memory=memory).encode())


def page(
    manifest: Manifest,
    *,
    layers: Sequence[LayerTime] = (),
    memory: Sequence[tuple[str, int]] = (),
) -> str:
    """The report as HTML."""
    name = manifest.source.get("name", "model")
    title = f"{Path(name).name} for {manifest.target}"
    css = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    sections = [
        _tiles(manifest),
        _latency(manifest),
        _layers(layers),
        *(_section(*s) for s in precision_section(manifest.details.get("precision"))),
        _memory(memory, manifest),
        _passes(manifest),
        _fallbacks(manifest),
        _fusion(manifest),
        _accuracy(manifest),
        _interface(manifest),
        _provenance(manifest),
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{css}</style></head><body><main>{_head(title, manifest)}{''.join(sections)}"
        "</main></body></html>\n"
    )


def _head(title: str, manifest: Manifest) -> str:
    verdict = manifest.verdict
    style = verdict.status.replace(" ", "-")
    return (
        f'<header><h1>{escape(title)}</h1><span class="verdict {style}">{escape(verdict.status)}</span>'
        f'<span class="sub">{escape(verdict.reason)}</span></header>'
    )


def _tiles(manifest: Manifest) -> str:
    tiles = [("backend", manifest.backend), ("precision", precision_text(manifest))]
    ours = [m for m in manifest.measurements if not m.name.startswith("onnxruntime")]
    for m in ours:
        unit = "thread" if m.threads == 1 else "threads"
        if m.seconds:
            tiles.append((f"median, {m.threads} {unit} ({m.source})", milliseconds(m.median)))
        elif m.instructions is not None:
            tiles.append((f"instructions ({m.source})", f"{m.instructions:,}"))
            tiles += [("RAM and stack", size(m.peak_bytes))] if m.peak_bytes else []
    for key, name in (("arena_bytes", "activations"), ("constant_bytes", "constants")):
        value = manifest.details.get(key)
        if isinstance(value, int):
            tiles.append((name, size(value)))
    if manifest.verdict.max_error is not None:
        tiles.append(("largest error of the range", f"{manifest.verdict.max_error:.2g}"))
    shown = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
        for name, value in tiles
    )
    return f'<div class="tiles">{shown}</div>'


def _latency(manifest: Manifest) -> str:
    if not manifest.measurements:
        return _section("Latency", '<p class="note">Not measured.</p>')
    if not any(m.seconds for m in manifest.measurements):
        note = "Counted in an emulator, which says nothing of time."
        return _section("Latency", f'<p class="note">{note}</p>')
    items = []
    for m in manifest.measurements:
        interval = m.interval()
        if m.median is None or interval is None:
            continue
        theirs = m.name.startswith("onnxruntime")
        label = f"{m.name or 'artifact'}, {m.threads} {'thread' if m.threads == 1 else 'threads'}"
        low, high = (milliseconds(s) for s in interval)
        items.append(
            Bar(
                label if m.source == "device" else f"{label} ({m.source})",
                m.median,
                milliseconds(m.median),
                f"{label}: median {milliseconds(m.median)}, 95 % interval {low} .. {high}, "
                f"{len(m.seconds)} repetitions",
                "b" if theirs else "a",
                *interval,
            )
        )
    note = "Medians of interleaved repetitions with their 95 % interval (order statistics)."
    return _section("Latency", bars(items) + f'<p class="note">{note}</p>')


def _layers(layers: Sequence[LayerTime]) -> str:
    if not layers:
        return ""
    counted = layers[0].instructions is not None
    costs = {id(x): float(x.instructions or 0) if counted else x.seconds for x in layers}
    total = sum(costs.values()) or 1.0
    dearest = sorted(layers, key=lambda x: -costs[id(x)])[:_LAYERS]

    def shown(cost: float) -> str:
        return f"{cost:,.0f}" if counted else milliseconds(cost)

    items = [
        Bar(
            x.name,
            costs[id(x)],
            f"{shown(costs[id(x)])}  {100 * costs[id(x)] / total:.1f} %",
            f"{x.name} ({x.template}): {shown(costs[id(x)])}; computes {', '.join(x.nodes)}",
            _style(x.template),
        )
        for x in dearest
    ]
    more = f", the {_LAYERS} dearest of {len(layers)}" if len(layers) > _LAYERS else ""
    legend = "blue: linear operators, green: memory-bound, orange: fallbacks"
    return _section(
        f"{'Instructions' if counted else 'Time'} by layer{more}",
        bars(items) + f'<p class="legend">{legend}. Sum {shown(total)}; each call '
        f"{'counted' if counted else 'timed'} by itself.</p>",
    )


def _memory(memory: Sequence[tuple[str, int]], manifest: Manifest) -> str:
    if not memory:
        return ""
    arena = manifest.details.get("arena_bytes")
    note = "Bytes of activations that are live while each node runs by itself, in order"
    if isinstance(arena, int):
        note += f"; the artifact, where nodes are fused, reserves {size(arena)}"
    return _section("Memory over time", steps(memory, size) + f'<p class="note">{note}.</p>')


def _passes(manifest: Manifest) -> str:
    worked = [p for p in manifest.passes if p.rewrites]
    rows = [
        (
            f"<code>{escape(p.id)}{escape('{' + p.options + '}') if p.options else ''}</code>",
            escape(p.effect),
            f"{p.rewrites}",
        )
        for p in worked
    ]
    idle = len(manifest.passes) - len(worked)
    note = f'<p class="note">{idle} passes found nothing to do.</p>' if idle else ""
    items = [Bar(p.id, p.rewrites, str(p.rewrites), style="c") for p in worked]
    return _section("Passes", bars(items) + _table(("pass", "effect", ">rewrites"), rows) + note)


def _fallbacks(manifest: Manifest) -> str:
    found = manifest.details.get("fallbacks")
    if not found:
        return ""
    rows = [(escape(str(name)),) for name in found]
    return _section("Fallbacks", _table(("nodes that run as the compiler's own kernels",), rows))


def _fusion(manifest: Manifest) -> str:
    """The layers of an engine that compute several nodes."""
    found = manifest.details.get("fusion")
    if not isinstance(found, Mapping):
        return ""
    fused = found["fused"]
    rows = [(escape(", ".join(nodes)),) for nodes in fused[:_LAYERS]]
    types = ", ".join(f"{n} {escape(name)}" for name, n in found["dtypes"].items())
    note = (
        f'<p class="note">{found["layers"]} layers compute {found["nodes"]} nodes ({types});'
        f" {len(found['folded'])} nodes are folded away. fusion.json has every layer.</p>"
    )
    return _section("Fusion", note + _table((f"nodes of one layer ({len(fused)})",), rows))


def _accuracy(manifest: Manifest) -> str:
    rows = [
        (
            f"<code>{escape(e.name)}</code>",
            f"{e.max_abs:.3g}",
            f"{e.max_rel:.3g}",
            "bit-equal" if e.sqnr_db is None else f"{e.sqnr_db:.1f} dB",
        )
        for e in manifest.verdict.outputs
    ]
    if not rows:
        return ""
    goldens = manifest.details.get("goldens")
    kind = "made-up" if isinstance(goldens, Mapping) and goldens.get("synthetic") else "given"
    note = (
        f'<p class="note">Against the untouched model in onnxruntime, on {manifest.verdict.samples} {kind} '
        "samples whose answers were recorded before anything changed.</p>"
    )
    head = ("output", ">largest error", ">of the range", ">SQNR")
    return _section("Answers", _table(head, rows) + note)


def _interface(manifest: Manifest) -> str:
    rows = []
    for role, specs in (("input", manifest.inputs), ("output", manifest.outputs)):
        for s in specs:
            rows.append(
                (
                    role,
                    f"<code>{escape(s.name)}</code>",
                    escape(s.dtype),
                    extents(s.shape),
                    s.layout,
                )
            )
    note = f'<p class="note">Preprocessing: <code>{escape(preprocess_text(manifest))}</code></p>'
    return _section("Interface", _table(("", "name", "type", "shape", "layout"), rows) + note)


def _provenance(manifest: Manifest) -> str:
    facts = [
        ("source", manifest.source.get("name", "")),
        ("source SHA-256", manifest.source.get("sha256", "")),
        ("pipeline", manifest.pipeline),
        *((f"{name} version", found) for name, found in manifest.versions.items()),
        *((name, f"SHA-256 {digest}") for name, digest in manifest.files.items()),
    ]
    rows = [(escape(name), f"<code>{escape(value)}</code>") for name, value in facts]
    return _section("Provenance", _table(("", ""), rows))


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML; heads that start with `>` are numbers, set to the right."""
    styles = [' class="n"' if h.startswith(">") else "" for h in head]
    top = "".join(
        f"<th{style}>{escape(h.removeprefix('>'))}</th>"
        for h, style in zip(head, styles, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(f"<td{style}>{cell}</td>" for cell, style in zip(row, styles, strict=True))
        + "</tr>"
        for row in rows
    )
    return (
        f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
        if any(head)
        else (f"<table><tbody>{body}</tbody></table>")
    )


def _style(template: str) -> str:
    if ":" in template:
        return "d"
    linear = ("conv", "depthwise", "gemm", "matmul", "attention")
    return "a" if template.startswith(linear) else "c"
