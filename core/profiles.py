"""Hardware profiles by name, alias or path: built in (hwprofiles/), plugged in, or the user's own TOML."""

from __future__ import annotations

import difflib
import math
import os
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import msgspec

import effc.hwprofiles
from effc.core.errors import ConfigError
from effc.core.host import detect_host
from effc.core.registry import Registry
from effc.core.target import HardwareProfile, Number

HOST = "host"
DTYPES = ("float64", "float32", "float16", "bfloat16", "float8", "int8", "int4")
_SCHEMA = "hwprofiles/README.md describes the schema"


def load_profile(name: str | os.PathLike[str], *, measure: bool = False) -> HardwareProfile:
    """The profile called `name`: a name, an alias, `host`, or the path of a TOML file.

    A text that ends in `.toml` or holds a path separator is a path. With `measure`, the peaks of `host`
    are timed (about half a second); without, they are absent. ConfigError names the file, the key, the
    reason and a remedy, or the nearest names.
    """
    text = os.fspath(name)
    if text.endswith(".toml") or os.sep in text:
        return read_profile(Path(text))
    if text == HOST:
        if not measure:
            return detect_host()
        # onnxruntime and numpy are wanted only by those who time
        from effc.core.peaks import measure_peaks

        return measure_peaks(detect_host())
    files = _files()
    if text in files:
        return read_profile(files[text])
    plugged = registry()
    if text in plugged.table():
        return _plugged(text)
    names = [HOST, *plugged.table()]
    for profile in all_profiles():
        if text in profile.aliases:
            return profile
        names += profile.aliases
    close = difflib.get_close_matches(text, names, 1)
    raise ConfigError(
        f"unknown target {text!r}",
        hint=f"did you mean {close[0]!r}? `effc targets` lists them all, and the path of a TOML works too"
        if close
        else "`effc targets` lists them; the path of your own TOML works too",
    )


@cache
def registry() -> Registry:
    """The names of all profiles but the host's; plug-ins come from the group `effc.hwprofiles`.

    An entry point's object is a `HardwareProfile` or the path of a TOML file.
    """
    return Registry("hardware profile", "effc.hwprofiles", {n: str(p) for n, p in _files().items()})


def all_profiles() -> tuple[HardwareProfile, ...]:
    """Built-in profiles by vendor and name, then those of plug-ins that can be loaded.

    `host` is not among them. A name or alias that two profiles claim raises ConfigError.
    """
    profiles = [read_profile(path) for path in _files().values()]
    broken = failures()
    profiles += [_plugged(n) for n in registry().table() if n not in _files() and n not in broken]
    owner: dict[str, str] = {HOST: HOST}
    for profile in profiles:
        for claimed in (profile.name, *profile.aliases):
            if claimed in owner:
                raise ConfigError(
                    f"the target name {claimed!r} is claimed by the profiles {owner[claimed]!r} and"
                    f" {profile.name!r}",
                    hint="rename one of them",
                )
            owner[claimed] = profile.name
    return tuple(profiles)


def failures() -> dict[str, str]:
    """Profiles of plug-ins that can't be loaded, with the reason."""
    reasons = {}
    for name in registry().table():
        if name not in _files():
            try:
                _plugged(name)
            except ConfigError as error:
                reasons[name] = str(error)
    return reasons


def read_profile(path: Path) -> HardwareProfile:
    """Read one TOML file strictly: no unknown key, no number without its basis and source."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"profile {str(path)!r} can't be read: {error.strerror or error}",
            hint="give the name of a target (`effc targets`) or the path of a TOML file",
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"profile {str(path)!r} is no valid TOML: {error}", hint=_SCHEMA
        ) from error
    try:
        profile = msgspec.convert(data, HardwareProfile, strict=True)
    except msgspec.ValidationError as error:
        reason, _, where = str(error).partition(" - at ")
        key = where.strip("`").removeprefix("$").removeprefix(".") or "(top level)"
        raise ConfigError(f"profile {str(path)!r}, key {key}: {reason}", hint=_SCHEMA) from error
    for key, reason in _contradictions(profile):
        raise ConfigError(f"profile {str(path)!r}, key {key}: {reason}", hint=_SCHEMA)
    return profile


def numbers(profile: HardwareProfile) -> Iterator[tuple[str, Number]]:
    """Every figure of a profile with its key."""
    if profile.frequency is not None:
        yield "frequency", profile.frequency
    for memory in profile.memories:
        yield f"memories.{memory.name}.bytes", memory.bytes
        if memory.bandwidth is not None:
            yield f"memories.{memory.name}.bandwidth", memory.bandwidth
    for dtype, rate in profile.peak.items():
        yield f"peak.{dtype}", rate


def _contradictions(profile: HardwareProfile) -> Iterator[tuple[str, str]]:
    for key in ("name", "title", "vendor", "backend", "triple", "source"):
        if not getattr(profile, key).strip():
            yield key, "is empty"
    for name in (profile.name, *profile.aliases):
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
            yield "name", f"{name!r} is not of lower-case letters, digits, '-', '_' and '.'"
        if name == HOST:
            yield "name", f"{HOST!r} is the machine that effc runs on"
    if profile.cores < 1:
        yield "cores", f"{profile.cores} is less than 1"
    for dtype in profile.peak:
        if dtype not in DTYPES:
            yield f"peak.{dtype}", f"is no dtype; known: {', '.join(DTYPES)}"
    for key, number in numbers(profile):
        if not (math.isfinite(number.value) and number.value > 0):
            yield f"{key}.value", f"{number.value} is not a positive number"
        if not number.source.strip():
            yield f"{key}.source", "is empty: name the document, or the command that measured it"
    for memory in profile.memories:
        if memory.shared_by < 1:
            yield f"memories.{memory.name}.shared_by", f"{memory.shared_by} is less than 1"


@cache
def _files() -> dict[str, Path]:
    folder = Path(effc.hwprofiles.__file__).parent
    return {path.stem: path for path in sorted(folder.glob("*/*.toml"))}


def _plugged(name: str) -> HardwareProfile:
    found = registry().get(name)
    profile = found if isinstance(found, HardwareProfile) else None
    if isinstance(found, (str, os.PathLike)):
        profile = read_profile(Path(found))
    if profile is None:
        raise ConfigError(
            f"hardware profile {name!r} of a plug-in is {type(found).__name__}",
            hint="its entry point names a HardwareProfile, or the path of a TOML file",
        )
    if profile.name != name:
        raise ConfigError(
            f"hardware profile {name!r} of a plug-in calls itself {profile.name!r}",
            hint="the entry point and the key `name` have to agree",
        )
    return profile
