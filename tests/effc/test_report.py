"""The HTML report: self-contained, well-formed, and safe against names of the model."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import msgspec
import pytest

from effc.build import BuildResult
from effc.core.artifact import OutputError, PassEntry, Verdict
from effc.core.measure import LayerTime, Measurement
from effc.report.charts import Bar, bars, steps
from effc.report.page import page
from effc.report.units import extents, milliseconds, precision_text, quantity, size

_VOID = {"meta"}


class Tree(HTMLParser):
    """Checks that every element is closed, and collects what the page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [v or "" for k, v in attrs if k in ("src", "href")]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(html: str) -> Tree:
    tree = Tree()
    tree.feed(html)
    tree.close()
    assert tree.open == []
    return tree


def test_the_report_of_a_build(built: BuildResult) -> None:
    tree = parsed((built.path / "report.html").read_text())
    text = " ".join(tree.text)
    assert tree.loads == [] and "script" not in tree.tags and "svg" in tree.tags
    for word in (
        "tiny-resnet for host",
        "passed",
        "Latency",
        "Memory over time",
        "fold-batch-norm",
    ):
        assert word in text, word


def test_everything_at_once_and_escaped(built: BuildResult) -> None:
    evil = "<script>alert(1)</script>"
    manifest = msgspec.structs.replace(
        built.artifact.manifest,
        source={"name": evil, "sha256": "0"},
        verdict=Verdict(
            "failed",
            evil,
            0.5,
            1e-4,
            2,
            (OutputError(evil, 1.0, 0.5, 6.0), OutputError("b", 0, 0, None)),
        ),
        passes=(PassEntry(evil, "a=<b>", "EXACT", 2),),
        details={"fallbacks": [evil], "arena_bytes": 5000, "goldens": {"synthetic": True}},
        measurements=(Measurement("emulator", "qemu", evil, 1, (1e-3, 2e-3, 3e-3)),),
    )
    layers = [
        LayerTime(f"{evil}{i}", "tvm:Foo" if i else "conv2d", (evil,), 1e-3) for i in range(50)
    ]
    tree = parsed(page(manifest, layers=layers, memory=[(evil, 10), ("b", 20), ("c", 5)]))
    assert "script" not in tree.tags
    text = " ".join(tree.text)
    assert "emulator" in text and "the 40 dearest of 50" in text and "Fallbacks" in text


def test_without_measurements_it_is_reproducible(built: BuildResult) -> None:
    manifest = msgspec.structs.replace(built.artifact.manifest, measurements=())
    assert page(manifest) == page(manifest) and "Not measured" in page(manifest)


def test_charts_are_to_scale() -> None:
    drawn = bars([Bar("a", 1.0, "1"), Bar("b", 2.0, "2", low=1.5, high=2.0), Bar("z", 0.0, "0")])
    widths = [float(w) for w in re.findall(r'<rect class="a"[^>]*width="([\d.]+)"', drawn)]
    assert widths[1] == pytest.approx(2 * widths[0], rel=0.01) and widths[2] == 0
    assert bars([]).startswith("<svg") and steps([], size) == ""
    assert "20 B at b" in steps([("a", 10), ("b", 20)], size)


def test_units() -> None:
    assert [milliseconds(v) for v in (None, 5e-6, 0.00321, 2.5)] == [
        "-",
        "5 us",
        "3.21 ms",
        "2.5 s",
    ]
    assert [size(v) for v in (None, 5, 2048, 3 << 30)] == ["-", "5 B", "2 KiB", "3 GiB"]
    assert [quantity(v) for v in (None, 999, 325_400_448, 5e12)] == ["-", "999", "325 M", "5 T"]
    assert [extents(s) for s in (None, (), (1, "N", 3))] == ["?", "scalar", "1xNx3"]


def test_a_model_that_came_quantized_is_not_called_fp32(built: BuildResult) -> None:
    manifest = built.artifact.manifest
    assert precision_text(manifest) == "fp32"
    integers = PassEntry("integerize", "", "ROUNDED", 3)
    assert "integers" in precision_text(msgspec.structs.replace(manifest, passes=(integers,)))
