"""Instruments: what watches a pipeline from outside its passes. Timing, dumps, verification, blame."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from effc.core.artifact import Verdict
from effc.core.check import check_model
from effc.core.errors import EffcError, InvariantError
from effc.core.ir import graphs
from effc.core.measure import Array, Feeds
from effc.core.passinfra import Effect, Pass, PassContext, PassRecord, Pipeline
from effc.core.reference import record_goldens
from effc.core.verify import judge

_IN_ONE_FILE_BYTES = 1 << 30  # protobuf ends at 2 GB

Answers = list[dict[str, Array]]


class Watching:
    """An instrument that does nothing: the base of those that watch one moment only."""

    def before(self, step: Pass, model: ir.Model) -> None: ...

    def after(self, step: Pass, model: ir.Model, record: PassRecord) -> None: ...

    def failed(self, step: Pass, model: ir.Model, error: Exception) -> None: ...


@dataclass(frozen=True, slots=True)
class TimedPass:
    """One run of one pass; a pass in a repeated stretch has several."""

    step: str  # pipeline text
    seconds: float
    rewrites: int
    nodes_before: int  # of the main graph
    nodes_after: int


@dataclass
class Timing(Watching):
    """How long each pass took, what it did, and how the graph shrank. Instruments do not count."""

    rows: list[TimedPass] = field(default_factory=list)
    _nodes: int = 0

    def before(self, step: Pass, model: ir.Model) -> None:
        self._nodes = len(model.graph)

    def after(self, step: Pass, model: ir.Model, record: PassRecord) -> None:
        row = TimedPass(str(step), record.seconds, record.rewrites, self._nodes, len(model.graph))
        self.rows.append(row)

    @property
    def seconds(self) -> float:
        return sum(row.seconds for row in self.rows)


@dataclass
class DumpAfterEach(Watching):
    """Writes the model before the first pass and after each that changed it into `folder`.

    `00-original.onnx`, `01-fold-batch-norm.onnx`, ... with all weights (beside them from 1 GB on),
    and the same as `.txt`, ONNX text without weights, for `diff`.
    """

    folder: Path
    count: int = 0

    def before(self, step: Pass, model: ir.Model) -> None:
        if self.count == 0:
            self._dump(model, "original")

    def after(self, step: Pass, model: ir.Model, record: PassRecord) -> None:
        if record.rewrites:
            self._dump(model, step.id)

    def _dump(self, model: ir.Model, name: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        stem = f"{self.count:02d}-{name.replace('/', '-').replace(':', '-')}"
        write_model(model, self.folder / f"{stem}.onnx")
        text = ir.to_onnx_text(_without_weights(model), exclude_initializers=True)
        (self.folder / f"{stem}.txt").write_text(text, encoding="utf-8")
        self.count += 1


def write_model(model: ir.Model, path: Path) -> None:
    """Write a model with its weights to `path`, from 1 GB on with the weights in `path`.data."""
    tensors = [v.const_value for g in graphs(model) for v in g.initializers.values()]
    size = sum(t.nbytes for t in tensors if t is not None)
    if size >= _IN_ONE_FILE_BYTES:
        ir.save(model, path, external_data=f"{path.name}.data")
    else:
        ir.save(ir.external_data.load_to_model(model.clone()), path)


def _without_weights(model: ir.Model) -> ir.Model:
    """A copy whose larger initializers hold no numbers; ONNX text leaves all of them out anyway."""
    copy = model.clone()
    for graph in graphs(copy):
        for value in graph.initializers.values():
            if graph is copy.graph and value.const_value is not None:
                value.const_value = ir.LazyTensor(
                    lambda: ir.tensor([0.0]),
                    dtype=value.const_value.dtype,
                    shape=ir.Shape([0]),
                    name=value.name,
                )
    return copy


@dataclass
class VerifyEach(Watching):
    """Holds every pass to its promise: the model's answers before and after it, by onnxruntime.

    After each pass that changed something: the structure is checked, the answers are compared with
    those before it under the pass's own effect, and with the original's under the weakest effect so
    far. InvariantError names the pass.
    """

    samples: Sequence[Feeds]
    _untouched: ir.Model | None = None
    _original: Answers | None = None
    _last: Answers | None = None
    _print: int = 0
    _weakest: Effect = Effect.EXACT

    def before(self, step: Pass, model: ir.Model) -> None:
        if self._original is None:
            self._untouched = model.clone()
            self._original = self._last = record_goldens(model, self.samples)
        self._print = fingerprint(model)

    def after(self, step: Pass, model: ir.Model, record: PassRecord) -> None:
        if fingerprint(model) == self._print:
            return
        assert self._original is not None and self._last is not None  # `before` ran
        self._weakest = max(self._weakest, step.effect)
        try:
            check_structure(model)
            now = record_goldens(model, self.samples)
        except EffcError as error:
            raise broken(step, f"leaves a model that does not run: {error}") from error
        for reference, effect, since in (
            (self._last, step.effect, "the model before it"),
            (self._original, self._weakest, "the original"),
        ):
            verdict = judge(reference, now, effect, self._control)
            if verdict.status == "failed":
                raise broken(step, f"breaks its promise against {since}: {verdict.reason}")
        if record.rewrites == 0:
            raise broken(step, "changed the model but says that it made no rewrite")
        self._last = now

    def _control(self) -> Answers:
        assert self._untouched is not None  # `before` ran
        return record_goldens(self._untouched, self.samples, optimize=True)


def broken(step: Pass, reason: str) -> InvariantError:
    """The error for a pass that broke an invariant."""
    return InvariantError(
        f"pass {step} {reason}",
        hint=f"leave it out with --skip {step.id}, and report this",
        pass_id=step.id,
    )


def check_structure(model: ir.Model) -> None:
    """The verifier, lenient where the user was: numbers and domains may be what they are."""
    domains = {n.domain for g in graphs(model) for n in g}
    check_model(model, allow_nonfinite=True, allow_empty=True, allow_domains=domains)


def fingerprint(model: ir.Model) -> int:
    """A number that changes when the graph or a weight's tensor object does; linear in the nodes."""
    parts: list[object] = []
    for graph in graphs(model):
        parts += [id(v) for v in (*graph.inputs, *graph.outputs)]
        parts += [(v.name, id(v.const_value)) for v in graph.initializers.values()]
        for node in graph:
            parts += [node.op_type, *map(id, node.inputs), *map(id, node.outputs)]
            for name, attribute in node.attributes.items():
                if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
                    continue
                parts += [name, id(attribute)]
    return hash(tuple(parts))


@dataclass
class Reproducer(Watching):
    """Where a pass fails, writes what shows it again into `folder`/<pass id>.

    `model.onnx` (the model before the pass), `pipeline.txt` (the pass and its options) and
    `command.txt`. The error's `reproducer` names the folder.
    """

    folder: Path
    command: str = "effc build {model} --target host --verify-each --pipeline {pipeline}"
    _before: ir.Model | None = None

    def before(self, step: Pass, model: ir.Model) -> None:
        self._before = model.clone()  # shares the weights

    def failed(self, step: Pass, model: ir.Model, error: Exception) -> None:
        if self._before is None:
            return
        folder = self.folder / step.id.replace("/", "-").replace(":", "-")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "model.onnx"
        write_model(self._before, path)
        (folder / "pipeline.txt").write_text(f"{step}\n", encoding="utf-8")
        line = self.command.format(model=shlex.quote(str(path)), pipeline=shlex.quote(str(step)))
        (folder / "command.txt").write_text(f"{line}\n", encoding="utf-8")
        setattr(error, "reproducer", str(folder))  # noqa: B010 - any exception can carry it


def first_broken_pass(
    model: ir.Model,
    pipeline: Pipeline,
    samples: Sequence[Feeds],
    context: PassContext | None = None,
) -> Pass | None:
    """The first pass of `pipeline` that fails or breaks its promise on `model`, which is left alone.

    None where all keep it. One run of the pipeline tells which passes do anything. Stretches of
    EXACT passes are judged as one and bisected where they fail, others one by one (a weaker promise
    would hide what an EXACT pass next to it breaks), so few answers are needed.
    """
    context = context or PassContext()
    steps, crashed = _effective_steps(model, pipeline, context)
    good, good_answers = model.clone(), record_goldens(model, samples)
    for stretch in _stretches(steps):
        kept = _keeps(good, stretch, good_answers, samples, context)
        if kept is not None:
            good, good_answers = kept
            continue
        low, high = 0, len(stretch)
        while high - low > 1:
            middle = (low + high) // 2
            kept = _keeps(good, stretch[low:middle], good_answers, samples, context)
            if kept is None:
                high = middle
            else:
                low, (good, good_answers) = middle, kept
        return stretch[high - 1]
    return crashed


def _stretches(steps: Sequence[Pass]) -> list[list[Pass]]:
    """`steps` cut so that EXACT passes in a row stay together and all others stand alone."""
    found: list[list[Pass]] = []
    for step in steps:
        if found and step.effect is Effect.EXACT is found[-1][-1].effect:
            found[-1].append(step)
        else:
            found.append([step])
    return found


class _Recorder(Watching):
    def __init__(self) -> None:
        self.steps: list[Pass] = []
        self.crashed: Pass | None = None

    def after(self, step: Pass, model: ir.Model, record: PassRecord) -> None:
        if record.rewrites:
            self.steps.append(step)

    def failed(self, step: Pass, model: ir.Model, error: Exception) -> None:
        self.crashed = step


def _effective_steps(
    model: ir.Model, pipeline: Pipeline, context: PassContext
) -> tuple[list[Pass], Pass | None]:
    """The passes that rewrite something, in the order of their runs, and the one that raises."""
    recorder = _Recorder()
    try:
        pipeline.run(model.clone(), context, [recorder])
    except EffcError:
        return recorder.steps, recorder.crashed
    return recorder.steps, None


def _keeps(
    good: ir.Model,
    steps: Sequence[Pass],
    before: Answers,
    samples: Sequence[Feeds],
    context: PassContext,
) -> tuple[ir.Model, Answers] | None:
    """The model after `steps` and its answers, if they are within what the steps promise."""
    model = good.clone()
    try:
        for step in steps:
            step.run(model, context)
        now = record_goldens(model, samples)
    except EffcError:
        return None
    effect = max((s.effect for s in steps), default=Effect.EXACT)
    verdict: Verdict = judge(
        before, now, effect, lambda: record_goldens(good, samples, optimize=True)
    )
    return None if verdict.status == "failed" else (model, now)
