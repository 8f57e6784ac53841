"""What tuning measured, kept for later builds: JSON lines that are only ever appended.

A line is one measured blocking of one kernel. It counts only where the processor, the instruction set,
the number of threads, the kernels' code and TVM are the same (`Place`).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path

import msgspec

from effc.backends.tvm.isa import Isa
from effc.backends.tvm.kernels.choice import Blocking
from effc.core.errors import TuningError
from effc.core.host import detect_host

FORMAT = 1


class Place(msgspec.Struct, frozen=True):
    """Where measurements hold."""

    cpu: str
    isa: str
    threads: int
    kernels: str  # digest of the code that makes kernels
    tvm: str


class Record(msgspec.Struct, frozen=True):
    """One blocking of the kernel `key`, beside the one that was the fastest until then (`against`).

    `ratio` is the median of the ratios of their times, [low, high] its interval; `gain` is the ratio to the
    rule's blocking; `kept`: it became the fastest.
    """

    format: int
    place: Place
    key: str
    blocking: str
    against: str
    ratio: float
    low: float
    high: float
    gain: float
    seconds: float
    kept: bool


def here(isa: Isa, threads: int) -> Place:
    """This machine, for code of `isa` on `threads` threads."""
    features = hashlib.sha256(" ".join(sorted(isa.features)).encode()).hexdigest()[:8]
    code = f"{isa.name} {isa.mcpu} {features} L1d {isa.l1} L2 {isa.l2}"
    return Place(detect_host().title, code, threads, _code_digest(), version("apache-tvm"))


@cache
def _code_digest() -> str:
    """Of everything that a kernel's machine code depends on."""
    folder = Path(__file__).parent
    digest = hashlib.sha256()
    for path in (*sorted((folder / "kernels").glob("*.py")), folder / "tir.py"):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def default_path() -> Path:
    """The file of this user: `$XDG_CACHE_HOME/effc/tuning/records.jsonl`, or below ~/.cache."""
    cache_home = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(cache_home) if Path(cache_home).is_absolute() else Path.home() / ".cache"
    return base / "effc/tuning/records.jsonl"


@dataclass
class Known:
    """What the records say about one kernel."""

    tried: set[Blocking] = field(default_factory=set)
    best: Blocking = field(default_factory=Blocking)
    gain: float = 1.0


class Records:
    """The records of `path` that hold at `place`. `skipped` counts the lines that are none."""

    def __init__(self, path: Path, place: Place) -> None:
        self.path, self.place = path, place
        self.known: dict[str, Known] = {}
        self.skipped = 0
        for record in self._read():
            if record.place == place:
                self._learn(record)

    def _read(self) -> Iterator[Record]:
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise TuningError(
                f"tuning records {str(self.path)!r} can't be read: {error.strerror or error}",
                hint="give another file with --records",
            ) from error
        for line in data.splitlines():
            if not line.strip():
                continue
            try:
                record = msgspec.json.decode(line, type=Record)
                Blocking.parse(record.blocking)
                known = record.format == FORMAT and record.ratio > 0 and record.gain > 0
            except (msgspec.DecodeError, UnicodeDecodeError, ValueError):
                known = False
            if known:
                yield record
            else:
                self.skipped += 1

    def _learn(self, record: Record) -> None:
        known = self.known.setdefault(record.key, Known())
        blocking = Blocking.parse(record.blocking)
        known.tried.add(blocking)
        if record.kept and record.gain < known.gain:
            known.best, known.gain = blocking, record.gain

    def of(self, key: str) -> Known:
        """What is known about a kernel."""
        return self.known.setdefault(key, Known())

    def add(self, *records: Record) -> None:
        """Append, in one write under a lock: lines of two writers don't mix."""
        if not records:
            return
        data = b"".join(msgspec.json.encode(r) + b"\n" for r in records)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                size = os.fstat(handle).st_size
                if size and os.pread(handle, 1, size - 1) != b"\n":  # a line that was cut off
                    data = b"\n" + data
                os.write(handle, data)
            finally:
                os.close(handle)
        except OSError as error:
            raise TuningError(
                f"tuning records {str(self.path)!r} can't be written: {error.strerror or error}",
                hint="give another file with --records",
            ) from error
        for record in records:
            self._learn(record)
