"""effc inspect: what is in a model, and what it should cost."""

from __future__ import annotations

from pathlib import Path

import click

from effc.commands.options import json_option, shape_option


@click.command()
@click.argument("source", metavar="SOURCE|ARTIFACT")
@click.option(
    "--target", "-t", default="", help="Also the roofline time by layer there (an estimate)."
)
@click.option(
    "--threads", type=click.IntRange(1, 1024), help="For the roofline  [default: all cores]"
)
@click.option("--layers", is_flag=True, help="List every layer, not only the dearest.")
@shape_option
@json_option
@click.pass_context
def inspect(
    ctx: click.Context, source: str, target: str, threads: int | None, layers: bool,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
) -> None:  # fmt: skip
    """Operators, parameters, MACs and activation peak of a model, or the manifest of an artifact."""
    from effc.artifacts import is_artifact, open_artifact

    path = Path(source)
    if is_artifact(path):
        with open_artifact(path) as artifact:
            manifest = artifact.manifest
        if ctx.obj.json:
            ctx.obj.result(manifest)
        else:
            from effc.report.terminal import manifest_report

            ctx.obj.result(None, *manifest_report(path, manifest))
        return
    from effc.inspect import inspect as inspect_model

    found = inspect_model(source, target=target, shapes=dict(shapes), threads=threads or 0)
    if ctx.obj.json:
        ctx.obj.result(found)
    else:
        from effc.report.terminal import inspection_report

        ctx.obj.result(None, *inspection_report(found, all_layers=layers))
