"""effc eval: task accuracy of an artifact or a model."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from effc.commands.options import PATH, device_option, json_option, preprocess_option, shape_option

if TYPE_CHECKING:
    from collections.abc import Callable

    from effc.core.measure import Array, Feeds, Runner
    from effc.core.preprocess import Preprocess
    from effc.runnable import Runnable


@click.command()
@click.argument("thing", metavar="ARTIFACT|MODEL")
@click.option(
    "--data",
    type=PATH,
    required=True,
    help="A folder or tar of pictures, labelled by 123_name.jpg or class folder; or npz of x, y; "
    "with a slice, FILE[::5], some of them, FILE[!::5] the others.",
)
@preprocess_option
@click.option(
    "--reference",
    metavar="ARTIFACT|MODEL",
    help="Also how often this one's best class is the same.",
)
@click.option("--output", default="", help="The output with the class scores, if it is not clear.")
@click.option("--limit", type=click.IntRange(1), help="Only the first samples.")
@click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True)
@device_option
@shape_option
@json_option
@click.pass_context
def evaluate(
    ctx: click.Context, thing: str, data: Path, preprocess: Preprocess | None, reference: str | None,
    output: str, limit: int | None, threads: int, device: str,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
) -> None:  # fmt: skip
    """Top-1 and top-5 accuracy in percent on labelled samples, one at a time.

    An artifact knows its preprocessing if it was built with --preprocess; a model needs it here.
    """
    from effc.commands.progress import progress_on_stderr
    from effc.core.data import FirstSamples, open_samples
    from effc.evaluate import evaluate as evaluate_samples
    from effc.evaluate import scores_output
    from effc.runnable import choose_preprocess, open_runnable

    with contextlib.ExitStack() as stack:
        subject = stack.enter_context(open_runnable(thing, dict(shapes), device))
        scores = scores_output(subject.outputs, output)
        samples = open_samples(data, subject.inputs, choose_preprocess(subject, preprocess))
        if limit is not None:
            samples = FirstSamples(samples, limit)
        other = None
        if reference is not None:
            opened = stack.enter_context(open_runnable(reference, dict(shapes)))
            other = _scores(opened, subject, stack.enter_context(opened.runner(threads)), output)
        runner = stack.enter_context(subject.runner(threads))
        progress = stack.enter_context(progress_on_stderr(f"eval {Path(thing).name}"))
        result = evaluate_samples(
            runner,
            samples,
            scores,
            reference=other,
            on_sample=lambda done, total: progress(f"sample {done} of {total}", done / total),
        )
    if ctx.obj.json:
        ctx.obj.result(result)
    else:
        from effc.report.terminal import evaluation_report

        ctx.obj.result(None, *evaluation_report(thing, result))


def _scores(
    reference: Runnable, subject: Runnable, runner: Runner, output: str
) -> Callable[[Feeds], Array]:
    """The class scores of `reference` for the inputs of `subject`."""
    from effc.evaluate import scores_output
    from effc.runnable import pairing, renamed

    names = pairing(subject.inputs, reference.inputs, "input")
    wanted = output if output in {o.name for o in reference.outputs} else ""
    scores = scores_output(reference.outputs, wanted)
    return lambda feeds: runner.infer(renamed(feeds, names))[scores]
