"""The files of a saved Core ML model: `.mlpackage` folder or single `.mlmodel` file.

A package names its files in Manifest.json; the specification names its weight files relative to itself
("@model_path/weights/weight.bin"). Nothing outside the package is ever opened.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from effc.backends.coreml.interpret.blob import WeightFile
from effc.core.errors import BackendUnavailable, FrontendError
from effc.core.measure import Array

MODEL_PATH = "@model_path/"


def _inside(root: Path, relative: str, package: Path) -> Path:
    """`root/relative`, which must not leave `root`: no absolute path, no "..", no link."""
    parts = Path(relative).parts
    if not parts or Path(relative).is_absolute() or ".." in parts:
        raise FrontendError(f"{package}: it names {relative!r}, a file outside of itself")
    path = root
    for part in parts:
        path = path / part
        if path.is_symlink():
            raise FrontendError(f"{package}: {path.relative_to(package)} is a link")
    if not path.exists():
        raise FrontendError(f"{package}: {path.relative_to(package)} is missing")
    return path


def _specification(package: Path) -> tuple[Path, Path]:
    """The model file of a package, and the folder its weight paths start from."""
    if package.is_file():
        return package, package.parent
    if not package.is_dir():
        raise FrontendError(f"{package}: there is no such package")
    manifest = package / "Manifest.json"
    if manifest.is_symlink() or not manifest.is_file():
        raise FrontendError(f"{package}: not an .mlpackage: it has no Manifest.json")
    try:
        entries = json.loads(manifest.read_bytes())
        item = entries["itemInfoEntries"][entries["rootModelIdentifier"]]["path"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FrontendError(f"{package}: Manifest.json does not name the model") from error
    if not isinstance(item, str):
        raise FrontendError(f"{package}: Manifest.json does not name the model")
    model = _inside(package, f"Data/{item}", package)
    if not model.is_file():
        raise FrontendError(f"{package}: {item} is not a file")
    return model, model.parent


class Package:
    """A saved model: its specification (Model.proto's message) and its weights."""

    def __init__(self, path: Path) -> None:
        try:
            from coremltools.proto import Model_pb2
            from google.protobuf.message import DecodeError
        except ImportError as error:
            raise BackendUnavailable(
                f"coremltools can't be imported: {error}", hint="pip install 'effc[coreml]'"
            ) from error
        self.path = path
        model, self._weights_root = _specification(path)
        self.specification: Any = Model_pb2.Model()
        try:
            self.specification.ParseFromString(model.read_bytes())
        except (DecodeError, OSError) as error:
            raise FrontendError(f"{path}: {model.name} is no Core ML specification") from error
        kind = self.specification.WhichOneof("Type")
        if kind != "mlProgram":
            raise FrontendError(
                f"{path}: the model is {kind or 'empty'}, only ML Programs can be interpreted"
            )
        self._files: dict[str, WeightFile] = {}

    @property
    def program(self) -> Any:
        return self.specification.mlProgram

    def read_blob(self, name: str, offset: int, bits: int, dtype: str, count: int) -> Array:
        """`count` elements from a weight file, of which the metadata stands at `offset`."""
        if name not in self._files:
            if not name.startswith(MODEL_PATH):
                raise FrontendError(f"{self.path}: it names {name!r}, a file outside of itself")
            root = self._weights_root if self.path.is_dir() else self.path.parent
            base = self.path if self.path.is_dir() else self.path.parent
            path = _inside(root, name.removeprefix(MODEL_PATH), base)
            self._files[name] = WeightFile(path)
        return self._files[name].read(offset, bits, dtype, count)
