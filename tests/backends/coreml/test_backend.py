"""The backend as its user meets it: artifacts, options, pictures, labels, functions, finishing."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("coremltools")

from effc.artifacts import load_artifact  # noqa: E402
from effc.backends.coreml.backend import PACKAGE, CoreMLBackend  # noqa: E402
from effc.backends.coreml.finish import finish, read_goldens  # noqa: E402
from effc.backends.coreml.interface import Picture  # noqa: E402
from effc.backends.coreml.interpret import Interpreter  # noqa: E402
from effc.backends.coreml.options import options_of, read_labels  # noqa: E402
from effc.backends.coreml.runner import Interpreted, packed, ports_of  # noqa: E402
from effc.build import build  # noqa: E402
from effc.choices import BuildOptions  # noqa: E402
from effc.core.errors import ConfigError, DeviceError  # noqa: E402
from effc.core.preprocess import Preprocess  # noqa: E402
from effc.core.profiles import load_profile  # noqa: E402
from effc.core.target import Target  # noqa: E402
from effc.finish import finish as finish_path  # noqa: E402

NAMES = [f"class {i}" for i in range(10)]


def made(out: Path, source: str = "zoo:tiny-conv", **options: str) -> Path:
    """Build `source` with these options of the backend."""
    build(source, "iphone-15", out, BuildOptions(backend_options=options, measure=False))
    return out


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coreml")
    labels = folder / "names.txt"
    labels.write_text("\n".join(NAMES) + "\n", encoding="utf-8")
    return made(folder / "m", labels=str(labels), author="Ada", license="MIT", version="1.2")


def test_the_artifact_is_verified_and_says_how(classifier: Path) -> None:
    artifact = load_artifact(classifier)
    verdict = artifact.manifest.verdict
    assert verdict.status == "passed" and "interpreted" in verdict.reason
    assert verdict.max_error is not None and verdict.max_error < 1e-5
    assert not artifact.manifest.measurements  # an interpreter's times mean nothing
    inside = {
        p.relative_to(classifier).as_posix()
        for p in (classifier / PACKAGE).rglob("*")
        if p.is_file()
    }
    assert inside < set(artifact.manifest.files) and len(inside) == 3
    assert {"goldens.npz", "USAGE.md"} < set(artifact.manifest.files)
    text = (classifier / "USAGE.md").read_text()
    assert "VNCoreMLRequest" in text and "`image`" in text and "VNClassificationObservation" in text


def test_a_classifier_names_the_best_class(classifier: Path) -> None:
    interpreter = Interpreter(classifier / PACKAGE)
    inputs, _ = ports_of(load_artifact(classifier))
    feeds, answers = read_goldens(classifier / "goldens.npz")
    for feed, answer in zip(feeds, answers, strict=True):
        found = interpreter.predict({p.mil: packed(p, feed[p.name]) for p in inputs})
        best = int(answer["logits"].argmax())
        assert str(found["classLabel"]) == NAMES[best]
        np.testing.assert_allclose(
            found["classLabel_probs"], answer["logits"][0], rtol=1e-5, atol=1e-3
        )


def test_metadata_and_interface_stand_in_the_package(classifier: Path) -> None:
    from coremltools import proto

    spec = proto.Model_pb2.Model()
    spec.ParseFromString(
        (classifier / PACKAGE / "Data/com.apple.CoreML/model.mlmodel").read_bytes()
    )
    metadata = spec.description.metadata
    assert (metadata.author, metadata.license, metadata.versionString) == ("Ada", "MIT", "1.2")
    source = load_artifact(classifier).manifest.source["sha256"]
    assert metadata.userDefined["dev.effc.sha256"] == source
    assert not any("date" in key for key in metadata.userDefined)
    (image,) = spec.description.input
    assert image.name == "image" and image.type.imageType.width == 32
    assert [o.name for o in spec.description.output] == ["classLabel", "classLabel_probs", "logits"]


def test_the_same_build_is_the_same_bytes(tmp_path: Path) -> None:
    one, two = made(tmp_path / "a", "zoo:tiny-mlp"), made(tmp_path / "b", "zoo:tiny-mlp")
    files = load_artifact(one).manifest.files
    assert files == load_artifact(two).manifest.files
    entries = json.loads((one / PACKAGE / "Manifest.json").read_text())["itemInfoEntries"]
    assert len(entries) == 2 and all(len(name) == 36 for name in entries)


def test_functions_share_weights_and_each_is_checked(tmp_path: Path) -> None:
    def sized(out: str, batch: int, **options: str) -> Path:
        shapes = {"image": (batch, 3, 16, 16)}
        chosen = BuildOptions(
            backend_options={"deployment": "iOS18", "input": "tensor", **options},
            shapes=shapes,
            measure=False,
        )
        build("zoo:tiny-dynamic", "iphone-15", tmp_path / out, chosen)
        return tmp_path / out

    one = sized("one", 1)
    both = sized("both", 4, function="four", join=f"one:{one}")
    package = both / PACKAGE
    assert set(Interpreter(package).functions) == {"four", "one"}
    assert Interpreter(package).function == "four"
    feeds, answers = read_goldens(one / "goldens.npz")
    found = Interpreter(package, "one").predict({"image": feeds[0]["image"]})
    np.testing.assert_allclose(found["logits"], answers[0]["logits"], rtol=1e-5, atol=1e-3)
    size = "Data/com.apple.CoreML/weights/weight.bin"
    assert (package / size).stat().st_size < 1.2 * (one / PACKAGE / size).stat().st_size


# -- what is wrong ends in one line ----------------------------------------------------------------


def target(**options: str) -> Target:
    return Target(load_profile("iphone-15"), options=options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lables": "x"}, "no such option"),
        ({"deployment": "iOS12"}, "unknown"),
        ({"input": "video"}, "image or tensor"),
        ({"function": "big"}, "iOS 18"),
        ({"deployment": "iOS18", "join": "a"}, "NAME:ARTIFACT"),
        ({"deployment": "iOS18", "join": "main:x"}, "two functions"),
        ({"deployment": "iOS18", "function": "2"}, "can't be called"),
        ({"labels": "/none.txt"}, "can't be read"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_built(
    options: dict[str, str], words: str
) -> None:
    found = CoreMLBackend().accepts(target(**options))
    assert not found.ok and words in found.reason


@pytest.mark.parametrize(
    ("text", "words"), [("a\na\n", "twice"), ("a\n\nb\n", "line 2"), ("\n", "nothing")]
)
def test_wrong_labels(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "l.txt"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_labels(path)


def test_labels_of_another_number(tmp_path: Path) -> None:
    path = tmp_path / "l.txt"
    path.write_text("\n".join(NAMES[:9]))
    with pytest.raises(ConfigError, match="9 classes.*logits") as error:
        made(tmp_path / "m", labels=str(path))
    assert error.value.hint and not (tmp_path / "m").exists()


def test_symbolic_dimensions_without_a_contract(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'image' has the dynamic shape") as error:
        made(tmp_path / "m", "zoo:tiny-dynamic")
    assert "--shape" in error.value.hint


def test_a_picture_input_for_what_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="takes no picture"):
        made(tmp_path / "m", "zoo:tiny-mlp", input="image")


def test_quantization_needs_ios_17() -> None:
    assert CoreMLBackend().quantization(target()) == "coreml"
    assert CoreMLBackend().quantization(target(deployment="iOS16")) == ""
    assert options_of(target(deployment="macOS15")).ios == 18


# -- pictures --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["imagenet", "inception,color=BGR", "mean=10,20,30,std=2,3,4,scale=1"]
)
@pytest.mark.parametrize("shape", [(1, 3, 5, 6), (1, 5, 6, 3)])
def test_a_picture_gives_the_values_of_the_description(text: str, shape: tuple[int, ...]) -> None:
    preprocess = Preprocess.parse(text)
    rows = np.random.default_rng(0).integers(0, 256, (5, 6, 3)).astype(np.uint8)
    values = preprocess.pixels(rows, shape, "float32")
    picture = Picture.of(preprocess, shape)
    assert np.array_equal(np.asarray(picture.image(values)), rows)
    pixels = rows[:, :, ::-1] if preprocess.color == "BGR" else rows
    inside = pixels.astype(np.float32) * np.float32(picture.factor) + np.float32(picture.offset)
    outside = values[0].transpose(1, 2, 0) if shape[1] == 3 else values[0]
    largest = np.abs(np.float32(picture.factor) * 255).max() + np.abs(picture.offset).max()
    assert np.abs(inside - outside).max() <= 2 * np.spacing(np.float32(largest))


def test_numbers_of_no_picture_are_refused() -> None:
    picture = Picture.of(Preprocess.parse("unit"), (1, 3, 4, 4))
    with pytest.raises(ConfigError, match="not those of one"):
        picture.image(np.full((1, 3, 4, 4), 0.5017, np.float32))
    with pytest.raises(ConfigError, match="not those of one"):
        picture.image(np.full((1, 3, 4, 4), 2.0, np.float32))


# -- finishing -------------------------------------------------------------------------------------


def test_finishing_compares_every_device_with_the_goldens(classifier: Path) -> None:
    """With the interpreter in the place of the four choices of compute units that a Mac has."""
    artifact = load_artifact(classifier)
    done = finish(artifact, [Interpreted(), Interpreted("again")])
    rows = done.manifest.details["finished"]
    assert set(rows) == {"coreml interpreter", "again"}
    assert all(r["verdict"] == "passed" and r["from_first"] == 0 for r in rows.values())
    assert "2 compute units" in done.manifest.verdict.reason


def test_finishing_notices_wrong_answers(classifier: Path, tmp_path: Path) -> None:
    feeds, answers = read_goldens(classifier / "goldens.npz")
    changed = {f"feeds/{i}/{k}": v for i, f in enumerate(feeds) for k, v in f.items()}
    changed |= {f"answers/{i}/{k}": v + 0.1 for i, a in enumerate(answers) for k, v in a.items()}
    (tmp_path / PACKAGE).symlink_to(classifier / PACKAGE)
    np.savez(tmp_path / "goldens.npz", **changed)
    artifact = load_artifact(classifier)
    moved = type(artifact)(tmp_path, artifact.manifest)
    done = finish(moved, [Interpreted()])
    assert done.manifest.verdict.status == "failed"
    assert msgspec.json.encode(done.manifest)


def test_goldens_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "goldens.npz").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="no goldens"):
        read_goldens(tmp_path / "goldens.npz")


@pytest.mark.skipif("__import__('platform').system() == 'Darwin'")
def test_off_macos_finishing_says_so(classifier: Path) -> None:
    with pytest.raises(DeviceError, match="macOS only") as error:
        finish_path(classifier)
    assert "Mac" in error.value.hint


def test_what_a_mac_is_asked_for_is_there() -> None:
    """The names and parameters of coremltools' API that only run on macOS."""
    import coremltools as ct
    from coremltools.models.compute_plan import (
        MLComputePlan,
        MLComputePlanCost,
        MLComputePlanDeviceUsage,
    )

    assert "compute_units" in inspect.signature(ct.models.MLModel.__init__).parameters
    assert {"ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE"} <= {u.name for u in ct.ComputeUnit}
    assert callable(ct.models.MLModel.get_compiled_model_path)
    assert {"path", "compute_units"} <= set(
        inspect.signature(MLComputePlan.load_from_path).parameters
    )
    for name in ("device_usage_for", "estimated_cost_for"):
        name = name.replace("device", "compute_device")
        assert callable(getattr(MLComputePlan, f"get_{name}_mlprogram_operation"))
    assert "weight" in MLComputePlanCost.__dataclass_fields__
    assert "preferred_compute_device" in MLComputePlanDeviceUsage.__dataclass_fields__


def test_problems_are_listed_without_compiling() -> None:
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape((2, 3)))
    node = ir.node("NonZero", [x], name="found")
    y = node.outputs[0]
    y.name, y.dtype, y.shape = "y", ir.DataType.INT64, ir.Shape((2, 3))
    model = ir.Model(ir.Graph([x], [y], nodes=[node], opset_imports={"": 23}), ir_version=11)
    (problem,) = CoreMLBackend().check(model, target())
    assert problem.node == "found" and "run time" in problem.reason
