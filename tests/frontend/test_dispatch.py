"""Which frontend reads what, and frontends of other packages."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from effc import frontend, zoo
from effc.core.errors import FrontendError
from effc.core.registry import Registry

PLUGIN = """
import onnx_ir as ir
from effc.core.source import Source, fingerprint
from effc import zoo

class TinyFrontend:
    def accepts(self, text, head):
        return head[4:8] == b"TFL3"

    def load(self, text, shapes):
        model = zoo.build("tiny-mlp")
        return Source(model, "tiny", text, fingerprint(model), (f"shapes {dict(shapes)}",))

frontend = TinyFrontend()
"""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, entry: str) -> None:
    info = folder / "tiny_frontend-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-frontend\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[effc.frontends]\ntiny = {entry}\n")
    (folder / "tiny_frontend.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(frontend, "FRONTENDS", Registry("frontend", "effc.frontends", {}))


def test_a_plugged_in_frontend_claims_a_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(b"\x1c\0\0\0TFL3" + bytes(50))
    pytest.importorskip("tflite")
    with pytest.raises(FrontendError, match="TensorFlow Lite"):
        frontend.load_source(str(path))
    install(tmp_path, monkeypatch, "tiny_frontend:frontend")
    source = frontend.load_source(str(path), {"x": (1, 2)})
    assert source.kind == "tiny" and source.notes == ("shapes {'x': (1, 2)}",)


def test_a_broken_frontend_is_named_only_where_it_might_have_helped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, "tiny_frontend:missing")
    good = tmp_path / "m.onnx"
    good.write_bytes(ir.to_proto(zoo.build("tiny-mlp")).SerializeToString())
    assert frontend.load_source(str(good)).kind == "onnx"
    bad = tmp_path / "m.tflite"
    bad.write_bytes(b"\x1c\0\0\0TFL3" + bytes(50))
    with pytest.raises(FrontendError) as caught:
        frontend.load_source(str(bad))
    assert "tiny_frontend:missing" in caught.value.hint


def test_a_file_with_a_colon_in_its_name_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net:v2").write_bytes(ir.to_proto(zoo.build("tiny-mlp")).SerializeToString())
    assert frontend.load_source("net:v2").kind == "onnx"
