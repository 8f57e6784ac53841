from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from effc.core.errors import InvariantError, PassError
from effc.core.instruments import (
    DumpAfterEach,
    Reproducer,
    Timing,
    VerifyEach,
    first_broken_pass,
)
from effc.core.passinfra import Effect, Pass, PassContext, Pipeline
from effc.core.reference import OnnxRuntimeRunner, random_feeds

TEXT = """
<ir_version: 10, opset_import: ["": 20]>
g (float[2,3] x) => (float[2,3] y) {
  a = Relu(x) b = Add(a, k) c = Identity(b) d = Mul(c, k) e = Identity(d) y = Neg(e)
}
"""


@pytest.fixture
def model() -> ir.Model:
    proto = onnx.parser.parse_model(TEXT)
    proto.graph.initializer.append(
        onnx.numpy_helper.from_array(np.array([1, 2, 3], np.float32), "k")
    )
    return ir.from_proto(proto)


@dataclass(frozen=True)
class DropIdentity(Pass):
    """Identity(x) -> x, one a run."""

    id: ClassVar[str] = "drop-identity"
    effect: ClassVar[Effect] = Effect.EXACT

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        for node in model.graph:
            if node.op_type == "Identity":
                ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[0])
                model.graph.remove(node, safe=True)
                return 1
        return 0


@dataclass(frozen=True)
class Nothing(Pass):
    """Changes nothing."""

    id: ClassVar[str] = "nothing"
    effect: ClassVar[Effect] = Effect.EXACT

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        return 0


@dataclass(frozen=True)
class Wrong(Pass):
    """Relu(x) -> Abs(x), which it calls exact."""

    id: ClassVar[str] = "wrong"
    effect: ClassVar[Effect] = Effect.EXACT

    honest: bool = True
    op: str = "Abs"

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        for node in model.graph:
            if node.op_type == "Relu":
                node.op_type = self.op
                return int(self.honest)
        return 0


@dataclass(frozen=True)
class Touch(Pass):
    """Says that it rewrote something."""

    id: ClassVar[str] = "touch"
    effect: ClassVar[Effect] = Effect.EXACT

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        return 1


@dataclass(frozen=True)
class Round(Pass):
    """Scales the constant a little, as a rounding pass may."""

    id: ClassVar[str] = "round"
    effect: ClassVar[Effect] = Effect.ROUNDED

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        value = model.graph.initializers["k"]
        value.const_value = ir.tensor(value.const_value.numpy() * np.float32(1.01), name="k")
        return 1


@dataclass(frozen=True)
class Crash(Pass):
    """Raises."""

    id: ClassVar[str] = "crash"
    effect: ClassVar[Effect] = Effect.EXACT

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        model.graph[0].op_type = "Tanh"
        raise KeyError("weights")


def test_timing(model):
    timing = Timing()
    Pipeline((DropIdentity(), Nothing())).run(model, PassContext(), [timing])
    assert [(r.step, r.rewrites, r.nodes_before, r.nodes_after) for r in timing.rows] == [
        ("drop-identity", 1, 6, 5),
        ("nothing", 0, 5, 5),
    ]
    assert timing.seconds == sum(r.seconds for r in timing.rows)


def test_dump_after_each(model, tmp_path):
    feeds = random_feeds(model, 1)[0]
    with OnnxRuntimeRunner(model) as runner:
        golden = runner.infer(feeds)["y"]
    steps = (DropIdentity(), Nothing(), DropIdentity())
    Pipeline(steps).run(model, PassContext(), [DumpAfterEach(tmp_path / "d")])
    names = sorted(p.name for p in (tmp_path / "d").iterdir())
    stems = ["00-original", "01-drop-identity", "02-drop-identity"]
    assert names == sorted(f"{s}.{e}" for s in stems for e in ("onnx", "txt"))
    for stem, identities in zip(stems, (2, 1, 0), strict=True):
        text = (tmp_path / "d" / f"{stem}.txt").read_text()
        assert text.count("Identity") == identities
        with OnnxRuntimeRunner(tmp_path / "d" / f"{stem}.onnx") as runner:
            np.testing.assert_array_equal(runner.infer(feeds)["y"], golden)
    assert model.graph.initializers["k"].const_value.numpy().tolist() == [1, 2, 3]


def test_verify_each_accepts_what_keeps_its_promise(model):
    steps = (DropIdentity(), Nothing(), Round(), DropIdentity())
    records = Pipeline(steps).run(model, PassContext(), [VerifyEach(random_feeds(model, 2))])
    assert [r.rewrites for r in records] == [1, 0, 1, 1]


@pytest.mark.parametrize("before", [(), (DropIdentity(),), (Round(), DropIdentity())])
def test_verify_each_names_the_wrong_pass(model, before):
    pipeline = Pipeline((*before, Wrong(), DropIdentity()))
    with pytest.raises(InvariantError, match="pass wrong breaks its promise") as caught:
        pipeline.run(model, PassContext(), [VerifyEach(random_feeds(model, 2))])
    assert caught.value.pass_id == "wrong" and "--skip wrong" in caught.value.hint


def test_verify_each_catches_a_silent_change(model):
    with pytest.raises(InvariantError, match="wrong"):
        Pipeline((Wrong(honest=False),)).run(
            model, PassContext(), [VerifyEach(random_feeds(model, 2))]
        )


def test_verify_each_catches_an_invalid_graph(model):
    with pytest.raises(InvariantError, match="does not run.*NoSuchOperator"):
        Pipeline((Wrong(op="NoSuchOperator"),)).run(
            model, PassContext(), [VerifyEach(random_feeds(model, 2))]
        )


@pytest.mark.parametrize("at", range(7))
def test_first_broken_pass(model, at):
    steps: list[Pass] = [Nothing(), DropIdentity(), Nothing(), Round(), DropIdentity(), Nothing()]
    steps.insert(at, Wrong())
    text = ir.to_onnx_text(model)
    found = first_broken_pass(model, Pipeline(tuple(steps)), random_feeds(model, 2))
    assert found == Wrong()
    assert ir.to_onnx_text(model) == text


def test_first_broken_pass_takes_few_runs(model, monkeypatch):
    from effc.core import instruments

    runs = []
    real = instruments.record_goldens
    monkeypatch.setattr(
        instruments, "record_goldens", lambda *a, **k: (runs.append(k), real(*a, **k))[1]
    )
    steps: list[Pass] = [Touch()] * 30
    steps.insert(13, Wrong())
    assert first_broken_pass(model, Pipeline(tuple(steps)), random_feeds(model, 1)) == Wrong()
    assert len([k for k in runs if not k.get("optimize")]) <= 8  # others: controls of failures


def test_first_broken_pass_when_none_is(model):
    pipeline = Pipeline((DropIdentity(), Round()))
    assert first_broken_pass(model, pipeline, random_feeds(model, 2)) is None
    assert first_broken_pass(model, Pipeline(), random_feeds(model, 2)) is None


def test_first_broken_pass_that_raises(model):
    pipeline = Pipeline((DropIdentity(), Crash()))
    assert first_broken_pass(model, pipeline, random_feeds(model, 1)) == Crash()


def test_reproducer(model, tmp_path):
    watch = [Reproducer(tmp_path / "repro")]
    with pytest.raises(PassError, match="KeyError") as caught:
        Pipeline((DropIdentity(), Crash())).run(model, PassContext(), watch)
    folder = tmp_path / "repro" / "crash"
    assert caught.value.reproducer == str(folder)
    assert (folder / "pipeline.txt").read_text() == "crash\n"
    assert str(folder / "model.onnx") in (folder / "command.txt").read_text()
    again = ir.load(folder / "model.onnx")
    assert [n.op_type for n in again.graph] == ["Relu", "Add", "Mul", "Identity", "Neg"]
    with pytest.raises(PassError, match="KeyError"):
        Pipeline((Crash(),)).run(again, PassContext())


def test_reproducer_of_a_broken_promise(model, tmp_path):
    watch = [VerifyEach(random_feeds(model, 2)), Reproducer(tmp_path)]
    with pytest.raises(InvariantError) as caught:
        Pipeline((DropIdentity(), Wrong())).run(model, PassContext(), watch)
    assert caught.value.reproducer == str(tmp_path / "wrong")
