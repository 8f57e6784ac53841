"""PyTorch modules by name: what is exported computes what torch computes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from effc.core.errors import BackendUnavailable, EffcError
from effc.core.source import place_of
from effc.frontend import load_source

MODELS = """
import torch

class Net(torch.nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, width, 3, bias=False)
        self.norm = torch.nn.BatchNorm2d(width)
        self.head = torch.nn.Linear(width, 4)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, image):
        x = torch.nn.functional.silu(self.norm(self.conv(image)))
        return self.drop(self.head(x.mean((2, 3))))

def with_examples():
    return Net(), (torch.randn(2, 3, 8, 8),)

class Open(Net):
    example_inputs = (torch.randn(2, 3, 8, 8),)
    dynamic_shapes = ({0: torch.export.Dim("batch")},)

net = Net()
net.train()
program = torch.export.export(Net().eval(), (torch.randn(1, 3, 8, 8),))

class Forks(torch.nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x

class Noisy(torch.nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)

class Fails(torch.nn.Module):
    def __init__(self):
        super().__init__()
        raise RuntimeError("no weights\\nanywhere")

class Two(torch.nn.Module):
    def forward(self, a, b):
        return {"sum": a + b, "parts": [a * b, b.sum(1)]}

def needs(width):
    return Net(width)
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    path = tmp_path_factory.mktemp("torch") / "models.py"
    path.write_text(MODELS)
    return path


@pytest.mark.parametrize("name", ["Net", "net"])
def test_shapes_from_the_command_line(models: Path, name: str) -> None:
    source = load_source(f"{models}:{name}", {"image": (1, 3, 12, 12)})
    assert source.kind == "torch" and len(source.sha256) == 64
    (x,), (y,) = source.model.graph.inputs, source.model.graph.outputs
    assert x.name == "image" and x.shape == (1, 3, 12, 12) and y.shape == (1, 4)
    kinds = {n.op_type for n in source.model.graph}
    assert "BatchNormalization" in kinds and "Dropout" not in kinds  # nothing folded, eval mode
    conv = next(n for n in source.model.graph if n.op_type == "Conv")
    assert place_of(conv).startswith(str(models)) and place_of(conv).endswith("(conv)")


@pytest.mark.parametrize("name", ["with_examples", "program"])
def test_examples_of_the_model(models: Path, name: str) -> None:
    shape = load_source(f"{models}:{name}").model.graph.inputs[0].shape
    assert shape is not None and tuple(shape)[1:] == (3, 8, 8)


def test_open_batch(models: Path) -> None:
    source = load_source(f"{models}:Open")
    shape = source.model.graph.inputs[0].shape
    assert shape is not None and shape.is_dynamic(0) and tuple(shape)[1:] == (3, 8, 8)
    assert source.notes == ("inputs of dynamic shape: image",)


def test_several_inputs_and_nested_outputs(models: Path) -> None:
    source = load_source(f"{models}:Two", {"a": (2, 3), "b": (2, 3)})
    assert [v.name for v in source.model.graph.inputs] == ["a", "b"]
    assert len(source.model.graph.outputs) == 3


def test_examples_of_the_file_that_are_for_another_model(models: Path, tmp_path: Path) -> None:
    file = tmp_path / "several.py"
    file.write_text(models.read_text() + "\nexample_inputs = (torch.randn(1, 3, 8, 8),)\n")
    assert load_source(f"{file}:net").model.graph.inputs[0].shape == (1, 3, 8, 8)
    source = load_source(f"{file}:Two", {"a": (2, 3), "b": (2, 3)})
    assert [v.name for v in source.model.graph.inputs] == ["a", "b"]


def test_the_same_text_gives_the_same_hash(models: Path) -> None:
    shapes = {"image": (1, 3, 8, 8)}
    assert (
        load_source(f"{models}:Net", shapes).sha256 == load_source(f"{models}:Net", shapes).sha256
    )


@pytest.mark.parametrize(
    ("name", "shapes", "says"),
    [
        ("Net", {}, "needs to know the shape of its inputs"),
        ("Net", {"x": (1,)}, "names 'x', which .* does not take"),
        ("Net", {"image": (1, 5, 8, 8)}, "can't be exported"),
        ("Forks", {"x": (1, 3)}, "can't be exported: .*data-dependent"),
        ("Noisy", {"x": (1, 3)}, "not the same function"),
        ("Fails", {}, "fails when it is called: RuntimeError: no weights anywhere"),
        ("needs", {}, "takes the arguments width"),
        ("Two", {"b": (2, 3)}, "needs a shape for every input before 'b'"),
        ("Two", {"a": (2, 3)}, "can't be called with 1 inputs: missing .*'b'"),
        ("program", {"image": (1, 3, 9, 9)}, "its shapes are fixed|is an ExportedProgram"),
        ("absent", {}, "can't be imported"),
        ("MODELS", {}, "can't be imported"),
    ],
)
def test_refused(
    models: Path, name: str, shapes: dict[str, tuple[int, ...]], says: str,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with pytest.raises(EffcError, match=says) as caught:
        load_source(f"{models}:{name}", shapes)
    assert "\n" not in str(caught.value) and caught.value.hint
    out, err = capfd.readouterr()
    assert out == ""


def test_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(BackendUnavailable, match="needs torch") as caught:
        load_source("package.models:net")
    assert "effc[torch]" in caught.value.hint and caught.value.exit_code == 3


def test_export_verifies_against_torch(models: Path) -> None:
    """The answers of the export on fresh inputs are those of torch."""
    import torch

    from effc.core import registry
    from effc.core.reference import OnnxRuntimeRunner
    from effc.core.torch_export import export

    torch.manual_seed(1)
    net = registry.load(f"{models}:Net", "model")().eval()
    x = torch.randn(3, 3, 10, 10)
    model = export(torch, net, (torch.zeros(3, 3, 10, 10),), "net")
    with OnnxRuntimeRunner(model, optimize=False) as runner, torch.no_grad():
        (got,) = runner.infer({"image": x.numpy()}).values()
        np.testing.assert_allclose(got, net(x).numpy(), rtol=1e-4, atol=1e-5)
