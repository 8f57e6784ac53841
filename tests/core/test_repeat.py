from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from effc import passes
from effc.core.passinfra import Effect, Pass, PassContext, Pipeline, Repeat


@dataclass(frozen=True)
class Shorten(Pass):
    """Takes one letter off the graph's name until `left` are left."""

    id: ClassVar[str] = "shorten"
    effect: ClassVar[Effect] = Effect.EXACT

    left: int = 0

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        name = model.graph.name or ""
        if len(name) <= self.left:
            return 0
        model.graph.name = name[:-1]
        return 1


def model(name: str) -> ir.Model:
    return ir.Model(ir.Graph([], [], nodes=[], name=name), ir_version=10)


def test_rounds_until_nothing_changes() -> None:
    m = model("abcdef")
    records = Pipeline((Shorten(2), Repeat())).run(m, PassContext())
    assert m.graph.name == "ab"
    assert [(r.id, r.rewrites) for r in records] == [("shorten", 4), ("repeat", 0)]


def test_the_limit_bounds_the_rounds() -> None:
    m = model("abcdefghijklmnop")
    Pipeline((Shorten(), Repeat(limit=3))).run(m, PassContext())
    assert m.graph.name == "abcdefghijklm"


def test_a_second_mark_goes_back_to_the_first() -> None:
    m = model("abcdefghijklmn")
    steps = (Shorten(10), Repeat(), Shorten(8), Shorten(6), Repeat(), Shorten())
    records = Pipeline(steps).run(m, PassContext())
    assert m.graph.name == "abcde"
    assert [r.rewrites for r in records] == [4, 0, 1, 3, 0, 1]


def test_text_round_trips_and_canonicalize_ends_with_it() -> None:
    pipeline = passes.parse(passes.CANONICALIZE)
    assert pipeline.passes[-1] == Repeat()
    assert passes.parse(str(pipeline)) == pipeline
    assert str(Repeat(limit=3)) == "repeat{limit=3}"
