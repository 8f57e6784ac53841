"""Damaged packages, and packages that point outside of themselves, end in one line."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from effc.backends.coreml.interpret import Interpreter
from effc.backends.coreml.interpret.blob import unpack
from effc.core.errors import EffcError, FrontendError

X = np.ones((1, 64), np.float32)
WEIGHTS = np.random.default_rng(1).normal(size=(32, 64)).astype(np.float32)


@pytest.fixture(scope="module")
def original(mil: Any) -> Path:
    path: Path = mil.save(lambda mb, x: mb.linear(x=x, weight=WEIGHTS), {"x": X})
    return path


@pytest.fixture
def package(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "p.mlpackage"))


def weights(package: Path) -> Path:
    return package / "Data/com.apple.CoreML/weights/weight.bin"


def model(package: Path) -> Path:
    return package / "Data/com.apple.CoreML/model.mlmodel"


def edit(package: Path, change: Callable[[Any], None]) -> None:
    from coremltools.proto import Model_pb2

    spec = Model_pb2.Model.FromString(model(package).read_bytes())
    change(spec)
    model(package).write_bytes(spec.SerializeToString())


def block(spec: Any) -> Any:
    return spec.mlProgram.functions["main"].block_specializations["CoreML8"]


def blob(spec: Any) -> Any:
    return next(
        o.attributes["val"].blobFileValue
        for o in block(spec).operations
        if o.type == "const" and o.attributes["val"].WhichOneof("value") == "blobFileValue"
    )


def patch(package: Path, offset: int, data: bytes) -> None:
    with weights(package).open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_an_undamaged_package_runs(package: Path) -> None:
    got = Interpreter(package).predict({"x": X})["out_0"]
    np.testing.assert_allclose(got, X @ WEIGHTS.T, rtol=1e-5, atol=1e-5)


def rename(to: str) -> Callable[[Path], None]:
    return lambda p: edit(p, lambda s: setattr(blob(s), "fileName", to))


def manifest(path: str) -> Callable[[Path], None]:
    def change(package: Path) -> None:
        content = json.loads((package / "Manifest.json").read_text())
        content["itemInfoEntries"][content["rootModelIdentifier"]]["path"] = path
        (package / "Manifest.json").write_text(json.dumps(content))

    return change


def linked(where: Callable[[Path], Path]) -> Callable[[Path], None]:
    def change(package: Path) -> None:
        outside = package.parent / "outside"
        shutil.move(where(package), outside)
        os.symlink(outside, where(package))

    return change


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no weights": (lambda p: weights(p).unlink(), "weight.bin is missing"),
    "empty weights": (lambda p: weights(p).write_bytes(b""), "can't be read"),
    "short weights": (lambda p: os.truncate(weights(p), 40), "cut off"),
    "half the weights": (lambda p: os.truncate(weights(p), 4000), "pass the end of the file"),
    "weights of another version": (lambda p: patch(p, 4, b"\x09"), "version 9"),
    "no blob": (lambda p: patch(p, 64, b"\0\0\0\0"), "no blob starts here"),
    "blob of an unknown type": (lambda p: patch(p, 68, struct.pack("<I", 99)), "type 99"),
    "blob of another type": (lambda p: patch(p, 68, struct.pack("<I", 1)), "declared as"),
    "a huge blob": (lambda p: patch(p, 72, struct.pack("<Q", 2**63)), "pass the end"),
    "a blob far away": (lambda p: patch(p, 80, struct.pack("<Q", 2**64 - 8)), "pass the end"),
    "a smaller blob": (lambda p: patch(p, 72, struct.pack("<Q", 64)), "holds 16 elements"),
    "an offset past the end": (
        lambda p: edit(p, lambda s: setattr(blob(s), "offset", 1 << 40)),
        "outside the file",
    ),
    "an offset between": (
        lambda p: edit(p, lambda s: setattr(blob(s), "offset", 65)),
        "unaligned",
    ),
    "a parent folder": (rename("@model_path/../../../secret"), "outside of itself"),
    "an absolute path": (rename("@model_path//etc/passwd"), "outside of itself"),
    "no model path": (rename("/etc/passwd"), "outside of itself"),
    "a folder as weights": (rename("@model_path/weights"), "can't be read"),
    "linked weights": (linked(weights), "is a link"),
    "a linked folder": (linked(lambda p: weights(p).parent), "is a link"),
    "a linked model": (linked(model), "is a link"),
    "a manifest that leaves": (manifest("../../../x"), "outside of itself"),
    "a manifest to nothing": (manifest("nothing"), "is missing"),
    "a manifest to a folder": (manifest("com.apple.CoreML"), "is not a file"),
    "a manifest with a number": (manifest(7), "does not name the model"),  # type: ignore[arg-type]
    "no manifest": (lambda p: (p / "Manifest.json").unlink(), "no Manifest.json"),
    "an empty manifest": (lambda p: (p / "Manifest.json").write_text("{}"), "does not name"),
    "a broken manifest": (lambda p: (p / "Manifest.json").write_bytes(b"\xff["), "does not name"),
    "no model": (lambda p: model(p).unlink(), "is missing"),
    "no specification": (lambda p: model(p).write_bytes(b"\xff" * 99), "no Core ML spec"),
    "an empty specification": (lambda p: model(p).write_bytes(b""), "the model is empty"),
    "a neural network": (
        lambda p: edit(p, lambda s: s.neuralNetwork.SetInParent()),
        "only ML Programs",
    ),
    "no function": (
        lambda p: edit(p, lambda s: s.mlProgram.functions.clear()),
        "no function 'main'",
    ),
    "a future opset": (
        lambda p: edit(
            p,
            lambda s: (
                s.mlProgram.functions["main"].block_specializations["CoreML99"].CopyFrom(block(s)),
                setattr(s.mlProgram.functions["main"], "opset", "CoreML99"),
            ),
        ),
        "opset 'CoreML99'",
    ),
    "an opset without a block": (
        lambda p: edit(p, lambda s: setattr(s.mlProgram.functions["main"], "opset", "CoreML5")),
        "no block 'CoreML5'",
    ),
    "an unknown operation": (
        lambda p: edit(
            p,
            lambda s: [
                setattr(o, "type", "teleport") for o in block(s).operations if o.type == "linear"
            ],
        ),
        r"operation 'teleport' \(linear_0\) can't be interpreted for iOS 18",
    ),
    "an unknown element type": (
        lambda p: edit(
            p, lambda s: setattr(block(s).operations[0].outputs[0].type.tensorType, "dataType", 77)
        ),
        "element type 77",
    ),
    "an unknown name": (
        lambda p: edit(
            p,
            lambda s: [
                setattr(o.inputs["x"].arguments[0], "name", "nobody")
                for o in block(s).operations
                if o.type == "linear"
            ],
        ),
        "'nobody', which nothing gives",
    ),
    "an unknown output": (
        lambda p: edit(p, lambda s: block(s).outputs.append("nobody")),
        "output 'nobody' is given by nothing",
    ),
    "a described output that is not there": (
        lambda p: edit(p, lambda s: setattr(s.description.output[0], "name", "nobody")),
        "no output 'nobody'",
    ),
    "a described input that is not there": (
        lambda p: edit(p, lambda s: setattr(s.description.input[0], "name", "nobody")),
        "no input 'nobody'",
    ),
    "an output of another type": (
        lambda p: edit(
            p, lambda s: setattr(s.description.output[0].type.multiArrayType, "dataType", 131104)
        ),
        "described as int32, the program gives fp32",
    ),
    "a missing parameter": (
        lambda p: edit(
            p, lambda s: [o.inputs.pop("weight") for o in block(s).operations if o.type == "linear"]
        ),
        "'linear'.*missing 1 required positional argument: 'weight'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_one_line(package: Path, case: str) -> None:
    damage, message = DAMAGE[case]
    damage(package)
    with pytest.raises(EffcError, match=message) as caught:
        Interpreter(package).predict({"x": X})
    assert "\n" not in str(caught.value)
    assert "p.mlpackage" in str(caught.value)


def test_there_is_no_package(tmp_path: Path) -> None:
    with pytest.raises(FrontendError, match="there is no such package"):
        Interpreter(tmp_path / "nothing.mlpackage")


def test_cut_specifications_never_crash(package: Path) -> None:
    """Every prefix and many flipped bytes: an answer or one EffcError."""
    whole = model(package).read_bytes()
    rng = np.random.default_rng(5)
    for n in range(60):
        data = bytearray(whole)
        if n < 20:
            data = data[: len(data) * n // 20]
        else:
            for at in rng.integers(0, len(data), 3):
                data[at] = rng.integers(0, 256)
        model(package).write_bytes(bytes(data))
        try:
            interpreter = Interpreter(package)
            feeds = {f.name: np.ones(f.shape, f.dtype) for f in interpreter.inputs}
            interpreter.predict(feeds)
        except EffcError as error:
            assert "\n" not in str(error)


def test_a_single_file_with_an_ml_program(mil: Any, tmp_path: Path) -> None:
    path = mil.save(lambda mb, x: mb.mul(x=x, y=2.0), {"x": X})
    single = tmp_path / "m.mlmodel"
    shutil.copy(model(path), single)
    assert np.array_equal(Interpreter(single).predict({"x": X})["out_0"], X * 2)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6])
def test_unpack(bits: int) -> None:
    rng = np.random.default_rng(bits)
    values = rng.integers(0, 1 << bits, 41)
    number = sum(int(v) << (bits * i) for i, v in enumerate(values))
    data = number.to_bytes(-(-41 * bits // 8), "little")
    assert np.array_equal(unpack(data, bits, "uint8", 41), values)
    signed = np.where(values >= 1 << (bits - 1), values - (1 << bits), values)
    assert np.array_equal(unpack(data, bits, "int8", 41), signed)


def test_the_weight_reader_agrees_with_coremltools(package: Path) -> None:
    """Read once more by Apple's own reader."""
    from coremltools.libmilstoragepython import _BlobStorageReader

    reader = _BlobStorageReader(str(weights(package)))
    assert np.array_equal(np.array(reader.read_float_data(64)), WEIGHTS.ravel())
