"""effc run: inputs through an artifact."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from effc.commands.options import PATH, device_option, json_option, preprocess_option, shape_option

if TYPE_CHECKING:
    from effc.core.measure import Array
    from effc.core.preprocess import Preprocess


@click.command()
@click.argument("thing", metavar="ARTIFACT|MODEL")
@click.option(
    "--input",
    "-i",
    "given",
    type=PATH,
    help="An npz (arrays by input name, or x), npy, picture, or a folder or tar of pictures "
    "[default: made-up numbers]",
)
@click.option("--out", "-o", type=PATH, metavar="Y.npz", help="Write the outputs, by name.")
@preprocess_option
@click.option("--labels", type=PATH, help="A text file with the name of each class on its line.")
@click.option(
    "--top", type=click.IntRange(1), default=5, show_default=True, help="Classes to print."
)
@click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True)
@device_option
@shape_option
@json_option
@click.pass_context
def run(
    ctx: click.Context, thing: str, given: Path | None, out: Path | None, preprocess: Preprocess | None,
    labels: Path | None, top: int, threads: int, device: str,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
) -> None:  # fmt: skip
    """Run an artifact (or a model, by onnxruntime) on every sample of --input.

    Prints the best classes where an output looks like class scores, and shape and range of other outputs.
    Several samples are stacked along the first axis in Y.npz.
    """
    from effc.core.data import SyntheticSamples, open_samples
    from effc.run import read_labels, run_samples, save_outputs
    from effc.runnable import choose_preprocess, open_runnable

    names = read_labels(labels) if labels is not None else ()
    with contextlib.ExitStack() as stack:
        subject = stack.enter_context(open_runnable(thing, dict(shapes), device))
        samples = (
            open_samples(given, subject.inputs, choose_preprocess(subject, preprocess))
            if given is not None
            else SyntheticSamples(subject.inputs, count=1, preprocess=subject.preprocess)
        )
        runner = stack.enter_context(subject.runner(threads))
        kept: list[dict[str, Array]] | None = [] if out is not None else None
        result = run_samples(runner, samples, subject.outputs, names, top, kept)
    if out is not None and kept is not None:
        save_outputs(out, kept)
    document: dict[str, Any] = {
        "samples": result,
        "synthetic": samples.synthetic,
        "out": str(out) if out else None,
    }
    if ctx.obj.json:
        ctx.obj.result(document)
    else:
        from effc.report.terminal import run_report

        ctx.obj.result(None, *run_report(result, synthetic=samples.synthetic, out=out))
