"""effc finish: on the device, what the build could not do elsewhere."""

from __future__ import annotations

from pathlib import Path

import click

from effc.commands.options import PATH, json_option


@click.command()
@click.argument("artifact", type=PATH)
@click.option(
    "--device",
    default="",
    metavar="ssh://USER@HOST[:PORT]",
    help="Do it on that device: copy, build, measure, fetch. Keys only, no passwords.",
)
@click.option("--ssh-config", type=PATH, help="Another configuration file for ssh (its -F).")
@json_option
@click.pass_context
def finish(ctx: click.Context, artifact: Path, device: str, ssh_config: Path | None) -> None:
    """Verify and measure ARTIFACT here, on its own device, and write the report back into it.

    A Core ML package on a Mac: all compute units against the goldens that the artifact holds. A bundle on
    its Jetson, or with --device from here: its engines are built, compared and timed.
    """
    from effc.finish import finish as finish_artifact

    done = finish_artifact(artifact, device, ssh_config)
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
        + (f", error {row['max_error']:.2g}" if row["max_error"] is not None else "")
        for name, row in manifest.details.get("finished", {}).items()
    ]
    rows += [f"note: {n}" for n in manifest.details.get("device", {}).get("notes", ())]
    ctx.obj.result(None, f"{manifest.verdict.status}: {manifest.verdict.reason}", *rows)
