"""Sealing and opening artifacts: folders replaced in one step, and the packed form `.effc`.

A packed artifact is a zip of uncompressed members in sorted order with fixed dates, so equal artifacts
are equal files; it is read only if every member is one that its manifest lists.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import os
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import msgspec

from effc.core.artifact import MANIFEST, Artifact, Manifest, load_artifact
from effc.core.errors import ConfigError

REPORT = "report.html"
SUFFIX = ".effc"

_STAGING = ".effc-staging"
_MAX_MANIFEST_BYTES = 1 << 26
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextlib.contextmanager
def staging_folder(out: Path, *, pack: bool = False) -> Iterator[Path]:
    """An empty folder beside `out` to build in; what is left of it afterwards is removed.

    ConfigError at once where `out` can't become an artifact: something else stands there, or an artifact
    to which its user added files.
    """
    check_place(out, pack=pack)
    out = packed_path(out) if pack else out
    try:
        parent = out.absolute().parent
        parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(parent, out.name)
        folder = parent / f".{out.name}.{os.getpid()}{_STAGING}"
        folder.mkdir()
    except OSError as error:
        raise ConfigError(
            f"can't write {str(out)!r}: {error.strerror or error}",
            hint="choose another place with -o",
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def seal(
    folder: Path, manifest: Manifest, out: Path, *, pack: bool = False
) -> tuple[Artifact, Path]:
    """Write the manifest last and put the staged `folder` in the place of `out`, in one step.

    With `pack` the place is a file; it gets the suffix `.effc` if it lacks it, and the artifact's path is
    that file. An artifact that stood there before is gone only after the new one stands.
    """
    try:
        for name in manifest.files:
            _sync(folder / name)
        text = msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"
        (folder / MANIFEST).write_bytes(text)
        _sync(folder / MANIFEST)
        if pack:
            path = packed_path(out)
            check_place(path, pack=True)
            packed = folder.parent / f"{folder.name}.zip"
            try:
                _write_pack(folder, manifest, packed)
                _sync(packed)
                os.replace(packed, path)
            finally:
                packed.unlink(missing_ok=True)
        else:
            path = out
            check_place(path)
            _put(folder, path)
        _sync(path.absolute().parent)
    except OSError as error:
        raise ConfigError(
            f"can't write {str(out)!r}: {error.strerror or error}",
            hint="choose another place with -o",
        ) from error
    return Artifact(path, manifest), path


@contextlib.contextmanager
def open_artifact(path: Path, *, verify: bool = True) -> Iterator[Artifact]:
    """The artifact at `path`, a folder or a packed file; a packed one is unpacked for the while.

    Every file is checked against the manifest's hash. ConfigError where `path` is no intact artifact.
    """
    if path.is_dir():
        yield load_artifact(path, verify=verify)
        return
    with tempfile.TemporaryDirectory(prefix="effc-") as folder:
        unpack(path, Path(folder))
        yield load_artifact(Path(folder), verify=verify)


def unpack(path: Path, folder: Path) -> None:
    """Unpack the packed artifact `path` into the empty `folder`.

    ConfigError on anything that effc does not write: compressed or encrypted members, links, absolute
    names or `..`, names twice, members that the manifest does not list.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            listed = {MANIFEST, REPORT, *_manifest_of(archive, path).files}
            seen: set[str] = set()
            for member in members:
                if reason := _unsafe(member, listed, seen, path):
                    raise ConfigError(
                        f"packed artifact {str(path)!r}: member {member.filename!r} {reason}",
                        hint="it was not written by effc build --pack, or tampered with",
                    )
                seen.add(member.filename)
                target = folder / member.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, target.open("xb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise ConfigError(
            f"{str(path)!r} is no packed artifact that can be read: {error}", hint="build it again"
        ) from error
    except OSError as error:
        raise ConfigError(f"{str(path)!r} can't be read: {error.strerror or error}") from error


def is_artifact(path: Path) -> bool:
    """Whether `path` looks like an artifact: a folder with a manifest, or a zip named `.effc`."""
    if os.path.isdir(path):  # unlike Path.is_dir, False for a name that can't be
        return os.path.isfile(path / MANIFEST)
    return path.suffix == SUFFIX and os.path.isfile(path)


def packed_path(out: Path) -> Path:
    """The file that `--pack -o out` writes."""
    return out if out.suffix == SUFFIX else out.with_name(out.name + SUFFIX)


def check_place(out: Path, *, pack: bool = False) -> None:
    """ConfigError unless `out` is free, an empty folder, or an untouched artifact that may be replaced."""
    if out.name in ("", ".."):  # ".", "/": folders that no rename can replace
        raise ConfigError(
            f"{str(out)!r} can't be the artifact itself", hint="add a name, as in -o out"
        )
    out = packed_path(out) if pack else out
    try:
        _check_place(out, pack)
    except OSError as error:
        raise ConfigError(
            f"can't write {str(out)!r}: {error.strerror or error}",
            hint="choose another place with -o",
        ) from error


def _check_place(out: Path, pack: bool) -> None:
    if out.is_symlink():
        raise ConfigError(f"{str(out)!r} is a link", hint="choose another place with -o")
    if not out.exists():
        return
    if pack:
        if not _is_pack(out):
            raise ConfigError(
                f"{str(out)!r} exists and is no packed artifact",
                hint="choose another place with -o",
            )
        return
    if not out.is_dir():
        raise ConfigError(
            f"{str(out)!r} exists and is a file", hint="choose another place with -o, or --pack"
        )
    if not any(out.iterdir()):
        return
    try:
        known = {MANIFEST, REPORT, *load_artifact(out, verify=False).manifest.files}
    except ConfigError:
        raise ConfigError(
            f"folder {str(out)!r} exists and is no artifact of effc",
            hint="choose another place with -o; effc replaces only its own artifacts",
        ) from None
    present = {p.relative_to(out).as_posix() for p in out.rglob("*") if not _plain_folder(p)}
    if foreign := sorted(present - known):
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise ConfigError(
            f"artifact {str(out)!r} holds files that effc did not write: {foreign[0]!r}{more}",
            hint="move them away, or choose another place with -o",
        )


def _plain_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _is_pack(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            _manifest_of(archive, path)
    except (zipfile.BadZipFile, OSError, ConfigError):
        return False
    return True


def _manifest_of(archive: zipfile.ZipFile, path: Path) -> Manifest:
    try:
        info = archive.getinfo(MANIFEST)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > _MAX_MANIFEST_BYTES:
            raise ConfigError(f"the manifest of {str(path)!r} is not one that effc writes")
        return msgspec.json.decode(archive.read(info), type=Manifest)
    except (KeyError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{str(path)!r} is no packed artifact: it has no valid {MANIFEST}",
            hint="name the folder or the .effc file that effc build wrote",
        ) from error


def _unsafe(member: zipfile.ZipInfo, listed: set[str], seen: set[str], path: Path) -> str:
    name = PurePosixPath(member.filename)
    mode = member.external_attr >> 16
    if (
        name.is_absolute()
        or ".." in name.parts
        or "\\" in member.filename
        or ":" in member.filename
    ):
        return "leads outside of the artifact"
    if stat.S_ISLNK(mode):
        return "is a link"
    if member.filename in seen:
        return "is there twice"
    if member.filename not in listed or name.as_posix() != member.filename:
        return "is not in the manifest"
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
        return "is compressed or encrypted"
    if member.file_size > path.stat().st_size:
        return "is larger than the archive"
    return ""


def _write_pack(folder: Path, manifest: Manifest, packed: Path) -> None:
    names = sorted(n for n in (*manifest.files, REPORT) if (folder / n).is_file())
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name in (*names, MANIFEST):
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            info.create_system = 3
            info.file_size = (folder / name).stat().st_size  # decides whether zip64 is needed
            with (
                (folder / name).open("rb") as source,
                archive.open(info, "w") as sink,
            ):
                shutil.copyfileobj(source, sink, 1 << 20)


def _put(folder: Path, out: Path) -> None:
    """Rename `folder` to `out`; what stood there ends up in `folder` and is removed by the caller."""
    if not out.exists():
        os.rename(folder, out)
        return
    if _exchange(folder, out):
        return
    old = folder.with_name(
        f"{folder.name}.old"
    )  # no exchange here: two renames, undone if the second fails
    os.rename(out, old)
    try:
        os.rename(folder, out)
    except OSError:
        os.rename(old, out)
        raise
    shutil.rmtree(old)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two names atomically by Linux's renameat2; whether that worked."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    code: int = rename(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE)
    return code == 0


def _remove_stale(parent: Path, name: str) -> None:
    """Remove staging folders of builds of the same artifact whose process is gone."""
    for folder in parent.glob(f".{glob.escape(name)}.*{_STAGING}"):
        pid = folder.name.removesuffix(_STAGING).rpartition(".")[2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
            shutil.rmtree(folder, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
