"""Options of the user, the products that follow, the plugin for NMS."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest

from effc.backends.tensorrt import products
from effc.backends.tensorrt.options import options_of
from effc.backends.tensorrt.surgery import use_nms_plugin
from effc.core.errors import ConfigError, UnsupportedOpError
from effc.core.ir import attr
from effc.core.profiles import load_profile
from effc.core.target import Target

Card = Callable[..., Target]


def test_options_are_read_with_their_units(card: Card) -> None:
    found = options_of(
        card(86, workspace="512M", memory_limit="2G", level="0", refit="yes", time_limit="30",
             profile="a.b=1x2:3x4:5x6,c=7:8:9")
    )  # fmt: skip
    assert (found.workspace, found.memory_limit, found.level) == (512 << 20, 2 << 30, 0)
    assert found.refit and not found.version_compatible and found.time_limit == 30
    assert found.profiles == {"a.b": ((1, 2), (3, 4), (5, 6)), "c": ((7,), (8,), (9,))}


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("speed", "9", "no such option"),
        ("workspace", "much", "number of bytes"),
        ("workspace", "0", "number of bytes"),
        ("level", "6", "0 to 5"),
        ("refit", "maybe", "no, yes"),
        ("product", "trt", "rtx, full, bundle"),
        ("profile", "x=1x3", "is not like"),
        ("profile", "x=1x3:2x3:1x3", "not below"),
        ("profile", "1x3:2x3:4x3", "is not like"),
        ("profile", "x=0:1:2", "is not like"),
    ],
)
def test_a_wrong_option_is_named(card: Card, key: str, value: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        options_of(card(86, **{key: value}))
    assert key in str(caught.value)


@pytest.mark.parametrize(
    ("board", "product"),
    [
        ("rtx-4090", "rtx"), ("rtx-3060", "rtx"), ("t4", "rtx"), ("l4", "rtx"), ("h200", "bundle"),
        ("jetson", "bundle"), ("jetson-agx-orin", "bundle"),
    ],
)  # fmt: skip
def test_the_product_follows_from_the_board(
    board: str, product: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "gpu_for", lambda sm: None)
    target = Target(load_profile(board))
    assert products.product_of(target) == product
    assert (
        products.product_of(Target(load_profile(board), options={"product": "bundle"})) == "bundle"
    )


def test_what_a_product_needs_is_said(monkeypatch: pytest.MonkeyPatch, card: Card) -> None:
    monkeypatch.setattr(products, "installed", lambda module: "")
    refused = products.availability(card(86))
    assert not refused.ok and refused.hint == "pip install 'effc[tensorrt-rtx]'"
    refused = products.availability(card(90, product="rtx"))
    assert "does not compile for SM90" in refused.reason and "SM120" in refused.hint
    monkeypatch.setattr(products, "installed", lambda module: "1.7.1")
    assert products.availability(card(86)).ok
    assert "bfloat16" in products.availability(card(75, "bf16")).reason
    assert "no option 'cache'" in products.availability(card(86, cache="x")).reason
    for precision in ("int8", "w4a8", "auto"):
        assert "weights only" in products.availability(card(89, precision)).reason
    nameless = load_profile("host")
    with pytest.raises(ConfigError, match="compute capability"):
        products.compute_capability(Target(nameless))
    assert not products.availability(Target(nameless)).ok


def test_nms_becomes_the_plugin_where_it_exists_and_suffices(graphs: ModuleType) -> None:
    pytest.importorskip("onnx_graphsurgeon")
    model = use_nms_plugin(graphs.nms(), "10.3.0", "board")
    (node,) = model.graph
    assert node.op_type == "EfficientNMS_ONNX_TRT" and [v.name for v in node.inputs] == ["b", "s"]
    assert attr(node, "max_output_boxes_per_class") == 10 and attr(node, "center_point_box") == 0
    np.testing.assert_allclose(
        [attr(node, "iou_threshold"), attr(node, "score_threshold")], [0.5, 0.1], rtol=1e-6
    )
    with pytest.raises(ConfigError, match="no EfficientNMS_ONNX_TRT"):
        use_nms_plugin(graphs.nms(), "10.16.1", "board")
    with pytest.raises(UnsupportedOpError, match="room for the boxes of one class"):
        use_nms_plugin(graphs.nms(classes=3), "10.3.0", "board")
    plain = graphs.conv()
    assert use_nms_plugin(plain, "11.1.0", "board") is plain
