"""From a MIL program to the files of an .mlpackage, the same bytes for the same program."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from effc.backends.coreml.convert.program import Converted
from effc.backends.coreml.options import Options

_LOGGERS = ("coremltools", "torch", "scikit-learn")
_COLORS = {"RGB": "RGB", "BGR": "BGR", "GRAY": "GRAYSCALE"}
# what differs from one run to the next
_UNSTABLE = ("com.github.apple.coremltools.conversion_date",)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, no warnings about versions of other packages, no `Failed to load` off macOS."""
    logger = logging.getLogger()
    level = logger.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def write_package(
    converted: Converted, options: Options, path: Path, about: Mapping[str, str]
) -> None:
    """Write the package `path` (a folder); `about` are facts for its metadata."""
    # coremltools leaves a package of its own in the temporary folder otherwise
    with quiet(), tempfile.TemporaryDirectory(prefix="effc-") as folder:
        import coremltools as ct

        model = ct.convert(
            converted.program,
            source="milinternal",
            convert_to="mlprogram",
            minimum_deployment_target=getattr(ct.target, options.deployment),
            # the types of the program are those of the IR, where passes decided on them
            compute_precision=ct.precision.FLOAT32,
            pass_pipeline=_pipeline(ct),
            skip_model_load=True,
            package_dir=str(Path(folder) / path.name),
            inputs=_inputs(ct, converted),
            classifier_config=ct.ClassifierConfig(
                list(options.labels), predicted_probabilities_output=converted.scores
            )
            if converted.scores
            else None,
        )
        _describe(model, converted, options, about)
        model.save(str(path))
    normalize(path)


def _pipeline(ct: Any) -> Any:
    """coremltools' own passes, but for one that makes x * a + b a batch_norm of variance 1 with the default
    epsilon 1e-5: the product is 5e-6 too small then."""
    pipeline = ct.PassPipeline()
    pipeline.remove_passes({"common::fuse_elementwise_to_batchnorm"})
    return pipeline


def _inputs(ct: Any, converted: Converted) -> list[Any] | None:
    """The types of the inputs, where one is a picture; otherwise they follow from the program."""
    if all(port.image is None for port in converted.inputs):
        return None
    return [
        ct.ImageType(
            name=port.mil,
            shape=port.mil_shape,
            color_layout=getattr(ct.colorlayout, _COLORS[port.image.color]),
        )
        for port in converted.inputs
        if port.image is not None
    ]


def _describe(model: Any, converted: Converted, options: Options, about: Mapping[str, str]) -> None:
    fields = {"author": "author", "license": "license", "version": "version",
              "description": "short_description"}  # fmt: skip
    for key, name in fields.items():
        if key in options.metadata:
            setattr(model, name, options.metadata[key])
    for key, value in about.items():
        model.user_defined_metadata[f"dev.effc.{key}"] = value
    for port in converted.inputs:
        model.input_description[port.mil] = _sentence(port.name, port.dtype, port.shape)
    for port in converted.outputs:
        model.output_description[port.mil] = _sentence(port.name, port.dtype, port.shape)


def _sentence(name: str, dtype: str, shape: tuple[int, ...]) -> str:
    return f"{name}: {dtype} {list(shape)}"


def normalize(path: Path) -> None:
    """Take out of a package what differs from run to run: dates, random identifiers, the order of maps."""
    from coremltools import proto

    spec_path = path / "Data" / "com.apple.CoreML" / "model.mlmodel"
    spec = proto.Model_pb2.Model()
    spec.ParseFromString(spec_path.read_bytes())
    user = spec.description.metadata.userDefined
    for key in _UNSTABLE:
        if key in user:
            del user[key]
    spec_path.write_bytes(spec.SerializeToString(deterministic=True))
    spec_path.chmod(0o644)  # coremltools writes it for its user alone
    manifest_path = path / "Manifest.json"
    manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
    entries, root = manifest["itemInfoEntries"], manifest["rootModelIdentifier"]
    names = {old: _identifier(entry["path"]) for old, entry in entries.items()}
    manifest["itemInfoEntries"] = {
        names[old]: entry for old, entry in sorted(entries.items(), key=lambda e: e[1]["path"])
    }
    manifest["rootModelIdentifier"] = names[root]
    manifest_path.write_text(
        json.dumps(manifest, indent=4, sort_keys=True) + "\n", encoding="utf-8"
    )


def _identifier(text: str) -> str:
    """A UUID of version 8 (free form) from a hash."""
    digest = bytearray(hashlib.sha256(f"effc:{text}".encode()).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x80
    digest[8] = digest[8] & 0x3F | 0x80
    h = digest.hex()
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"
