"""Pipeline text round-trips, options are typed, a failing pass is named."""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from effc.core.errors import ConfigError, PassError
from effc.core.passinfra import Effect, Pass, PassContext, PassRecord, Pipeline, make_pass


@dataclass(frozen=True)
class Shrink(Pass):
    id: ClassVar[str] = "shrink"
    effect: ClassVar[Effect] = Effect.LOSSY
    bits: int = 8
    ratio: float = 0.5
    symmetric: bool = True
    method: str = "minmax"
    keep_nodes: tuple[str, ...] = ()

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        return self.bits


@dataclass(frozen=True)
class Break(Pass):
    id: ClassVar[str] = "break"
    effect: ClassVar[Effect] = Effect.EXACT

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        raise ZeroDivisionError("no such thing")


def lookup(name: str) -> type[Pass]:
    return {"shrink": Shrink, "break": Break}[name]


def empty_model() -> ir.Model:
    return ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 20}, name="g"), ir_version=10)


names = st.text(string.ascii_lowercase + string.digits + "_/.", min_size=1, max_size=8)


@given(
    st.lists(
        st.builds(
            Shrink,
            bits=st.integers(-64, 64),
            ratio=st.floats(allow_nan=False, allow_infinity=False),
            symmetric=st.booleans(),
            method=names,
            keep_nodes=st.lists(names, max_size=3).map(tuple),
        ),
        max_size=4,
    )
)
def test_text_round_trips(passes: list[Shrink]) -> None:
    pipeline = Pipeline(tuple(passes))
    assert Pipeline.parse(str(pipeline), lookup) == pipeline


def test_text_leaves_defaults_out() -> None:
    assert str(Pipeline((Shrink(), Shrink(bits=4, keep_nodes=("a", "b"))))) == (
        "shrink,shrink{bits=4,keep-nodes=a+b}"
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("shrink{bits=four}", "shrink.bits='four'"),
        ("shrink{colour=red}", "no option 'colour'"),
        ("shrink{bits=4", "never closed"),
        ("shrink{bits}", "has no value"),
        ("shrink;break", "expected a pass name"),
        ("shrink{symmetric=perhaps}", "shrink.symmetric"),
    ],
)
def test_wrong_text_is_refused_with_its_place(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Pipeline.parse(text, lookup)


def test_run_records_options_effect_and_rewrites() -> None:
    (record,) = Pipeline((Shrink(bits=4),)).run(empty_model(), PassContext())
    assert (record.id, record.options, record.effect, record.rewrites) == (
        "shrink",
        "bits=4",
        "LOSSY",
        4,
    )
    assert record.seconds >= 0


def test_the_weakest_promise_counts() -> None:
    assert Pipeline((Break(),)).effect is Effect.EXACT
    assert Pipeline((Break(), Shrink())).effect is Effect.LOSSY


def test_a_failing_pass_is_named_and_instruments_see_it() -> None:
    seen: list[str] = []

    class Watch:
        def before(self, step: Pass, model: ir.Model) -> None:
            seen.append(f"before {step.id}")

        def after(self, step: Pass, model: ir.Model, record: PassRecord) -> None:
            seen.append(f"after {step.id}")

        def failed(self, step: Pass, model: ir.Model, error: Exception) -> None:
            seen.append(f"failed {step.id} {type(error).__name__}")

    with pytest.raises(PassError, match="pass break failed: ZeroDivisionError") as caught:
        Pipeline((Shrink(), Break())).run(empty_model(), PassContext(), [Watch()])
    assert caught.value.pass_id == "break"
    assert "--skip break" in caught.value.hint
    assert seen == [
        "before shrink",
        "after shrink",
        "before break",
        "failed break ZeroDivisionError",
    ]


class Plain(Pass):
    """No dataclass, so without options."""

    id = "plain"
    effect = Effect.EXACT

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        return None  # type: ignore[return-value]


class Nameless(Pass):
    def run(self, model: ir.Model, ctx: PassContext) -> int:
        return 0


class Idle(Pass):
    id = "idle"
    effect = Effect.EXACT


def test_what_users_forget() -> None:
    step = make_pass(Plain, {})
    assert str(step) == "plain"
    with pytest.raises(ConfigError, match="no option 'bits'"):
        make_pass(Plain, {"bits": "8"})
    with pytest.raises(PassError, match="returned None, not the number of rewrites"):
        Pipeline((step,)).run(empty_model(), PassContext())
    with pytest.raises(ConfigError, match="Nameless has no id"):
        make_pass(Nameless, {})
    with pytest.raises(ConfigError, match="idle can't be made: .*run"):
        make_pass(Idle, {})


@dataclass(frozen=True)
class _Named(Pass):
    """Keeps names."""

    id = "named"
    effect = Effect.EXACT

    names: tuple[str, ...] = ()
    one: str = ""

    def run(self, model: ir.Model, ctx: PassContext) -> int:
        return 0


@given(st.lists(st.text(min_size=1), max_size=3), st.text(min_size=1))
def test_any_name_survives_pipeline_text(names: list[str], one: str) -> None:
    before = Pipeline((_Named(tuple(names), one), _Named()))
    assert Pipeline.parse(str(before), lambda _: _Named) == before
