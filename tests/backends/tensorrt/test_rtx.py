"""Engines of TensorRT for RTX, built here by the pinned version: precisions, shapes, reports, limits."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import onnx_ir as ir
import pytest

pytest.importorskip("tensorrt_rtx")

from effc.artifacts import load_artifact  # noqa: E402
from effc.backends.tensorrt.backend import TensorRTBackend  # noqa: E402
from effc.backends.tensorrt.engine import ENGINE, Engine  # noqa: E402
from effc.backends.tensorrt.operators import (  # noqa: E402
    ONLY_FULL,
    ONLY_RTX,
    UNSUPPORTED,
)
from effc.backends.tensorrt.sandbox import run_build  # noqa: E402
from effc.build import build  # noqa: E402
from effc.choices import BuildOptions  # noqa: E402
from effc.core.errors import (  # noqa: E402
    BackendUnavailable,
    ConfigError,
    DeviceError,
    LoweringError,
    UnsupportedOpError,
)
from effc.core.target import Target  # noqa: E402
from effc.finish import finish  # noqa: E402
from effc.report.terminal import _details as report_details  # noqa: E402

Card = Callable[..., Target]
RTX = TensorRTBackend()


def built(model: ir.Model, target: Target, out: Path) -> Engine:
    engine = RTX.lower(model, target)
    assert isinstance(engine, Engine)
    files = RTX.compile(engine, target, out)
    assert files["engine"].read_bytes()[:4] != b"" and files["engine"].stat().st_size > 1000
    return engine


def test_the_pinned_version_is_the_one_that_these_tests_know() -> None:
    assert version("tensorrt_rtx_cu13").startswith("1.7.1.")


@pytest.mark.parametrize(
    ("name", "argument", "sm", "kind", "dtype"),
    [
        ("conv", onnx.TensorProto.FLOAT, 75, "correlation", "Float"),
        ("conv", onnx.TensorProto.FLOAT16, 86, "correlation", "Half"),
        ("conv", onnx.TensorProto.BFLOAT16, 120, "runtime_fusion", "BFloat16"),
        ("fp8", "Conv", 89, "correlation", "FP8"),
        ("fp8", "MatMul", 120, "gemm", "FP8"),
        ("int4", 0, 80, "runtime_fusion", "Int4"),
    ],
)
def test_every_precision_computes_in_its_type(
    graphs: ModuleType, card: Card, tmp_path: Path, name: str, argument: Any, sm: int, kind: str,
    dtype: str,
) -> None:  # fmt: skip
    engine = built(getattr(graphs, name)(argument), card(sm), tmp_path)
    (layer,) = [x for x in engine.fusion.layers if x.type == kind]
    ports = layer.inputs + layer.constants
    assert dtype in {p.dtype for p in ports}
    assert {p.dtype for p in ports} <= {dtype, "Float", "Half"}


def test_the_report_names_nodes_formats_and_what_was_fused(
    graphs: ModuleType, card: Card, tmp_path: Path
) -> None:
    engine = built(graphs.conv(onnx.TensorProto.FLOAT16), card(86), tmp_path)
    document = json.loads((tmp_path / "fusion.json").read_text())
    assert document["tensorrt"] == version("tensorrt_rtx_cu13")
    (conv,) = [x for x in engine.fusion.layers if "the_conv" in x.nodes and x.type == "correlation"]
    assert conv.nodes == ("the_conv", "the_relu") and conv.outputs[0].shape == (1, 16, 16, 16)
    assert "NHWC" in conv.outputs[0].format
    summary = RTX.describe(engine)["fusion"]
    assert summary["nodes"] == 3 and not summary["folded"]
    assert ["the_conv", "the_relu"] in summary["fused"]


def test_control_flow_is_compiled(graphs: ModuleType, card: Card, tmp_path: Path) -> None:
    engine = built(graphs.branches(), card(86), tmp_path)
    assert {"in_then", "in_else"} <= {n for x in engine.fusion.layers for n in x.nodes}
    engine = built(graphs.loop(), card(86), tmp_path)
    assert any("doubles" in x.nodes for x in engine.fusion.layers)


def test_a_profile_opens_dynamic_dimensions(graphs: ModuleType, card: Card, tmp_path: Path) -> None:
    target = card(86, profile="x=1x8x16x16:4x8x16x16:8x8x16x16")
    engine = built(graphs.dynamic(), target, tmp_path)
    assert RTX.describe(engine)["profiles"] == {
        "x": [[1, 8, 16, 16], [4, 8, 16, 16], [8, 8, 16, 16]]
    }
    for wrong, words in (
        ("z=1x8x16x16:4x8x16x16:8x8x16x16", "no input of the model"),
        ("x=1x4x16x16:4x4x16x16:8x4x16x16", "fixes 'x'"),
        ("x=1x16:4x16:8x16", "fixes 'x'"),
    ):
        with pytest.raises(ConfigError, match=words):
            RTX.lower(graphs.dynamic(), card(86, profile=wrong))


def bad(graphs: ModuleType, name: str) -> tuple[ir.Model, dict[str, str]]:
    """A graph that TensorRT can't take and the options under which it can't."""
    if name == "workspace":
        return graphs.conv(), {"workspace": "16"}
    made = {
        "asymmetric": lambda: graphs.int8(zero=3),
        "int32 bias": lambda: graphs.int8(bias=True),
        "weight axis": lambda: graphs.int8(axis=1),
    }.get(name) or getattr(graphs, name)
    return made(), {}


@pytest.mark.parametrize(
    ("name", "sm", "node", "reason"),
    [
        ("bad_group", 86, "the_conv", "group"),
        ("unknown", 86, "the_frobnicate", "no such operator"),
        ("dangling", 86, "the_relu", "nothing makes"),
        ("asymmetric", 86, "the_quantizelinear", "symmetrically"),
        ("int32 bias", 86, "the_conv", "no quantized bias"),
        ("custom", 86, "the_foo", "'com.acme' is not standard"),
        ("col2im", 86, "the_col2im", "no Col2Im"),
        ("fp8", 86, "the_quantizelinear", "SM86 does not compute FLOAT8E4M3FN"),
        ("gemm", 75, "the_gemm", "no float32 matrix product on SM75"),
        ("dynamic", 86, "the_conv", "dynamic shape"),
        ("weight axis", 86, "the_conv", "along axis 1"),
        ("workspace", 86, "the_conv", "no kernel fits the workspace"),
    ],
)
def test_what_can_not_be_taken_is_one_located_line(
    graphs: ModuleType, card: Card, tmp_path: Path, name: str, sm: int, node: str, reason: str
) -> None:
    model, options = bad(graphs, name)
    with pytest.raises(LoweringError) as caught:
        built(model, card(sm, **options), tmp_path)
    text = str(caught.value)
    assert f"'{node}'" in text and reason in text and f"card-{sm}" in text
    assert caught.value.hint and "\n" not in text and "Error Code" not in text
    if isinstance(caught.value, UnsupportedOpError):
        assert caught.value.problems[0].remedy


def test_the_parser_alone_locates_them_too(
    graphs: ModuleType, card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What effc's own rules would miss: TensorRT's words become the same kind of line."""
    monkeypatch.setattr("effc.backends.tensorrt.engine.static_problems", lambda *_: [])
    for name, node, reason in (
        ("unknown", "the_frobnicate", "no such operator"),
        ("custom", "the_foo", "no plugin"),
        ("col2im", "the_col2im", "does not take"),
        ("asymmetric", "the_quantizelinear", "symmetrically"),
        ("int32 bias", "the_bias", "no quantized bias"),
    ):
        problems = RTX.check(bad(graphs, name)[0], card(86))
        assert (problems[0].node, reason in problems[0].reason) == (node, True), problems
    for name, sm, reason in (
        ("fp8", 86, "FP8"), ("gemm", 75, "float32 matrix"), ("nms", 86, "no kernel for it"),
    ):  # fmt: skip
        with pytest.raises(LoweringError, match=reason):
            built(bad(graphs, name)[0], card(sm), tmp_path)


def test_every_unsupported_node_is_listed_at_once(graphs: ModuleType, card: Card) -> None:
    model = graphs.model(
        [
            graphs.node("Unique", ["x"], ["u"]),
            graphs.node("Foo", ["u"], ["f"], domain="com.acme"),
            graphs.node("Relu", ["f"], ["r"]),
            graphs.node("NonZero", ["r"], ["n"]),
            graphs.node("Det", ["x"], ["y"]),
        ],
        [("x", graphs.F, [4, 4])], [("y", graphs.F, []), ("n", onnx.TensorProto.INT64, None)], [],
        "com.acme",
    )  # fmt: skip
    problems = RTX.check(model, card(86))
    assert [p.node for p in problems] == ["the_unique", "the_foo", "the_det"]
    assert all(p.remedy for p in problems)


def test_integers_for_activations_are_refused_with_the_alternative(
    graphs: ModuleType, card: Card
) -> None:
    (problem,) = RTX.check(graphs.int8(axis=0), card(89))
    assert problem.node == "the_conv" and "weights only" in problem.reason
    assert "fp16" in problem.remedy and "FP8" in problem.remedy
    with pytest.raises(BackendUnavailable, match="does not fuse int8") as caught:
        build("zoo:tiny-conv", "rtx-4090", Path("/nowhere/x"), BuildOptions(precision="int8"))
    assert "fp16" in caught.value.hint


def test_the_table_of_operators_is_the_parser_s() -> None:
    """Asked of the parser itself, which needs no GPU."""
    import tensorrt_rtx as trt

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    parser = trt.OnnxParser(builder.create_network(0), logger)
    known = {s.name for s in onnx.defs.get_all_schemas() if s.domain == ""}
    refused = {o for o in known if not parser.supports_operator(o)}
    assert refused - {"DeformConv"} == UNSUPPORTED & known
    assert all(parser.supports_operator(o) for o in ONLY_RTX & known)
    assert "DeformConv" in ONLY_FULL


def test_time_and_memory_are_limited(graphs: ModuleType, card: Card, tmp_path: Path) -> None:
    with pytest.raises(LoweringError, match="GiB of memory") as caught:
        built(graphs.conv(), card(86, memory_limit="1M"), tmp_path)
    assert "memory-limit" in caught.value.hint
    with pytest.raises(LoweringError, match="more than 0.05 s") as caught:
        run_build({"module": "tensorrt_rtx", "onnx": "x", "plan": ""}, seconds=0.05)
    assert "time-limit" in caught.value.hint
    with pytest.raises(LoweringError, match="status 1: .*no_such_tensorrt"):
        run_build({"module": "no_such_tensorrt", "onnx": "x", "plan": ""})


def test_the_artifact_says_that_it_was_not_executed(tmp_path: Path) -> None:
    from effc.backends.tensorrt.gpu import gpus

    if gpus():
        pytest.skip("this machine has a GPU")
    build("zoo:tiny-resnet", "rtx-4090", tmp_path / "e", BuildOptions(precision="fp16"))
    manifest = load_artifact(tmp_path / "e").manifest
    assert manifest.verdict.status == "not run"
    assert manifest.verdict.reason == "built, not executed: no GPU here"
    assert {ENGINE, "fusion.json", "goldens.npz"} < set(manifest.files)
    fusion = manifest.details["fusion"]
    assert manifest.details["sm"] == "89" and set(fusion["dtypes"]) <= {"Half", "Float"}
    assert manifest.versions["tensorrt_rtx"] == manifest.details["tensorrt"]
    page = (tmp_path / "e/report.html").read_text()
    assert "Fusion" in page and "conv_0, relu_0" in page
    (row,) = [v for k, v in report_details(manifest) if k == "engine"]
    assert row.startswith(f"{fusion['layers']} layers for ")
    with pytest.raises(DeviceError, match="no GPU of SM89"):
        finish(tmp_path / "e")


def test_bfloat16_and_attention_reach_the_engine(tmp_path: Path) -> None:
    build("zoo:tiny-vit", "rtx-3060", tmp_path / "v", BuildOptions(precision="bf16"))
    dtypes = load_artifact(tmp_path / "v").manifest.details["fusion"]["dtypes"]
    assert dtypes["BFloat16"] > 10
    assert "Half" not in dtypes


def test_narrow_weights_are_read_by_the_products(tmp_path: Path) -> None:
    """effc's own 4-bit weights: large products read them, and the scales have no cast in between."""
    options = BuildOptions(precision="fp16", passes=("quantize-weights{bits=4,block=32}",))
    build("zoo:tiny-vit", "rtx-4090", tmp_path / "w", options)
    layers = json.loads((tmp_path / "w/fusion.json").read_text())["layers"]
    read = [x for x in layers if "Int4" in {p["dtype"] for p in x["inputs"] + x["constants"]}]
    fused = [x for x in read if x["type"] == "runtime_fusion" and len(x["nodes"]) > 1]
    assert len(read) == 10 and fused
    half = {p["dtype"] for x in fused for p in x["inputs"] + x["constants"]}
    assert half == {"Int4", "Half"}


def test_half_precision_is_the_remedy_on_turing(tmp_path: Path) -> None:
    """`effc check` asks before compression, and knows that float32 will not stay."""
    from effc.check import check

    with pytest.raises(UnsupportedOpError, match=r"and 12 more") as caught:
        build("zoo:tiny-vit", "t4", tmp_path / "x")
    assert {p.op for p in caught.value.problems} == {"MatMul", "Gemm"}
    assert check("zoo:tiny-vit", "t4", precision="fp16").supported
