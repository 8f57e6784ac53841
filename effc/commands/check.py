"""effc check: what a target can't take, before building."""

from __future__ import annotations

import click

from effc.commands.options import json_option, shape_option


@click.command()
@click.argument("source")
@click.option(
    "--target", "-t", default="host", show_default=True, help="A target or a TOML profile."
)
@click.option("--precision", default="fp32", show_default=True)
@click.option("--backend", default="", help="Another backend than the target's own.")
@shape_option
@json_option
@click.pass_context
def check(
    ctx: click.Context, source: str, target: str, precision: str, backend: str,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
) -> None:  # fmt: skip
    """List every node of SOURCE that the target can't take, with the reason and a remedy.

    Nothing is compiled. The exit code is 3 where there is such a node.
    """
    from effc.check import check as check_source

    found = check_source(source, target, precision=precision, backend=backend, shapes=dict(shapes))
    if ctx.obj.json:
        ctx.obj.result(found)
    else:
        from effc.report.terminal import check_report

        ctx.obj.result(None, *check_report(source, found))
    ctx.exit(0 if found.supported else 3)
