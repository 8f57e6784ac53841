"""Opening files that may be anything, and saying what they are before anything parses them."""

from __future__ import annotations

import os
import stat
import zipfile
from pathlib import Path

from effc.core.errors import FrontendError

HEAD_BYTES = 512

# first bytes -> what the file is, what to do about it
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (
        b"version https://git-lfs.github.com/spec",
        "a Git LFS pointer, not the model itself",
        "fetch the real file with git lfs pull",
    ),
    (b"PK\x05\x06", "an empty zip archive", "download or export the model again"),
    (b"\x1f\x8b", "a gzip archive", "unpack it first with gunzip"),
    (b"BZh", "a bzip2 archive", "unpack it first with bunzip2"),
    (b"\xfd7zXZ\x00", "an xz archive", "unpack it first with unxz"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive", "unpack it first with unzstd"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-zip archive", "unpack it first"),
    (
        b"\x89HDF\r\n\x1a\n",
        "an HDF5 file (Keras weights or model)",
        "export it to ONNX with tf2onnx, or to TFLite",
    ),
    (b"\x7fELF", "a program or shared library", "name the model, not what was built from it"),
    (b"\x89PNG", "a picture", "name a model"),
    (b"\xff\xd8\xff", "a picture", "name a model"),
    (b"ftrt", "a TensorRT engine, which is compiled for one device", "name the ONNX model"),
    (b"7767517", "an ncnn parameter file", "name the ONNX model that it was converted from"),
    (b"%PDF", "a PDF document", "name a model"),
)
_PICKLE_HINT = (
    "pickles run code when loaded, so effc never does: name the module instead, "
    "as package.module:attribute or file.py:attribute"
)


def printable(path: object) -> str:
    """A path for a one-line message: quoted, escaped, and only the end of it where it is long."""
    text = repr(str(path))
    return text if len(text) <= 240 else f"'...{text[-236:]}"


def open_regular(path: Path, what: str = "model", *, follow: bool = True) -> int:
    """A descriptor for reading a regular file. Never blocks; FrontendError for anything else."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    if not follow:
        flags |= getattr(os, "O_NOFOLLOW", 0)
    name = printable(path)
    try:
        # a device may act on being opened, so ask before; the check after it closes the race
        kind = _kind(os.stat(path).st_mode)
        if kind:
            raise FrontendError(f"{what} {name} is {kind}", hint="name a regular file")
        descriptor = os.open(path, flags)
    except FileNotFoundError as error:
        raise FrontendError(f"no {what} {name}", hint="check the path") from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise FrontendError(
            f"{what} {name} can't be read: {reason}", hint="check the path and its permissions"
        ) from error
    kind = _kind(os.fstat(descriptor).st_mode)
    if kind:
        os.close(descriptor)
        raise FrontendError(f"{what} {name} is {kind}", hint="name a regular file")
    return descriptor


def _kind(mode: int) -> str:
    if stat.S_ISREG(mode):
        return ""
    if stat.S_ISDIR(mode):
        return "a directory"
    return "a pipe, socket or device"


def is_tflite(head: bytes) -> bool:
    """Whether a file that starts with `head` is a TensorFlow Lite flatbuffer."""
    return head[4:8] == b"TFL3"


def refuse_other_formats(path: Path, head: bytes) -> None:
    """Raise FrontendError if the first bytes say that the file is anything but ONNX."""
    found = _recognize(path, head)
    if found is not None:
        raise FrontendError(f"it is {found[0]}, no ONNX model", hint=found[1])


def _recognize(path: Path, head: bytes) -> tuple[str, str] | None:
    if not head:
        return "an empty file (0 bytes)", "download or export the model again"
    for magic, what, hint in _MAGIC:
        if head.startswith(magic):
            return what, hint
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<body")):
        return (
            "an HTML page",
            "the download gave a web page: fetch the raw file, not the page that shows it",
        )
    if start.startswith(b"<?xml"):
        return "an XML file (OpenVINO?)", "name the ONNX model that it was converted from"
    if start.startswith(b"{"):
        return "a JSON file", "name the ONNX model"
    if head[8:10] == b'{"':
        return (
            "a safetensors file: weights without a model",
            "export the model that these weights belong to, or name it as module:attribute",
        )
    if is_tflite(head):
        return (
            "a TensorFlow Lite model",
            "effc reads it where a model is named: effc build MODEL.tflite",
        )
    if head.startswith(b"PK\x03\x04"):
        return _zip(path)
    if head[:1] == b"\x80" and head[1:2] in b"\x01\x02\x03\x04\x05" and len(head) > 1:
        return "a Python pickle", _PICKLE_HINT
    if head[257:262] == b"ustar":
        return "a tar archive", "unpack it first"
    if not head.strip(b"\x00"):
        return "a file of zero bytes only", "the download is damaged: fetch it again"
    return None


def _zip(path: Path) -> tuple[str, str]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "a damaged zip archive", "download or export the model again"
    if any(n.endswith("data.pkl") for n in names):
        return "a PyTorch checkpoint (a pickle)", _PICKLE_HINT
    if any(n.endswith((".onnx", ".tflite")) for n in names[:10_000]):
        return "a zip archive with a model inside", "unpack it first and name the model inside"
    if "config.json" in names and any(n.endswith(".h5") for n in names):
        return "a Keras archive", "export it to ONNX with tf2onnx, or to TFLite"
    return "a zip archive", "unpack it first and name the model inside"
