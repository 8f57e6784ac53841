"""Whether this installation can work: Python, packages and pins, toolchains, compiler, processor, memory."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

import msgspec

from effc.backends.tensorrt.gpu import gpus
from effc.backends.tensorrt.products import RTX_TARGETS, installed
from effc.catalogue import backend_rows
from effc.core.errors import ConfigError
from effc.core.gpu import probe as nvml_probe
from effc.core.profiles import HOST, load_profile

_LOW_MEMORY = 2 << 30
_TESTDATA = "EFFC_TESTDATA"


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at. `warn`: something optional is missing. `fail`: effc can't work."""

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    remedy: str = ""


class Diagnosis(msgspec.Struct, frozen=True):
    """All findings; `ok` if none failed."""

    ok: bool
    checks: tuple[Finding, ...]


def examine() -> Diagnosis:
    """Look at everything. Never raises for what it finds."""
    looks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _python, _packages, _backends, _tensorrt, _nvml, _compiler, _processor, _memory, _testdata,
    )  # fmt: skip
    found = tuple(f for look in looks for f in look())
    return Diagnosis(all(f.status != "fail" for f in found), found)


def _python() -> Iterator[Finding]:
    text = f"{platform.python_implementation()} {platform.python_version()}, {platform.platform()}"
    yield Finding("python", "ok", text)


def _packages() -> Iterator[Finding]:
    """Every requirement of effc, with the extras that ask for it."""
    from packaging.requirements import Requirement

    for text in requires("effc") or ():
        requirement = Requirement(text)
        marker = requirement.marker
        optional = marker is not None and not marker.evaluate({"extra": ""})
        if requirement.name == "effc" or (marker is not None and '"dev"' in str(marker)):
            continue
        if optional and '"all"' in str(marker):
            continue
        extra = str(marker).partition('extra == "')[2].partition('"')[0] if optional else ""
        remedy = f'pip install "effc[{extra}]"' if extra else f'pip install "{requirement}"'
        wanted = f"{requirement.name}{requirement.specifier}"
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            status: Literal["ok", "warn", "fail"] = "warn" if optional else "fail"
            what = f"{wanted} is not installed"
            yield Finding(
                requirement.name, status, f"{what} (extra {extra})" if extra else what, remedy
            )
            continue
        if requirement.specifier.contains(found, prereleases=True):
            yield Finding(requirement.name, "ok", found)
        else:
            yield Finding(
                requirement.name,
                "warn" if optional else "fail",
                f"{found} is installed, and effc was tested with {wanted}",
                remedy,
            )


def _backends() -> Iterator[Finding]:
    for row in backend_rows():
        name = f"backend {row.id}"
        if row.available:
            yield Finding(name, "ok", ", ".join(f"{k} {v}" for k, v in row.versions.items()))
        else:
            yield Finding(name, "warn", row.reason, row.hint)


def _tensorrt() -> Iterator[Finding]:
    """NVIDIA GPUs, and whether what runs engines on them is here."""
    found = gpus()
    if not found:
        text = "none: engines for RTX cards are compiled, bundles for other devices written, neither runs"
        yield Finding("NVIDIA GPU", "ok", text)
        return
    named = ", ".join(f"{g.name} (SM{g.sm})" for g in found)
    full, rtx = installed("tensorrt"), installed("tensorrt_rtx")
    if full or (rtx and any(g.sm in RTX_TARGETS for g in found)):
        here = [f"{n} {v}" for n, v in (("tensorrt", full), ("tensorrt_rtx", rtx)) if v]
        yield Finding("NVIDIA GPU", "ok", f"{named}; {', '.join(here)}")
    else:
        remedy = "pip install tensorrt (10.3 or later; on a Jetson it comes with JetPack)"
        yield Finding("NVIDIA GPU", "warn", f"{named}, and no TensorRT that runs on it", remedy)


def _nvml() -> Iterator[Finding]:
    """Whether effc bench can read a GPU's clocks, heat and energy."""
    found = nvml_probe()
    if found.ok:
        yield Finding(
            "NVML", "ok", ", ".join(f"{k} {v}" for k, v in (found.versions or {}).items())
        )
    else:
        yield Finding("NVML", "warn" if found.hint else "ok", found.reason, found.hint)


def _compiler() -> Iterator[Finding]:
    """Compile and link one C function: finding `cc` is not enough, headers may be missing."""
    compiler = os.environ.get("CC") or next(
        (c for c in ("cc", "gcc", "clang") if shutil.which(c)), ""
    )
    remedy = "install a C compiler (apt install gcc libc6-dev), or set CC"
    if not compiler:
        yield Finding("C compiler", "warn", "neither cc, gcc nor clang is on the PATH", remedy)
        return
    with tempfile.TemporaryDirectory(prefix="effc-") as folder:
        source = Path(folder) / "probe.c"
        source.write_text(
            "#include <math.h>\n#include <pthread.h>\nfloat f(float x) { return expf(x); }\n"
        )
        command = [
            compiler,
            "-shared",
            "-fPIC",
            "-O2",
            str(source),
            "-o",
            f"{folder}/probe.so",
            "-lm",
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            first = subprocess.run(
                [compiler, "--version"], capture_output=True, text=True, timeout=60
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            yield Finding("C compiler", "warn", f"{compiler} can't be run: {error}", remedy)
            return
    if done.returncode != 0:
        line = (done.stderr.strip().splitlines() or ["no message"])[0]
        yield Finding("C compiler", "warn", f"{compiler} can't link a library: {line}", remedy)
    else:
        yield Finding("C compiler", "ok", first.stdout.partition("\n")[0])


def _processor() -> Iterator[Finding]:
    try:
        profile = load_profile(HOST)
    except ConfigError as error:
        yield Finding("processor", "warn", str(error), error.hint)
        return
    features = ", ".join(profile.features) or "no vector extensions known"
    yield Finding(
        "processor", "ok", f"{profile.title}; {profile.mcpu or profile.triple}: {features}"
    )


def _memory() -> Iterator[Finding]:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(x.split()[1]) << 10 for x in lines if x.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        yield Finding("memory", "ok", "unknown on this system")
        return
    text = f"{free / (1 << 30):.1f} GiB available"
    if free < _LOW_MEMORY:
        yield Finding("memory", "warn", text, "large models need about 1.5 times their weights")
    else:
        yield Finding("memory", "ok", text)


def _testdata() -> Iterator[Finding]:
    """The models and pictures of the tests; without them those tests are skipped."""
    given = os.environ.get(_TESTDATA)
    place = (
        Path(given) if given else Path(__file__).resolve().parent.parent.parent / "shared/testdata"
    )
    if (place / "MANIFEST.json").is_file():
        yield Finding("test data", "ok", str(place))
    elif given:
        yield Finding(
            "test data", "warn", f"${_TESTDATA} is {given!r}, without a MANIFEST.json", ""
        )
