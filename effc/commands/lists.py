"""effc targets, passes, backends, zoo: what there is."""

from __future__ import annotations

import click

from effc.commands.options import json_option


@click.command()
@click.argument("name", required=False)
@json_option
@click.pass_context
def targets(ctx: click.Context, name: str | None) -> None:
    """Every target, and whether it can be built, run and measured from here; or the facts about NAME."""
    if name is not None:
        from effc.core.profiles import load_profile

        profile = load_profile(name)
        if ctx.obj.json:
            ctx.obj.result(profile)
        else:
            from effc.report.lists import profile_report

            ctx.obj.result(None, *profile_report(profile))
        return
    from effc.core.profiles import failures
    from effc.targets import target_rows

    rows, broken = target_rows(), failures()
    if ctx.obj.json:
        ctx.obj.result({"targets": rows, "failures": broken})
    else:
        from effc.report.lists import targets_report

        ctx.obj.result(None, *targets_report(rows, broken))


@click.command()
@click.argument("name", required=False)
@json_option
@click.pass_context
def passes(ctx: click.Context, name: str | None) -> None:
    """Every pass with its promise and options, or all about pass NAME (an id, or file.py:Class).

    EXACT: the same function but for the order of additions. ROUNDED: the same at a lower precision.
    LOSSY: a smaller function.
    """
    from effc.catalogue import describe_pass, pass_failures, pass_rows

    if name is not None:
        row = describe_pass(name)
        if ctx.obj.json:
            ctx.obj.result(row)
        else:
            from effc.report.lists import pass_report

            ctx.obj.result(None, *pass_report(row))
        return
    rows, broken = pass_rows(), pass_failures()
    if ctx.obj.json:
        ctx.obj.result({"passes": rows, "failures": broken})
    else:
        from effc.report.lists import passes_report

        ctx.obj.result(None, *passes_report(rows, broken))


@click.command()
@json_option
@click.pass_context
def backends(ctx: click.Context) -> None:
    """Every backend, whether its toolchain is here, and what to do if it is not."""
    from effc.catalogue import backend_rows

    rows = backend_rows()
    if ctx.obj.json:
        ctx.obj.result({"backends": rows})
    else:
        from effc.report.lists import backends_report

        ctx.obj.result(None, *backends_report(rows))


@click.command()
@json_option
@click.pass_context
def zoo(ctx: click.Context) -> None:
    """The models that zoo:NAME builds; zoo:timm/ARCHITECTURE builds any of timm's (extra torch)."""
    from effc.catalogue import zoo_failures, zoo_rows

    rows, broken = zoo_rows(), zoo_failures()
    if ctx.obj.json:
        ctx.obj.result({"models": rows, "failures": broken})
    else:
        from effc.report.lists import zoo_report

        ctx.obj.result(None, *zoo_report(rows, broken))
