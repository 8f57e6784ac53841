"""Exact instruction counts from QEMU: a plugin, compiled here once, and what its file says."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from effc.backends.tvm.library import c_compiler
from effc.backends.tvm.mcu.device.symbols import CallSite, Symbol

_SOURCE = Path(__file__).parent / "plugin" / "counting.c"
INVOKE = "effc_invoke"
AROUND = ("effc_counted_invoke", "effc_model_run")
INTERRUPT = "on_tick"


@dataclass(frozen=True, slots=True)
class Counts:
    """Instructions of one inference: exclusive by function, inclusive by call site of `effc_invoke`."""

    functions: dict[str, int]
    sites: dict[int, int]

    @property
    def total(self) -> int:
        """From the first instruction of `effc_invoke` to its last."""
        return sum(self.sites.values())

    def callees(self, calls: Sequence[CallSite]) -> list[tuple[str, int]]:
        """The calls of `effc_invoke` in the order of its code, with all that they execute."""
        return [(c.callee, self.sites[c.address]) for c in calls if c.address in self.sites]


@cache
def plugin(emulator: str) -> Path | None:
    """The compiled plugin for `emulator`; None where there is no C compiler, or it takes no plugins."""
    try:
        said = subprocess.run(
            [emulator, "--help"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    compiler = c_compiler()
    if "-plugin" not in said.stdout or compiler is None:
        return None
    digest = hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:16]
    place = _cache() / f"counting-{digest}.so"
    if place.is_file():
        return place
    with tempfile.NamedTemporaryFile(dir=place.parent, suffix=".so", delete=False) as f:
        made = Path(f.name)
    command = [*compiler, "-O2", "-shared", "-fPIC", "-w", str(_SOURCE), "-o", str(made)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        made.unlink()
        return None
    os.replace(made, place)
    return place


def _cache() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "effc"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="effc-"))
    return folder


def ranges_text(functions: Sequence[Symbol]) -> str:
    """The plugin's file of functions, in the order of `functions`, which is by address."""
    kinds = {INVOKE: 1, **dict.fromkeys(AROUND, 2), INTERRUPT: 3}
    return "".join(
        f"{f.address:x} {f.address + f.bytes:x} {kinds.get(f.name, 0)}\n" for f in functions
    )


def read_counts(text: str, functions: Sequence[Symbol]) -> list[Counts]:
    """The inferences in the plugin's output, in order; a line cut short is left out."""
    runs: dict[int, Counts] = {}
    for line in text.splitlines():
        parts = line.split()
        if len(parts) != 4:
            continue
        kind, run, where, count = parts
        found = runs.setdefault(int(run), Counts({}, {}))
        if kind == "f":
            name = functions[int(where)].name
            if name not in (*AROUND, INTERRUPT):
                found.functions[name] = int(count)
        else:
            found.sites[int(where, 16)] = int(count)
    return [runs[k] for k in sorted(runs)]
