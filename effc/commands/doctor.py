"""effc doctor: is everything here that effc needs?"""

from __future__ import annotations

import click

from effc.commands.options import json_option


@click.command()
@json_option
@click.pass_context
def doctor(ctx: click.Context) -> None:
    """Look at Python, packages and their pins, toolchains, compiler, processor and memory.

    The exit code is 1 where something that effc can't work without is missing.
    """
    from effc.doctor import examine

    found = examine()
    if ctx.obj.json:
        ctx.obj.result(found)
    else:
        from effc.report.lists import doctor_report

        ctx.obj.result(None, *doctor_report(found))
    ctx.exit(0 if found.ok else 1)
