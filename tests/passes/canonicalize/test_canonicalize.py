"""The whole pipeline: on random graphs and on real models it keeps the numbers and is idempotent."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from effc import passes
from effc.core.ir import add_const
from effc.core.passinfra import Effect, PassContext
from effc.core.reference import OnnxRuntimeRunner, random_feeds, record_goldens
from effc.core.shapes import infer_shapes
from effc.core.verify import judge

TESTDATA = Path(os.environ.get("EFFC_TESTDATA", Path(__file__).parents[4] / "shared/testdata"))
MODELS = sorted((TESTDATA / "models").glob("*.onnx"))
FLOAT = ir.TensorType(ir.DataType.FLOAT)
Pair = tuple[ir.Value, np.ndarray]


class Sketch:
    """Draws a graph node by node, computing every value with numpy to know its shape."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
        x = ir.Value(name="x", shape=ir.Shape(shape), type=FLOAT)
        self.graph = ir.Graph([x], [], nodes=[], opset_imports={"": 23}, name="sketch")
        self.rng = np.random.default_rng(draw(st.integers(0, 99)))
        self.pool: list[Pair] = [(x, np.zeros(shape, np.float32))]

    def node(
        self, op: str, inputs: list[ir.Value | None], like: np.ndarray, **attrs: object
    ) -> Pair:
        node = ir.node(op, inputs, attrs)
        self.graph.append(node)
        return node.outputs[0], like

    def ints(self, *numbers: int) -> ir.Value:
        array = np.array(numbers, np.int64)
        if self.draw(st.booleans()):
            return add_const(self.graph, "k", array)
        return self.node("Constant", [], array, value=ir.Tensor(array))[0]

    def pick(self) -> Pair:
        # mostly the newest, so that chains grow
        index = self.draw(st.sampled_from([-1, -1, -1, -2, -3, 0]))
        return self.pool[max(index, -len(self.pool))]

    def unary(self) -> Pair:
        v, a = self.pick()
        op = self.draw(
            st.sampled_from(["Relu", "Neg", "Abs", "Tanh", "Identity", "Floor", "Dropout"])
        )
        return self.node(op, [v], a)

    def cast(self) -> Pair:
        v, a = self.pick()
        wide, _ = self.node("Cast", [v], a, to=self.draw(st.sampled_from([1, 11])))
        return self.node("Cast", [wide], a, to=1)

    def binary(self) -> Pair:
        v, a = self.pick()
        op = self.draw(st.sampled_from(["Add", "Mul", "Sub", "Max"]))
        kind = self.draw(st.sampled_from(["other", "neutral", "channel", "full", "expand"]))
        if kind == "other":
            for w, b in reversed(self.pool):
                try:
                    like = np.broadcast_to(a, np.broadcast_shapes(a.shape, b.shape))
                except ValueError:
                    continue
                if like.size <= 1024:
                    return self.node(op, [v, w], like)
        if kind == "neutral":
            return self.node(op, [v, add_const(self.graph, "n", np.float32(op == "Mul"))], a)
        shape = [d if kind == "full" or i == 1 else 1 for i, d in enumerate(a.shape)]
        w = add_const(self.graph, "w", self.rng.standard_normal(shape).astype(np.float32))
        if kind == "expand":
            w = self.node("Expand", [w, self.ints(*a.shape)], a)[0]
        elif self.draw(st.booleans()):
            w = self.node("Neg", [w], a)[0]
        return self.node(op, [w, v] if self.draw(st.booleans()) else [v, w], a)

    def transpose(self) -> Pair:
        v, a = self.pick()
        perm = self.draw(st.permutations(range(a.ndim)))
        w, b = self.node("Transpose", [v], a.transpose(perm), perm=perm)
        if self.draw(st.booleans()):
            w, b = self.node("Relu", [w], b)
            back = [int(i) for i in np.argsort(perm)]
            return self.node("Transpose", [w], b.transpose(back), perm=back)
        return w, b

    def reshape(self) -> Pair:
        v, a = self.pick()
        how = self.draw(
            st.sampled_from(["flat", "flatten", "unsqueeze", "squeeze", "shape", "swap"])
        )
        if how == "flatten":
            axis = self.draw(st.integers(-a.ndim, a.ndim)) if a.ndim else 0
            cut = axis % a.ndim if axis < 0 else axis
            rows = int(np.prod(a.shape[:cut], dtype=np.int64))
            return self.node("Flatten", [v], a.reshape(rows, -1), axis=axis)
        if how == "unsqueeze" and a.ndim < 5:
            return self.node("Unsqueeze", [v, self.ints(0)], a[None])
        if how == "squeeze" and 1 in a.shape:
            axis = a.shape.index(1)
            return self.node("Squeeze", [v, self.ints(axis)], a.squeeze(axis))
        if how == "shape":  # as exporters flatten: the batch from Shape, the rest inferred
            if a.ndim == 0:
                return v, a
            shape, _ = self.node("Shape", [v], a)
            batch, _ = self.node("Gather", [shape, self.ints(0)], a, axis=0)
            target, _ = self.node("Concat", [batch, self.ints(-1)], a, axis=0)
            return self.node("Reshape", [v, target], a.reshape(a.shape[0], -1))
        if how == "swap":
            return self.node("Reshape", [v, self.ints(*a.shape[::-1])], a.reshape(a.shape[::-1]))
        return self.node("Reshape", [v, self.ints(-1)], a.reshape(-1))

    def join(self) -> Pair:
        v, a = self.pick()
        if a.ndim == 0 or a.size > 256:
            return v, a
        axis = self.draw(st.integers(-a.ndim, a.ndim - 1))
        return self.node("Concat", [v, v], np.concatenate([a, a], axis), axis=axis)

    def softmax(self) -> Pair:
        v, a = self.pick()
        if a.ndim == 0:
            return v, a
        return self.node("Softmax", [v], a, axis=self.draw(st.integers(-a.ndim, a.ndim - 1)))

    def choice(self) -> Pair:
        v, a = self.pick()
        producer = v.producer()
        if producer is not None and producer.op_type == "Cast":
            return v, a  # onnxruntime removes casts without looking who reads them in a branch
        branches = {}
        for name in ("then_branch", "else_branch"):
            node = ir.node(self.draw(st.sampled_from(["Relu", "Identity", "Neg"])), [v])
            node.name = node.outputs[0].name = f"{name}_{len(self.graph)}"
            branches[name] = ir.Graph([], node.outputs, nodes=[node], name=name)
        condition = add_const(self.graph, "c", np.array(self.draw(st.booleans())))
        return self.node("If", [condition], a, **branches)

    def model(self) -> ir.Model:
        steps = (self.unary, self.cast, self.binary, self.transpose, self.reshape, self.join,
                 self.softmax, self.choice)  # fmt: skip
        for _ in range(self.draw(st.integers(1, 14))):
            pair = self.draw(st.sampled_from(steps))()
            self.pool.append(pair)
        made = [v for v, _ in self.pool if v.producer() is not None]
        if not made:
            made = [self.node("Identity", [self.pool[0][0]], self.pool[0][1])[0]]
        outputs = dict.fromkeys([made[-1], made[self.draw(st.integers(0, len(made) - 1))]])
        for i, value in enumerate(outputs):
            value.name = f"y{i}"
            value.type = FLOAT
            self.graph.outputs.append(value)
        return ir.Model(self.graph, ir_version=10)


@st.composite
def models(draw: st.DrawFn) -> ir.Model:
    return Sketch(draw).model()


def check(model: ir.Model, pipeline: str, tolerance: float = 1e-5) -> None:
    infer_shapes(model)
    feeds = random_feeds(model, 1)
    goldens = record_goldens(model, feeds)
    passes.parse(pipeline).run(model, PassContext())
    with OnnxRuntimeRunner(model, optimize=False) as runner:
        answers = [runner.infer(f) for f in feeds]
    for golden, answer in zip(goldens, answers, strict=True):
        assert list(golden) == list(answer)
        for name in golden:
            np.testing.assert_allclose(answer[name], golden[name], rtol=tolerance, atol=1e-6)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(models())
def test_random_graphs(model: ir.Model) -> None:
    check(model, passes.CANONICALIZE)
    once = ir.to_proto(model).SerializeToString()
    records = passes.parse(passes.CANONICALIZE).run(model, PassContext())
    assert not [r for r in records if r.rewrites]
    assert ir.to_proto(model).SerializeToString() == once


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(models(), st.permutations(passes.CANONICALIZE.removesuffix(",repeat").split(",")))
def test_passes_in_any_order(model: ir.Model, order: list[str]) -> None:
    check(model, ",".join(order))


@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.stem)
def test_real_models(path: Path) -> None:
    model = ir.load(path)
    infer_shapes(model)
    feeds = random_feeds(model, 1)
    goldens = record_goldens(model, feeds)
    before = len(model.graph)
    pipeline = passes.parse(passes.CANONICALIZE)
    pipeline.run(model, PassContext())
    with OnnxRuntimeRunner(model, optimize=False) as runner:
        answers = [runner.infer(f) for f in feeds]
    assert judge(goldens, answers, Effect.EXACT).status == "passed"
    assert len(model.graph) <= before
    left = {n.op_type for n in model.graph}
    assert not left & {
        "Constant",
        "Shape",
        "Identity",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Dropout",
    }
    once = ir.to_proto(model).SerializeToString()
    assert not [r for r in pipeline.run(model, PassContext()) if r.rewrites]
    assert ir.to_proto(model).SerializeToString() == once


def test_real_models_are_there() -> None:
    if not MODELS:
        pytest.skip(f"no models below {TESTDATA}: set EFFC_TESTDATA")
    assert len(MODELS) >= 10


def test_the_same_model_gives_the_same_bytes() -> None:
    text = """<ir_version: 8, opset_import: ["": 11]> g (float[2,3,4] x) => (float[a,b] y) {
      a = Constant<value_float = 2.0>() b = Mul(x, a) c = Mul(x, a) d = Add(b, c)
      y = Flatten<axis = 1>(d) }"""
    found = set()
    for _ in range(3):
        model = ir.from_onnx_text(text.replace('"": 11', '"": 12'))
        passes.parse(passes.CANONICALIZE).run(model, PassContext())
        found.add(ir.to_proto(model).SerializeToString())
    assert len(found) == 1
