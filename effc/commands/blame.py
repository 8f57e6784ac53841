"""effc blame: what each quantized node costs and gains, and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from effc.commands.options import PATH, json_option, preprocess_option, shape_option

if TYPE_CHECKING:
    from effc.core.preprocess import Preprocess


@click.command()
@click.argument("thing", metavar="MODEL|ARTIFACT")
@click.option("--target", "-t", default="host", show_default=True)
@click.option("--backend", default="", help="Another backend than the target's own.")
@click.option(
    "--precision", default="int8", show_default=True, type=click.Choice(["int8", "w4a8", "auto"])
)
@click.option("--samples", type=PATH, help="Representative inputs, as of effc build.")
@preprocess_option
@click.option("--quantize", default="", metavar="OPTIONS", help="Options of the pass quantize.")
@click.option("--skip", multiple=True, metavar="ID", help="Leave out a pass, like adaround.")
@click.option("--no-measure", is_flag=True, help="Do not time the nodes.")
@shape_option
@json_option
@click.pass_context
def blame(
    ctx: click.Context, thing: str, target: str, backend: str, precision: str, samples: Path | None,
    preprocess: Preprocess | None, quantize: str, skip: tuple[str, ...], no_measure: bool,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
) -> None:  # fmt: skip
    """The quantized nodes of MODEL, costliest first: noise, time, bytes, and the likely cause.

    An artifact shows the table that its build kept.
    """
    from effc.artifacts import is_artifact, open_artifact
    from effc.choices import BuildOptions
    from effc.commands.progress import progress_on_stderr
    from effc.precision.explain import explain, stored_blame
    from effc.report.precision import blame_document, blame_parts, precision_parts

    if is_artifact(Path(thing)):
        with open_artifact(Path(thing)) as artifact:
            rows = stored_blame(artifact.manifest)
            described = artifact.manifest.details["precision"]
    else:
        options = BuildOptions(
            precision=precision, backend=backend, shapes=dict(shapes), samples=samples,
            preprocess=preprocess, quantize=tuple(filter(None, quantize.split(","))),
            skip=frozenset(name for text in skip for name in text.split(",") if name),
            measure=not no_measure,
        )  # fmt: skip
        with progress_on_stderr(f"blame {Path(thing).name}") as progress:
            planned = explain(thing, target, options, progress)
        rows, described = planned.blame, planned.describe()["precision"]
    shown: list[Any] = blame_parts(rows)
    if ctx.obj.json:
        ctx.obj.result(blame_document(rows))
    else:
        ctx.obj.result(None, *shown, *precision_parts(described))
