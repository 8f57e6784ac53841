"""From the checked bundle to its report: what each engine answers, how fast it is, and which one to ship."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import board, engine, plan, store, trtexec
from .compare import compare, median
from .store import Refused

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def main(folder: Path, arguments: list[str]) -> int:
    """0: done and right; 1: an engine answers wrong; 2: refused, in one line on stderr."""
    options = _parser().parse_args(arguments)
    try:
        if options.worker:
            print(json.dumps(_work(folder, json.loads(options.worker))))
            return 0
        files = store.check_files(folder)
        bundle = store.read_bundle(folder)
        if options.check:
            return _check(folder, bundle, files, options)
        return _build(folder, bundle, files, options)
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"  hint: {error.hint}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="build_on_device.py",
        description="Build, check and measure the engines of this bundle.",
    )
    made.add_argument(
        "--check", action="store_true", help="check the files; say what each JetPack will do"
    )
    made.add_argument(
        "--dry-run", action="store_true", help="say what would be done here, and stop"
    )
    made.add_argument(
        "--form", action="append", help="only this form of the model (fp16, int8, fp32)"
    )
    made.add_argument("--dla", type=int, help="the DLA core that takes what it can")
    made.add_argument("--workspace", type=_bytes, help="bytes (K, M, G) that kernels may use")
    made.add_argument(
        "--cache", type=Path, help="folder of timing caches (default: ~/.cache/effc/timing)"
    )
    made.add_argument(
        "--seconds", type=float, default=3.0, help="time spent on measuring each engine"
    )
    made.add_argument(
        "--time-limit", type=float, default=3600.0, help="seconds that one build may take"
    )
    made.add_argument("--trtexec", metavar="PATH", help="use this trtexec, not the Python module")
    made.add_argument("--worker", help=argparse.SUPPRESS)
    return made


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d{1,12})([KMG]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError("a number of bytes, like 512M")
    return int(match.group(1)) * _UNITS[match.group(2)]


def _check(
    folder: Path, bundle: dict[str, Any], files: dict[str, str], options: argparse.Namespace
) -> int:
    samples = store.read_goldens(folder)
    print(
        f"bundle for {bundle['title']}, {len(files)} files intact, {len(samples)} recorded samples"
    )
    for role in ("inputs", "outputs"):
        for spec in bundle[role]:
            extents = "x".join(str(d) for d in spec["shape"])
            print(f"{role[:-1]} {spec['name']}: {spec['dtype']} {extents}")
    if bundle.get("preprocess"):
        print(f"pictures: {json.dumps(bundle['preprocess'], sort_keys=True)}")
    cap = plan.workspace(bundle, None, options.workspace)
    print(f"kernels may use {cap >> 20} MiB, at most half of what is free on the board")
    print("\n".join(plan.explain(bundle, _core(bundle, options))))
    return 0


def _core(bundle: dict[str, Any], options: argparse.Namespace) -> int | None:
    core: int | None = options.dla if options.dla is not None else bundle.get("dla")
    return core


class Tool:
    """TensorRT as it is found here: its Python module, or trtexec."""

    def __init__(self, wanted: str | None) -> None:
        found = None if wanted else engine.load()
        self.trt: Any = found[0] if found else None
        self.program = "" if found else wanted or trtexec.find() or ""
        if found:
            self.version: plan.Version = found[1]
        elif self.program:
            self.version = trtexec.version_of(self.program)
        else:
            raise Refused(
                "neither TensorRT's Python module nor trtexec is found here",
                "run it on the device: sudo apt install nvidia-jetpack (python3-libnvinfer)",
            )

    @property
    def name(self) -> str:
        return "Python module" if self.trt is not None else "trtexec"


def _build(
    folder: Path, bundle: dict[str, Any], files: dict[str, str], options: argparse.Namespace
) -> int:
    tool = Tool(options.trtexec)
    steps = plan.steps(bundle, tool.version, options.form, _core(bundle, options))
    space = plan.workspace(bundle, board.memory_free(), options.workspace)
    print(
        f"TensorRT {plan.text_of(tool.version)} ({tool.name}), {space >> 20} MiB for kernels",
        flush=True,
    )
    for step in steps:
        print(f"  {step.words()}", flush=True)
    if options.dry_run:
        return 0
    cache_folder = options.cache or _cache_folder()
    before = board.state()
    rows = []
    for step in steps:
        print(f"build {step.form} (minutes on small boards)", flush=True)
        where = f"dla{step.dla}-" if step.dla is not None else ""
        name = f"{step.form}-{where}trt{plan.text_of(tool.version)}.engine"
        made = folder / "engines" / name
        asked = {
            "step": step._asdict(), "engine": str(made), "workspace": space,
            "cache": str(cache_folder / f"{_device_name(before)}-trt{plan.text_of(tool.version)}.cache"),
            "version": tool.version, "program": tool.program, "seconds": options.seconds,
        }  # fmt: skip
        made.parent.mkdir(exist_ok=True)
        cache_folder.mkdir(parents=True, exist_ok=True)
        facts = _in_process(folder, "build", asked, options.time_limit)
        found = _in_process(folder, "run", asked, options.time_limit)
        row = dict(
            facts, **found, form=step.form, file=step.file, how=step.words(), engine=f"engines/{name}",
            sha256=store.sha256(made), bytes=made.stat().st_size,
        )  # fmt: skip
        rows.append(row)
        print(f"  {_line(row)}", flush=True)
    return _finish(folder, bundle, files, tool, before, rows)


def _finish(
    folder: Path, bundle: dict[str, Any], files: dict[str, str], tool: Tool, before: dict[str, Any],
    rows: list[dict[str, Any]],
) -> int:  # fmt: skip
    after = board.state()
    right = [r for r in rows if r["verdict"]["status"] == "passed"]
    best = min(right, key=lambda r: float(r["device_ms"]["median"]), default=None)
    notes = board.cautions(before, after)
    main_row = next((r for r in rows if r["form"] == bundle["main"]), None)
    if best is not None and main_row is not None and best is not main_row:
        notes.append(
            f"{best['form']} is faster here than {main_row['form']}: "
            f"{best['device_ms']['median']:.3f} ms against {main_row['device_ms']['median']:.3f} ms"
        )
    capability = next((r["capability"] for r in rows if r.get("capability")), "")
    if capability and capability != bundle["sm"]:
        notes.append(f"this GPU is SM{capability}, and the bundle was made for SM{bundle['sm']}")
    report = {
        "format": 1, "bundle": store.identity(files), "target": bundle["target"],
        "tensorrt": plan.text_of(tool.version), "via": tool.name, "host": platform.node(),
        "python": platform.python_version(), "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "before": before, "after": after, "engines": rows,
        "fastest": best["form"] if best else None, "notes": notes,
    }  # fmt: skip
    text = json.dumps(report, indent=1, sort_keys=True) + "\n"
    store.write_atomically(folder / store.REPORT, text.encode())
    for note in notes:
        print(f"note: {note}")
    print(f"report: {folder / store.REPORT}")
    return 0 if len(right) == len(rows) else 1


def _line(row: dict[str, Any]) -> str:
    verdict = row["verdict"]
    error = "" if verdict["max_error"] is None else f", error {verdict['max_error']:.2g}"
    device, host = (row[f"{place}_ms"]["median"] for place in ("device", "host"))
    times = f"{device:.3f} ms on the device, {host:.3f} ms host to host"
    return f"{row['form']}: {verdict['status']}: {verdict['reason']}{error}; {times}"


def _cache_folder() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home, "effc", "timing")


def _device_name(state: dict[str, Any]) -> str:
    name = str(state.get("board") or platform.machine())
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower()


def _in_process(
    folder: Path, task: str, asked: dict[str, Any], time_limit: float
) -> dict[str, Any]:
    """Do `task` in a process of its own: its memory is free again afterwards, and if it dies, why is said."""
    form = asked["step"]["form"]
    command = [sys.executable, str(folder / "build_on_device.py"), "--worker"]
    with _interruptible():
        try:
            done = subprocess.run(
                [*command, json.dumps(dict(asked, task=task))],
                capture_output=True,
                text=True,
                timeout=time_limit,
            )
        except subprocess.TimeoutExpired as error:
            limit = f"{time_limit:g} s"
            raise Refused(f"to {task} {form} took over {limit}", "raise --time-limit") from error
    if done.returncode == 0:
        return dict(json.loads(done.stdout.strip().splitlines()[-1]))
    if done.returncode in (-9, 137):
        raise Refused(
            f"the board ran out of memory: the kernel ended the process that was to {task} {form}",
            engine.out_of_memory_hint(asked["workspace"]),
        )
    lines = done.stderr.strip().splitlines()
    errors = [at for at, line in enumerate(lines) if line.startswith("error: ")]
    if done.returncode == 2 and errors:
        hints = [line for line in lines[errors[-1] :] if line.startswith("  hint: ")]
        raise Refused(lines[errors[-1]][7:], hints[0][8:] if hints else "")
    last = lines[-1] if lines else f"exit status {done.returncode}"
    raise Refused(f"to {task} {form} failed: {last}")


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise Refused("interrupted; what was built until now stays in engines/") from None


def _work(folder: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """The inside of `_in_process`."""
    step = plan.Step(**asked["step"])
    asked["version"] = tuple(asked["version"])
    bundle = store.read_bundle(folder)
    program = asked["program"]
    if asked["task"] == "build":
        if not program:
            return engine.build(engine.load()[0], folder, bundle, step, asked)  # type: ignore[index]
        begin = time.perf_counter()
        try:
            trtexec.build(trtexec.build_command(program, folder, bundle, step, asked), 1e6)
        except MemoryError:
            raise Refused(
                "the board ran out of memory: the kernel ended trtexec",
                engine.out_of_memory_hint(asked["workspace"]),
            ) from None
        return {"build_seconds": round(time.perf_counter() - begin, 1)}
    return _run(folder, bundle, step, asked)


def _run(
    folder: Path, bundle: dict[str, Any], step: plan.Step, asked: dict[str, Any]
) -> dict[str, Any]:
    samples = store.read_goldens(folder)
    goldens = [answers for _, answers in samples]
    answers = []
    facts: dict[str, Any] = {}
    if asked["program"]:
        times: dict[str, list[float]] = {}
        for index, (feeds, golden) in enumerate(samples):
            seconds = 0.0 if index else asked["seconds"]
            found, timed = trtexec.run(
                asked["program"], Path(asked["engine"]), feeds, golden, seconds
            )
            times = times or timed
            answers.append(found)
    else:
        from .cuda import Cuda

        cuda = Cuda()
        facts["capability"] = cuda.capability()
        shapes = {name: tensor.shape for name, tensor in samples[0][0].items()}
        found_trt = engine.load()
        if found_trt is None:
            raise Refused("TensorRT's Python module is gone")
        plan_bytes = Path(asked["engine"]).read_bytes()
        running = engine.Running(found_trt[0], cuda, plan_bytes, shapes)
        try:
            answers = [running.infer(feeds, golden) for feeds, golden in samples]
            times = running.times(asked["seconds"])
        finally:
            running.close()
        facts["batches"] = _sweep(found_trt[0], cuda, plan_bytes, bundle["profiles"], shapes, asked)
    verdict = compare(goldens, answers, float(bundle["forms"][step.form]["min_sqnr_db"]))
    facts["verdict"] = verdict
    for place, values in times.items():
        facts[f"{place}_ms"] = {
            "median": 1e3 * median(values), "least": 1e3 * min(values), "most": 1e3 * max(values),
            "count": len(values), "values": [1e3 * v for v in values[:: max(1, len(values) // 100)]],
        }  # fmt: skip
    return facts


def _sweep(
    trt: Any, cuda: Any, plan_bytes: bytes, profiles: dict[str, Any],
    shapes: dict[str, tuple[int, ...]], asked: dict[str, Any],
) -> list[dict[str, Any]]:  # fmt: skip
    """Median times at the least, the best and the largest shapes of the profiles, on zeros."""
    rows = []
    for at, name in enumerate(("least", "best", "largest") if profiles else ()):
        given = dict(shapes)
        for tensor, ranges in profiles.items():
            given[tensor] = tuple(ranges[at])
        running = engine.Running(trt, cuda, plan_bytes, given)
        try:
            times = running.times(asked["seconds"] / 3)
        finally:
            running.close()
        medians = {f"{place}_ms": 1e3 * median(values) for place, values in times.items()}
        rows.append(dict(medians, shapes=name, inputs={k: list(v) for k, v in given.items()}))
    return rows
