"""What commands print: tables and lines, built with rich. Each function gives the parts in order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from effc.report.units import extents, milliseconds, precision_text, preprocess_text, quantity, size

if TYPE_CHECKING:
    from effc.bench import Bench
    from effc.build import BuildResult
    from effc.check import Check
    from effc.compare import Comparison
    from effc.core.artifact import Manifest, Verdict
    from effc.core.errors import Problem
    from effc.core.gpu import GpuUse
    from effc.core.measure import Measurement
    from effc.evaluate import Evaluation
    from effc.inspect import Inspection
    from effc.run import Answer

Parts = list[RenderableType]

_VERDICT = {"passed": "bold green", "failed": "bold red", "not run": "bold yellow"}
_DEAREST = 15


def table(*columns: str, title: str = "") -> Table:
    """A plain table; columns that start with `>` are numbers, set to the right."""
    made = Table(
        box=None, pad_edge=False, title=title or None, title_justify="left", header_style="bold"
    )
    for column in columns:
        right = column.startswith(">")
        made.add_column(column.removeprefix(">"), justify="right" if right else "left",
                        overflow="fold", no_wrap=right)  # fmt: skip
    return made


def fields(rows: Iterable[tuple[str, str]]) -> Table:
    """Names and values under each other."""
    made = Table(box=None, pad_edge=False, show_header=False)
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in rows:
        made.add_row(name, escape(value))
    return made


def verdict_line(verdict: Verdict) -> Text:
    """`passed: 4 samples within EXACT (largest error 3.1e-07 of the output's range)`."""
    line = Text()
    line.append(verdict.status, style=_VERDICT[verdict.status])
    # of an emulated board, that stands before all else
    emulator, _, rest = verdict.reason.partition("; ")
    if emulator.startswith("emulator: "):
        line.append(f" ({emulator})")
    line.append(f": {rest if emulator.startswith('emulator: ') else verdict.reason}")
    if verdict.max_error is not None:
        line.append(f" (largest error {verdict.max_error:.2g} of the output's range)", style="dim")
    return line


def measurement_table(measurements: Sequence[Measurement]) -> Table:
    """Latency by competitor and thread count; the ratio is to onnxruntime at the same count."""
    counted = [m for m in measurements if m.instructions is not None]
    if counted and len(counted) == len(measurements):
        return counts_table(counted)
    made = table("threads", "what", ">median", ">95 % interval", ">vs onnxruntime")
    others = {m.threads: m for m in measurements if m.name.startswith("onnxruntime")}
    for m in measurements:
        other, interval = others.get(m.threads), m.interval()
        ratio = ""
        if other is not None and m is not other and m.median and other.median:
            ratio = f"{m.median / other.median:.2f}x"
            theirs = other.interval()
            if interval and theirs and interval[1] >= theirs[0] and interval[0] <= theirs[1]:
                ratio += " (inside the noise)"
        shown = f"{milliseconds(interval[0])} .. {milliseconds(interval[1])}" if interval else ""
        name = m.name or "artifact"
        if m.source != "device":
            name += f" ({m.source})"
        made.add_row(str(m.threads), escape(name), milliseconds(m.median), shown, ratio)
    return made


def counts_table(measurements: Sequence[Measurement]) -> Table:
    """What emulators count: exact instructions of one inference, and its memory."""
    made = table("what", "where", ">instructions", ">RAM and stack")
    for m in measurements:
        made.add_row(
            escape(m.name or "artifact"),
            escape(f"{m.device} ({m.source})"),
            f"{m.instructions:,}",
            size(m.peak_bytes) if m.peak_bytes is not None else "",
        )
    return made


def build_report(result: BuildResult, seconds: float) -> Parts:
    """A build: the verdict, where the artifact is, latency, passes, fallbacks."""
    manifest = result.artifact.manifest
    parts: Parts = [verdict_line(manifest.verdict)]
    parts.append(
        fields([
            ("artifact", str(result.path)),
            ("target", f"{manifest.target} ({manifest.backend}, {precision_text(manifest)})"),
            ("size", _artifact_size(result.path)),
            ("built in", f"{seconds:.1f} s"),
            *_details(manifest),
        ])
    )  # fmt: skip
    if result.measurements:
        parts += ["", measurement_table(result.measurements)]
    parts += _precision(manifest)
    parts += tuning_parts(manifest.details.get("tuning"))
    worked = [r for r in result.passes if r.rewrites]
    if worked:
        made = table("pass", "effect", ">rewrites", ">time")
        summed: dict[str, list[float]] = {}
        effects = {r.id: r.effect for r in worked}
        for r in worked:
            entry = summed.setdefault(r.id, [0, 0.0])
            entry[0] += r.rewrites
            entry[1] += r.seconds
        for name, (rewrites, seconds) in summed.items():
            made.add_row(escape(name), effects[name], f"{rewrites:.0f}", milliseconds(seconds))
        idle = len({r.id for r in result.passes}) - len(summed)
        parts += ["", made]
        if idle:
            parts.append(Text(f"{idle} more passes found nothing to do", style="dim"))
    parts += _fallbacks(manifest)
    return parts


def manifest_report(path: Path, manifest: Manifest) -> Parts:
    """What an artifact says about itself."""
    made = fields([
        ("artifact", str(path)),
        ("source", f"{manifest.source.get('name', '')} ({manifest.source.get('frontend', '')}, "
                   f"SHA-256 {manifest.source.get('sha256', '')[:16]})"),
        ("target", f"{manifest.target} ({manifest.backend}, {precision_text(manifest)})"),
        *[(f"input {s.name}", f"{s.dtype} {extents(s.shape)}") for s in manifest.inputs],
        *[(f"output {s.name}", f"{s.dtype} {extents(s.shape)}") for s in manifest.outputs],
        ("preprocess", preprocess_text(manifest)),
        ("pipeline", manifest.pipeline),
        ("files", ", ".join(manifest.files)),
        ("versions", ", ".join(f"{k} {v}" for k, v in manifest.versions.items())),
        *_details(manifest),
    ])  # fmt: skip
    parts: Parts = [verdict_line(manifest.verdict), made]
    if manifest.measurements:
        parts += ["", measurement_table(manifest.measurements)]
    parts += _precision(manifest)
    parts += tuning_parts(manifest.details.get("tuning"))
    return parts + _fallbacks(manifest)


def _precision(manifest: Manifest) -> Parts:
    import msgspec

    from effc.precision.blame import BlameRow
    from effc.report.precision import blame_parts, precision_parts

    described = manifest.details.get("precision")
    if not described:
        return []
    rows = msgspec.convert(described["blame"], tuple[BlameRow, ...])
    worst: Parts = ["", *blame_parts(rows, most=5)] if rows else []
    return [*precision_parts(described), *worst]


def bench_report(result: Bench) -> Parts:
    """Rows by thread count, the machine, and what may disturb the timing."""
    made = table(">threads", "what", ">median", ">95 % interval", ">ratio", "")
    for row in result.rows:
        if row.instructions is not None:
            made.add_row(
                str(row.threads),
                escape(f"{row.name} ({row.source})"),
                f"{row.instructions:,} instructions",
                "exact",
                f"{row.ratio:.2f}x" if row.ratio is not None else "",
                row.verdict,
            )
            continue
        low, high = row.interval_ms
        made.add_row(
            str(row.threads),
            escape(row.name + ("" if row.source == "device" else f" ({row.source})")),
            milliseconds(row.median_ms / 1e3),
            f"{milliseconds(low / 1e3)} .. {milliseconds(high / 1e3)}",
            f"{row.ratio:.2f}x" if row.ratio is not None else "",
            row.verdict,
        )
    m = result.machine
    facts = [m.cpu, f"{m.cores} cores", f"load {m.load}"]
    facts += [f"governor {m.governor}"] if m.governor else ["governor unknown"]
    parts: Parts = [made, Text(", ".join(facts), style="dim")]
    parts += [Text(f"caution: {c}", style="yellow") for c in result.cautions]
    for name, use in result.gpu.items():
        parts += _gpu_parts(name, use)
    for name, layers in result.layers.items():
        if not layers:
            parts.append(Text(f"{name}: no times by layer from this runner", style="dim"))
            continue
        counted = layers[0].instructions is not None
        costs = [float(x.instructions or 0) if counted else x.seconds for x in layers]
        total = sum(costs) or 1.0
        column = ">instructions" if counted else ">time"
        rows = table(
            "layer", "template", column, ">share", "nodes", title=f"layers of {escape(name)}"
        )
        for x, cost in zip(layers, costs, strict=True):
            nodes = ", ".join(x.nodes[:3]) + (
                f" and {len(x.nodes) - 3} more" if len(x.nodes) > 3 else ""
            )
            share = f"{100 * cost / total:.1f} %"
            shown = f"{x.instructions:,}" if counted else milliseconds(x.seconds)
            rows.add_row(escape(x.name), escape(x.template), shown, share, escape(nodes))
        parts += ["", rows]
    return parts


def _gpu_parts(name: str, use: GpuUse) -> Parts:
    """A subject on a GPU: copies, energy, clocks, batches."""
    facts = [
        f"{milliseconds(use.device_ms / 1e3)} on the GPU, {milliseconds(use.host_ms / 1e3)} host to host"
    ]
    facts += [f"{1e3 * use.joules:.3g} mJ an inference"] if use.joules is not None else []
    if use.loaded is not None:
        state = use.loaded
        facts += [f"{state.name}, driver {state.driver}"]
        facts += [f"{state.sm_hz / 1e6:.0f} MHz"] if state.sm_hz is not None else []
        facts += [f"{state.celsius} C"] if state.celsius is not None else []
        facts += [f"{state.watts:.0f} W"] if state.watts is not None else []
    parts: Parts = ["", Text(f"{name}: {', '.join(facts)}")]
    if use.batches:
        made = table(">batch", ">median", ">a second", "")
        for row in use.batches:
            median = milliseconds(row.median_ms / 1e3) if row.median_ms is not None else ""
            rate = f"{row.per_second:.0f}" if row.per_second is not None else ""
            made.add_row(str(row.batch), median, rate, escape(row.refused))
        parts.append(made)
    return parts


def evaluation_report(name: str, result: Evaluation) -> Parts:
    """Accuracy in percent."""
    shown = {"top-1": result.top1, "top-5": result.top5, "agreement": result.agreement}
    rows = [(k, f"{v:.2f} %") for k, v in shown.items() if v is not None]
    rows.append(("samples", str(result.samples)))
    if result.unlabelled:
        rows.append(("without label", str(result.unlabelled)))
    parts: Parts = [fields([("model", name), *rows])]
    if result.nonfinite:
        parts.append(
            Text(f"caution: {result.nonfinite} samples give NaN or infinite scores", style="yellow")
        )
    return parts


def inspection_report(found: Inspection, *, all_layers: bool = False) -> Parts:
    """What is in a model."""
    opsets = ", ".join(f"{d or 'ai.onnx'} {v}" for d, v in found.opsets.items())
    rows = [
        ("source", f"{found.source} ({found.frontend}, opset {opsets})"),
        *[(f"input {p.name}", f"{p.dtype} {extents(p.shape)}") for p in found.inputs],
        *[(f"output {p.name}", f"{p.dtype} {extents(p.shape)}") for p in found.outputs],
        ("nodes", f"{found.nodes}: " + ", ".join(f"{n} {op}" for op, n in found.ops.items())),
        ("parameters", f"{quantity(found.parameters)} ({size(found.weight_bytes)} of constants)"),
        ("MACs", quantity(found.macs)),
        ("other operations", quantity(found.flops)),
        ("activation peak", f"{size(found.activation_peak_bytes)} at {found.activation_peak_node}"),
    ]
    if found.target:
        time = f"{found.estimate_ms:.3g} ms" if found.estimate_ms is not None else "none"
        rows.append(
            (f"estimate for {found.target}", f"{time} at {found.threads} threads ({found.basis})")
        )
    parts: Parts = [fields(rows)]
    if not found.complete:
        parts.append(
            Text("caution: some shapes are dynamic, so the counts are lower bounds (--shape fixes them)",
                 style="yellow")
        )  # fmt: skip
    parts += [Text(f"note: {n}", style="dim") for n in found.notes]
    timed = found.estimate_ms is not None
    layers = list(found.layers)
    if not all_layers and len(layers) > _DEAREST:
        layers.sort(key=lambda x: (-(x.estimate_ms or 0), -x.macs, -x.flops))
        layers = layers[:_DEAREST]
        title = f"the {_DEAREST} dearest of {len(found.layers)} layers"
    else:
        title = "layers"
    head = ["layer", "op", "output", ">MACs", ">parameters", ">bytes moved"]
    made = table(*head, *([">estimate", "bound by"] if timed else []), title=title)
    for x in layers:
        cells = [
            escape(x.name), x.op, extents(x.shape), quantity(x.macs), quantity(x.parameters), size(x.bytes)
        ]  # fmt: skip
        if timed:
            cells += [milliseconds((x.estimate_ms or 0) / 1e3), x.bound]
        made.add_row(*cells)
    return [*parts, "", made]


def problem_table(problems: Sequence[Problem]) -> Table:
    """Every node that a target can't take."""
    made = table("node", "op", "reason", "remedy")
    for p in problems:
        place = f" ({p.source})" if p.source else ""
        made.add_row(escape(p.node + place), escape(p.op), escape(p.reason), escape(p.remedy))
    return made


def check_report(source: str, found: Check) -> Parts:
    """Whether a target takes a model."""
    if found.supported:
        return [Text(f"{source} can be built for {found.target} ({found.backend}, {found.nodes} nodes)",
                     style="green")]  # fmt: skip
    count = len(found.problems)
    line = Text(
        f"{found.target} ({found.backend}) can't take {count} nodes of {source}", style="red"
    )
    return [line, "", problem_table(found.problems)]  # type: ignore[arg-type]  # same fields


def comparison_report(found: Comparison) -> Parts:
    """Two sides, then the outputs."""
    sides = table("", "A", "B")
    for name, a, b in (
        ("name", found.a.name, found.b.name),
        ("bytes", size(found.a.bytes), size(found.b.bytes)),
        ("parameters", quantity(found.a.parameters), quantity(found.b.parameters)),
        ("MACs", quantity(found.a.macs), quantity(found.b.macs)),
        ("latency", milliseconds(found.a.median_ms / 1e3), milliseconds(found.b.median_ms / 1e3)),
    ):
        sides.add_row(name, escape(a), escape(b))
    ratio = f"{found.ratio:.2f}x" if found.ratio is not None else "?"
    made = table("output", ">largest error", ">of the range", ">SQNR")
    for e in found.outputs:
        sqnr = "bit-equal" if e.sqnr_db is None else f"{e.sqnr_db:.1f} dB"
        made.add_row(escape(e.name), f"{e.max_abs:.3g}", f"{e.max_rel:.3g}", sqnr)
    kind = "made-up" if found.synthetic else "given"
    return [
        sides,
        Text(f"B takes {ratio} of A's time at {found.threads} threads: {found.verdict}"),
        "",
        made,
        Text(f"B against A on {found.samples} {kind} samples", style="dim"),
    ]


def run_report(answers: Sequence[Sequence[Answer]], *, synthetic: bool, out: Path | None) -> Parts:
    """The answers of the first samples."""
    parts: Parts = []
    if synthetic:
        parts.append(Text("inputs are made up: name some with --input", style="yellow"))
    for i, sample in enumerate(answers[:10]):
        if len(answers) > 1:
            parts.append(Text(f"sample {i}", style="bold"))
        for a in sample:
            low, high = (f"{v:.4g}" if v is not None else "-" for v in (a.minimum, a.maximum))
            line = f"{a.name}: {a.dtype} {extents(a.shape)}, {low} .. {high}"
            parts.append(Text(line + (f", {a.nonfinite} not finite" if a.nonfinite else "")))
            if a.top:
                made = table(">class", ">score", "")
                for guess in a.top:
                    made.add_row(str(guess.index), f"{guess.score:.4f}", escape(guess.label))
                parts.append(made)
    if len(answers) > 10:
        parts.append(Text(f"and {len(answers) - 10} more samples", style="dim"))
    if out is not None:
        parts.append(Text(f"outputs written to {out}"))
    return parts


def _artifact_size(path: Path) -> str:
    files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    return f"{size(sum(p.stat().st_size for p in files))} in {len(files)} files"


def _details(manifest: Manifest) -> list[tuple[str, str]]:
    names = {"arena_bytes": "activations", "constant_bytes": "constants", "nodes": "nodes"}
    rows = []
    for key, name in names.items():
        value = manifest.details.get(key)
        if isinstance(value, int):
            rows.append((name, size(value) if key.endswith("_bytes") else str(value)))
    calls = manifest.details.get("calls")
    if isinstance(calls, Mapping):
        rows.append(("calls", ", ".join(f"{n} {template}" for template, n in calls.items())))
    fusion = manifest.details.get("fusion")
    if isinstance(fusion, Mapping):
        types = ", ".join(f"{n} {name}" for name, n in fusion["dtypes"].items())
        rows.append(("engine", f"{fusion['layers']} layers for {fusion['nodes']} nodes ({types})"))
    goldens = manifest.details.get("goldens")
    if isinstance(goldens, Mapping):
        kind = "made-up" if goldens.get("synthetic") else "given"
        rows.append(("goldens", f"{goldens.get('samples')} {kind} samples"))
    return rows


def tuning_parts(tuning: Mapping[str, Any] | None) -> Parts:
    """What tuning gained as a whole, and by kernel where it changed something."""
    if not tuning:
        return []
    ratio, interval = tuning.get("ratio"), tuning.get("interval")
    what = f"tuning: {tuning['trials']} trials, {tuning['records_reused']} kernels from records"
    if ratio is not None and interval is not None:
        before, after = (milliseconds(tuning[k] / 1e3) for k in ("before_ms", "after_ms"))
        what += (
            f"; {before} -> {after} on {tuning['threads']} threads "
            f"({ratio:.3f}x, 95 % interval {interval[0]:.3f} .. {interval[1]:.3f})"
        )
        what += "" if tuning["kept"] else ": not surely faster, so untuned"
    elif not tuning["kept"]:
        what += "; nothing faster was found"
    if tuning["records_skipped"]:
        what += f"; {tuning['records_skipped']} lines of the records can't be read"
    changed = [k for k in tuning["kernels"] if k["blocking"]]
    if not changed:
        return ["", Text(what)]
    made = table("tuned kernel", "blocking", ">before", ">after")
    for k in changed:
        times = [milliseconds(k[n] / 1e6) if n in k else "" for n in ("before_us", "after_us")]
        made.add_row(escape(k["key"]), escape(k["blocking"]), *times)
    return ["", Text(what), made]


def _fallbacks(manifest: Manifest) -> Parts:
    """Nodes without a kernel of effc's own."""
    found = manifest.details.get("fallbacks")
    if not found:
        return []
    text = ", ".join(str(name) for name in found)
    return [
        Text(f"{len(found)} nodes fall back to the compiler's own kernels: {text}", style="yellow")
    ]
