"""effc build: from a model to a verified, measured artifact."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from effc.commands.options import (
    PATH,
    DurationType,
    KeyValueType,
    ThreadsType,
    json_option,
    preprocess_option,
    shape_option,
)

if TYPE_CHECKING:
    from effc.build import BuildResult
    from effc.core.preprocess import Preprocess


@click.command()
@click.argument("source")
@click.option(
    "--target",
    "-t",
    default="host",
    show_default=True,
    help="The device: a name of `effc targets`, or the path of a TOML profile.",
)
@click.option("--out", "-o", type=PATH, help="Where the artifact goes  [default: MODEL-TARGET]")
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    help="The artifact's numbers: fp32, fp16, bf16, int8, w4a8 (4-bit weights), or auto: the fastest mix "
    "within --max-drop.",
)
@click.option(
    "--max-drop",
    type=click.FloatRange(0, 100),
    default=0.5,
    show_default=True,
    help="What --precision auto may lose, in points: of top-1 where the samples have labels, of agreement "
    "with the float model, or noise in percent of the signal.",
)
@click.option(
    "--prefer",
    type=click.Choice(["latency", "size"]),
    default="latency",
    show_default=True,
    help="What --precision auto spends the budget on; size also takes weights of 4 bits.",
)
@click.option(
    "--keep-float", multiple=True, metavar="NODE", help="Do not quantize this node; again for each."
)
@click.option(
    "--quantize",
    default="",
    metavar="OPTIONS",
    help="Options of the pass quantize, like calibrator=entropy (see `effc passes`).",
)
@click.option(
    "--recipe", type=PATH, help="Do what an earlier build chose: its recipe.json, or its artifact."
)
@click.option("--backend", default="", help="Another backend than the target's own.")
@click.option(
    "--backend-option",
    "backend_options",
    type=KeyValueType(),
    multiple=True,
    help="An option of the backend, like labels=names.txt; again for each.",
)
@shape_option
@click.option(
    "--samples",
    type=PATH,
    help="Representative inputs: a folder or tar of pictures, an npz, npy or one picture; "
    "with a slice, FILE[::5], some of them, FILE[!::5] the others.",
)
@preprocess_option
@click.option("--pipeline", default="", help="Passes that replace the default ones, as text.")
@click.option(
    "--pass",
    "passes",
    multiple=True,
    metavar="ID{OPTIONS}|FILE.py:Class",
    help="One more pass, after the others; again for each.",
)
@click.option("--skip", multiple=True, metavar="ID", help="Leave out a pass; again for each.")
@click.option(
    "--budget", type=DurationType(), default=0.0, help="Time for tuning, like 5m  [default: none]"
)
@click.option(
    "--records",
    type=PATH,
    help="Tuning records to use and add to  [default: the user's cache with --budget, else none]",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Of made-up samples and tuning."
)
@click.option(
    "--threads",
    type=ThreadsType(),
    default=None,
    help="Thread counts to measure  [default: one and all cores]",
)
@click.option("--no-measure", is_flag=True, help="Do not time the artifact.")
@click.option("--verify-each", is_flag=True, help="Hold every pass to its promise (slow).")
@click.option("--dump", type=PATH, metavar="DIR", help="Write the model after each pass to DIR.")
@click.option("--pack", is_flag=True, help="Write one file, OUT.effc, instead of a folder.")
@click.option("--allow-nonfinite", is_flag=True, help="Accept NaN and infinity among the weights.")
@json_option
@click.pass_context
def build(  # noqa: PLR0913
    ctx: click.Context, source: str, target: str, out: Path | None, precision: str, max_drop: float,
    prefer: str,
    keep_float: tuple[str, ...], quantize: str, recipe: Path | None, backend: str,
    backend_options: tuple[tuple[str, str], ...],
    shapes: tuple[tuple[str, tuple[int, ...]], ...], samples: Path | None, preprocess: Preprocess | None,
    pipeline: str, passes: tuple[str, ...], skip: tuple[str, ...], budget: float,
    records: Path | None, seed: int,
    threads: tuple[int, ...] | None, no_measure: bool, verify_each: bool, dump: Path | None, pack: bool,
    allow_nonfinite: bool,
) -> None:  # fmt: skip
    """Build SOURCE into an artifact that is verified and timed.

    SOURCE is a model file (.onnx), module:attribute or file.py:attribute of a torch module, or zoo:NAME.
    Its answers are recorded with onnxruntime before anything changes, and the artifact's are held to them.
    """
    from effc.build import build as build_artifact
    from effc.choices import BuildOptions
    from effc.commands.progress import progress_on_stderr

    options = BuildOptions(
        precision=precision,
        max_drop=max_drop,
        prefer=prefer,
        keep_float=keep_float,
        quantize=tuple(filter(None, quantize.split(","))),
        recipe=recipe,
        backend=backend,
        backend_options=dict(backend_options),
        shapes=dict(shapes),
        samples=samples,
        preprocess=preprocess,
        pipeline=pipeline,
        passes=passes,
        skip=frozenset(name for text in skip for name in text.split(",") if name),
        tune_seconds=budget,
        records=records,
        seed=seed,
        threads=threads or (),
        measure=not no_measure,
        verify_each=verify_each,
        dump=dump,
        pack=pack,
        allow_nonfinite=allow_nonfinite,
    )
    place = out or Path(default_name(source, target))
    begun = time.monotonic()
    with progress_on_stderr(f"build {place.name}") as progress:
        result = build_artifact(source, target, place, options, progress=progress)
    if ctx.obj.json:
        ctx.obj.result({**document(result), "seconds": round(time.monotonic() - begun, 3)})
    else:
        from effc.report.terminal import build_report

        ctx.obj.result(None, *build_report(result, time.monotonic() - begun))


def default_name(source: str, target: str) -> str:
    """`zoo:tiny-cnn`, `models/a.onnx`, `pkg.mod:Net` for `host` -> `tiny-cnn-host`, `a-host`, `Net-host`."""
    stem = source.rpartition(":")[2] if ":" in source else Path(source).name
    stem = re.sub(r"\.(onnx|onnxtxt|textproto|pt2|tflite)$", "", stem)
    board = Path(target).stem if target.endswith(".toml") else target
    parts = (re.sub(r"[^A-Za-z0-9._]+", "-", part).strip("-.") for part in (stem, board))
    return "-".join(part for part in parts if part) or "artifact"


def document(result: BuildResult) -> dict[str, Any]:
    """The JSON of a build; `tuning` stands in it where the build was tuned."""
    manifest = result.artifact.manifest
    tuning = manifest.details.get("tuning")
    return {
        **({} if tuning is None else {"tuning": tuning}),
        "artifact": str(result.path),
        "target": manifest.target,
        "backend": manifest.backend,
        "verdict": {
            "status": manifest.verdict.status,
            "reason": manifest.verdict.reason,
            "max_error": manifest.verdict.max_error,
        },
        "measurements": [
            {
                "name": m.name,
                "source": m.source,
                "device": m.device,
                "threads": m.threads,
                "median_ms": None if m.median is None else 1e3 * m.median,
                "interval_ms": [1e3 * s for s in m.interval() or ()] or None,
                "instructions": m.instructions,
                "peak_bytes": m.peak_bytes,
            }
            for m in result.measurements
        ],
        "passes": [
            {
                "id": r.id,
                "options": r.options,
                "effect": r.effect,
                "rewrites": r.rewrites,
                "seconds": r.seconds,
            }
            for r in result.passes
        ],
    }
