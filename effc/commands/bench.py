"""effc bench: latency of artifacts and models, side by side."""

from __future__ import annotations

import contextlib

import click

from effc.commands.options import (
    DurationType,
    ThreadsType,
    device_option,
    json_option,
    shape_option,
)


@click.command()
@click.argument("things", nargs=-1, required=True, metavar="ARTIFACT|MODEL...")
@click.option(
    "--against",
    type=click.Choice(["onnxruntime"]),
    help="Also time the source of the artifact with onnxruntime.",
)
@click.option(
    "--threads",
    type=ThreadsType(),
    default="1",
    show_default=True,
    help="Thread counts, like 2 or 1,2.",
)
@click.option(
    "--seconds",
    type=DurationType(),
    default="4s",
    show_default=True,
    help="Time for each thread count.",
)
@click.option(
    "--rounds",
    type=click.IntRange(2, 1000),
    default=20,
    show_default=True,
    help="Turns that the competitors take.",
)
@click.option("--layers", is_flag=True, help="Also the time of every layer.")
@click.option(
    "--batches",
    type=ThreadsType(),
    default=(),
    help="On a GPU: also these batch sizes, like 1,8,32 (the engine's profile must allow them).",
)
@device_option
@shape_option
@json_option
@click.pass_context
def bench(
    ctx: click.Context, things: tuple[str, ...], against: str | None, threads: tuple[int, ...],
    seconds: float, rounds: int, layers: bool, batches: tuple[int, ...],
    device: str, shapes: tuple[tuple[str, tuple[int, ...]], ...],
) -> None:  # fmt: skip
    """Time artifacts, and models by onnxruntime, in turn (A B A B ...) on made-up inputs.

    Medians come with a 95 % interval; where two intervals overlap, the difference is called noise.
    Ratios are to the last one, or to onnxruntime with --against.
    """
    from effc.bench import bench as run_bench
    from effc.bench import with_onnxruntime
    from effc.commands.progress import progress_on_stderr
    from effc.runnable import open_runnable

    with contextlib.ExitStack() as stack:
        subjects = [stack.enter_context(open_runnable(t, dict(shapes), device)) for t in things]
        if against is not None:
            subjects = with_onnxruntime(subjects)
        progress = stack.enter_context(progress_on_stderr("bench"))
        result = run_bench(
            subjects,
            threads=threads,
            seconds=seconds,
            rounds=rounds,
            layers=layers,
            batches=batches,
            on_round=lambda done, total: progress(f"round {done} of {total}", done / total),
        )
    if ctx.obj.json:
        ctx.obj.result(result)
    else:
        from effc.report.terminal import bench_report

        ctx.obj.result(None, *bench_report(result))
