"""effc finish: on the device, what the build could not do elsewhere."""

from __future__ import annotations

from pathlib import Path

import click

from effc.commands.options import PATH, json_option


@click.command()
@click.argument("artifact", type=PATH)
@json_option
@click.pass_context
def finish(ctx: click.Context, artifact: Path) -> None:
    """Verify and measure ARTIFACT here, on its own device, and write the report back into it.

    A Core ML package on a Mac: all compute units against the goldens that the artifact holds.
    """
    from effc.finish import finish as finish_artifact

    done = finish_artifact(artifact)
    manifest = done.manifest
    if ctx.obj.json:
        ctx.obj.result(
            {
                "artifact": str(done.path),
                "verdict": {
                    "status": manifest.verdict.status,
                    "reason": manifest.verdict.reason,
                    "max_error": manifest.verdict.max_error,
                },
                "devices": manifest.details.get("finished", {}),
            }
        )
        return
    rows = [
        f"{name}: {row['verdict']}"
        + (f", {row['median_ms']:.3g} ms" if "median_ms" in row else "")
        + f", error {row['max_error']:.2g}"
        for name, row in manifest.details.get("finished", {}).items()
    ]
    ctx.obj.result(None, f"{manifest.verdict.status}: {manifest.verdict.reason}", *rows)
