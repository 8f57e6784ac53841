"""The adapter for passes written against gs.Graph: nothing is lost on the way there and back."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass

from effc.core.errors import FrontendError, InvariantError, PassError
from effc.core.passinfra import Effect, PassContext, Pipeline
from effc.core.reference import record_goldens
from effc.core.shapes import infer_shapes
from effc.passes.graphsurgeon import GraphSurgeonPass

gs = pytest.importorskip("onnx_graphsurgeon")
TESTDATA = Path(
    os.environ.get("EFFC_TESTDATA", Path(__file__).resolve().parents[3] / "shared/testdata")
)


@dataclass(frozen=True, slots=True)
class Touch(GraphSurgeonPass):
    """Changes nothing and says that it did, so that the graph makes the whole trip."""

    id = "touch"
    effect = Effect.EXACT

    def edit(self, graph: Any, ctx: PassContext) -> int:
        return 1


@dataclass(frozen=True, slots=True)
class DropIdentity(GraphSurgeonPass):
    """y = Identity(x)  ->  y read as x, unless y is an output of the graph."""

    id = "drop-identity"
    effect = Effect.EXACT

    def edit(self, graph: Any, ctx: PassContext) -> int:
        count = 0
        for node in [n for n in graph.nodes if n.op == "Identity"]:
            source, result = node.inputs[0], node.outputs[0]
            if any(result is output for output in graph.outputs):
                continue
            for reader in list(result.outputs):
                reader.inputs = [source if t is result else t for t in reader.inputs]
            count += 1
        return count


@dataclass(frozen=True, slots=True)
class BreakShapes(GraphSurgeonPass):
    id = "break-shapes"
    effect = Effect.EXACT

    def edit(self, graph: Any, ctx: PassContext) -> int:
        conv = next(n for n in graph.nodes if n.op == "Conv")
        conv.attrs["kernel_shape"] = [3]
        return 1


MODEL = """
<ir_version: 10, opset_import: ["": 20]>
net (float[1,3,8,8] x, float[4,3,3,3] w) => (float[1,4,6,6] y, float[1,4,6,6] z)
<float[4,3,3,3] w, float[4] b = {0.5, -1, 2, 0.25}>
{
  [first] i = Identity(x)
  [conv] c = Conv<kernel_shape = [3, 3]>(i, w, b)
  [act] r = Relu(c)
  [last] y = Identity(r)
  z = Abs(c)
}
"""


def model() -> ir.Model:
    proto = onnx.parser.parse_model(MODEL)
    weights = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    loaded = ir.from_proto(proto)
    loaded.metadata_props["author"] = "me"
    loaded.graph.metadata_props["g"] = "of the graph"
    loaded.graph.node(1).metadata_props["source"] = "net.py:7"
    loaded.graph.node(1).doc_string = "the only convolution"
    loaded.graph.node(1).outputs[0].metadata_props["v"] = "of the value"
    infer_shapes(loaded)
    return loaded


def content(proto: onnx.ModelProto) -> Any:
    """All that a model says, in an order and encoding of tensors that don't matter."""

    def tensor(t: onnx.TensorProto) -> Any:
        strings = t.data_type == onnx.TensorProto.STRING
        data = tuple(t.string_data) if strings else onnx.numpy_helper.to_array(t).tobytes()
        return t.data_type, tuple(t.dims), data

    def attribute(a: onnx.AttributeProto) -> Any:
        if a.type == onnx.AttributeProto.TENSOR:
            return a.name, a.type, tensor(a.t)
        if a.type == onnx.AttributeProto.GRAPH:
            return a.name, a.type, graph(a.g)
        return a.name, a.type, a.SerializeToString(deterministic=True)

    def props(entries: Any) -> Any:
        return tuple(sorted((e.key, e.value) for e in entries))

    def node(n: onnx.NodeProto) -> Any:
        return (
            n.op_type, n.domain, n.name, tuple(n.input), tuple(n.output), n.doc_string,
            tuple(sorted(map(attribute, n.attribute))), props(n.metadata_props),
        )  # fmt: skip

    def graph(g: onnx.GraphProto) -> Any:
        return (
            g.name, g.doc_string, props(g.metadata_props), tuple(map(node, g.node)),
            [v.SerializeToString(deterministic=True) for v in (*g.input, *g.output)],
            sorted(v.SerializeToString(deterministic=True) for v in g.value_info),
            sorted((i.name, tensor(i)) for i in g.initializer),
        )  # fmt: skip

    opsets = sorted((o.domain, o.version) for o in proto.opset_import)
    return (
        graph(proto.graph),
        opsets,
        props(proto.metadata_props),
        proto.ir_version,
        proto.producer_name,
    )


def without_dead_parts(loaded: ir.Model) -> ir.Model:
    RemoveUnusedNodesPass()(loaded)
    for value in [v for v in loaded.graph.inputs if v.name in loaded.graph.initializers]:
        if not value.uses():  # a default that nothing reads
            loaded.graph.inputs.remove(value)
            del loaded.graph.initializers[value.name]
    infer_shapes(loaded)
    return loaded


def test_nothing_is_lost() -> None:
    loaded = model()
    before = content(ir.to_proto(loaded))
    Touch().run(loaded, PassContext())
    assert content(ir.to_proto(loaded)) == before


@pytest.mark.parametrize(
    "name", ["mobilenet_v1_0.75", "nanodet_m", "face_rfb320", "mlperf_tiny_kws_dq"]
)
def test_nothing_is_lost_of_real_models(name: str) -> None:
    path = TESTDATA / "models" / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"no test data: {path.name}")
    loaded = without_dead_parts(ir.load(path))
    before = content(ir.to_proto(loaded))
    Touch().run(loaded, PassContext())
    assert content(ir.to_proto(loaded)) == before


def test_nothing_is_lost_of_the_onnx_node_cases() -> None:
    """Of 1,884 cases all but those with sequences, optionals and attributes that gs has no place for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        cases = collect_testcases(None)
    lossless, refused = 0, []
    for case in cases:
        loaded = ir.from_proto(case.model)
        try:
            without_dead_parts(loaded)
        except FrontendError:  # a case that the ONNX schemas themselves reject
            continue
        before = content(ir.to_proto(loaded))
        try:
            Touch().run(loaded, PassContext())
        except PassError as error:
            assert "can't hold" in str(error), case.name
            refused.append(case.name)
            continue
        assert content(ir.to_proto(loaded)) == before, case.name
        lossless += 1
    print(f"{lossless} lossless, {len(refused)} refused")
    assert lossless >= 1800
    assert [n for n in refused if "seq" not in n and "opt" not in n] == []


def test_an_edit_keeps_the_answers() -> None:
    loaded = model()
    feeds = {"x": np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype(np.float32)}
    before = record_goldens(loaded, [feeds])
    records = Pipeline((DropIdentity(),)).run(loaded, PassContext())
    assert records[0].rewrites == 1
    assert [n.op_type for n in loaded.graph] == ["Conv", "Relu", "Identity", "Abs"]
    after = record_goldens(loaded, [feeds])
    for name, golden in before[0].items():
        np.testing.assert_array_equal(after[0][name], golden)
    conv = loaded.graph.node(0)
    assert conv.metadata_props["source"] == "net.py:7"
    assert [v.name for v in loaded.graph.inputs] == ["x", "w"]  # w can still be overridden


def test_no_rewrites_leave_the_model_object_alone() -> None:
    loaded = model()
    Pipeline((DropIdentity(), DropIdentity())).run(loaded, PassContext())
    graph = loaded.graph
    assert DropIdentity().run(loaded, PassContext()) == 0
    assert loaded.graph is graph


def test_an_invalid_result_names_the_pass() -> None:
    with pytest.raises(InvariantError, match="break-shapes left a graph"):
        Pipeline((BreakShapes(),)).run(model(), PassContext())


def test_what_gs_would_drop_is_refused_with_its_node() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> g (float[2] x) => (float[2] y)'
        " { [o] n = Optional<type = float[2]>() [y] y = Identity(x) }"
    )
    with pytest.raises(PassError, match="'o'") as caught:
        Touch().run(ir.from_proto(proto), PassContext())
    assert "TYPE_PROTO" in str(caught.value)


def test_nothing_of_it_reaches_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    """graphsurgeon warns about equal names on stdout, where effc promises one JSON document."""
    loaded = model()
    for node in loaded.graph:
        node.name = "same"
    Touch().run(loaded, PassContext())
    assert capsys.readouterr().out == ""
