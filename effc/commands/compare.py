"""effc compare: two artifacts or models side by side."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from effc.commands.options import PATH, DurationType, json_option, preprocess_option, shape_option

if TYPE_CHECKING:
    from effc.core.preprocess import Preprocess


@click.command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--samples", type=PATH, help="Inputs to compare on  [default: made-up ones]")
@click.option(
    "--count", type=click.IntRange(1), default=8, show_default=True, help="Number of samples."
)
@click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True)
@click.option(
    "--seconds", type=DurationType(), default="2s", show_default=True, help="Time for timing."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of made-up inputs.")
@preprocess_option
@shape_option
@json_option
@click.pass_context
def compare(
    ctx: click.Context, a: str, b: str, samples: Path | None, count: int, threads: int, seconds: float,
    seed: int, preprocess: Preprocess | None, shapes: tuple[tuple[str, tuple[int, ...]], ...],
) -> None:  # fmt: skip
    """How far B's answers are from A's on the same inputs, and what each costs.

    A and B are artifacts, or models that onnxruntime runs.
    """
    from effc.commands.progress import progress_on_stderr
    from effc.compare import compare as compare_two
    from effc.core.data import FirstSamples, LabelledSamples, SyntheticSamples, open_samples
    from effc.runnable import choose_preprocess, open_runnable

    with contextlib.ExitStack() as stack:
        one = stack.enter_context(open_runnable(a, dict(shapes)))
        two = stack.enter_context(open_runnable(b, dict(shapes)))
        inputs: LabelledSamples
        if samples is not None:
            known = choose_preprocess(one, preprocess) or two.preprocess
            inputs = FirstSamples(open_samples(samples, one.inputs, known), count)
        else:
            inputs = SyntheticSamples(one.inputs, count=count, seed=seed, preprocess=one.preprocess)
        progress = stack.enter_context(progress_on_stderr("compare"))
        result = compare_two(
            one,
            two,
            inputs,
            threads=threads,
            seconds=seconds,
            on_round=lambda done, total: progress("time", done / total),
        )
    if ctx.obj.json:
        ctx.obj.result(result)
    else:
        from effc.report.terminal import comparison_report

        ctx.obj.result(None, *comparison_report(result))
